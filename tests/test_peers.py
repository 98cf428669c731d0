"""Clients that nobody here wrote do their main job on the simulator, unchanged."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import comfy_sdk
import comfy_toolkit
import comfyui_xy  # type: ignore[import-untyped]
import pytest
from PIL import Image

from acomfy.simulator import SimulatedServer

from .graphs import sampled

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a client that blocks."""
    async with asyncio.timeout(40):
        return await asyncio.to_thread(function, *args)


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.size


# --- comfyui_xy ----------------------------------------------------------------------------------------------------


async def test_comfyui_xy_gets_its_picture(server: SimulatedServer) -> None:
    async with comfyui_xy.AsyncComfyUiClient(server.url) as client:
        [found] = await client.process_workflow(sampled())
    assert size_of(found.data) == (64, 64)


# --- comfy-toolkit -------------------------------------------------------------------------------------------------


async def test_comfy_toolkit_follows_a_prompt_and_downloads_its_picture(server: SimulatedServer) -> None:
    steps: list[tuple[int, int]] = []

    def run() -> bytes:
        client = comfy_toolkit.ComfyClient(server.url)
        assert client.is_online()
        workflow = comfy_toolkit.customize(sampled(steps=4), positive="a lighthouse", seed=42)
        result = client.submit_and_track(workflow, on_progress=lambda *step: steps.append(step))
        data: bytes = client.download(result["images"][0])
        return data

    assert size_of(await in_thread(run)) == (64, 64)
    assert (4, 4) in steps
    assert server.prompts[0]["prompt"]["6"]["inputs"]["text"] == "a lighthouse"


async def test_comfy_toolkit_tells_of_a_failure(server: SimulatedServer) -> None:
    server.on("KSampler").fails_with("out of luck")
    with pytest.raises(comfy_toolkit.ComfyExecutionError) as caught:
        await in_thread(lambda: comfy_toolkit.ComfyClient(server.url).submit_and_track(sampled()))
    assert "KSampler" in caught.value.detail


# --- comfy-sdk, through comfy-api-proxy ----------------------------------------------------------------------------


@asynccontextmanager
async def proxied(server: SimulatedServer, home: Path) -> AsyncIterator[str]:
    """Run the official proxy, which speaks the Comfy API v2, in front of the simulator."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    main = "import sys; from comfy_api_proxy.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "run", "--comfyui", server.url, "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=home, env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await _answers(f"{url}/api/v2/health", process)
        yield url
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _answers(url: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(40), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.ok:
                        return
            except aiohttp.ClientConnectorError:
                assert process.returncode is None, await process.communicate()
                await asyncio.sleep(0.05)  # no event tells when another process listens


async def test_comfy_sdk_runs_a_workflow_through_the_official_proxy(
    server: SimulatedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> bytes:
        with comfy_sdk.Comfy() as client:
            job = client.run(client.workflows.from_json(sampled()))
            data: bytes = job.get_outputs("9")[0].to_bytes()
            return data

    async def tried() -> bytes:
        """Run it until the proxy sees the end: a prompt that ends between its two looks has expired, to it."""
        for _ in range(4):
            with suppress(comfy_sdk.exceptions.JobFailed):
                return await in_thread(run)
        return await in_thread(run)

    async with proxied(server, tmp_path) as url:
        monkeypatch.setenv("COMFY_BASE_URL", url)
        assert size_of(await tried()) == (64, 64)
