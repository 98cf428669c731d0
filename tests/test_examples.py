"""The shipped workflows and programs work as they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from acomfy import examples
from acomfy.simulator import SimulatedServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def run_module(name: str, *args: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", name, *args, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def files(directory: Path) -> dict[str, bytes]:
    """Give the first bytes of every file below a directory."""
    return {path.name: path.read_bytes()[:4] for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", examples.WORKFLOWS)
async def test_shipped_workflows_are_complete(name: str) -> None:
    workflow = examples.load(name)
    assert workflow.find("Positive").node_id == "6"
    assert workflow.find("Negative").node_id == "7"
    assert workflow.find("KSampler").node_id == "3"
    for node in workflow.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in workflow


async def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        examples.load("../text_to_image")


async def test_saved_images_saves_the_picture_of_the_guide(tmp_path: Path) -> None:
    async with SimulatedServer() as server:
        said = await run_module("acomfy.examples.saved_images", server.url, cwd=tmp_path)
        assert said == f"node 9: {Path('out', 'ComfyUI_00001_.png')}\n"
        assert files(tmp_path) == {"ComfyUI_00001_.png": b"\x89PNG"}
        sent = server.prompts[0]["prompt"]
        assert (sent["6"]["inputs"]["text"], sent["3"]["inputs"]["seed"]) == ("masterpiece best quality man", 5)


async def test_streamed_images_gets_the_picture_over_the_socket(tmp_path: Path) -> None:
    async with SimulatedServer() as server:
        said = await run_module("acomfy.examples.streamed_images", server.url, cwd=tmp_path)
        assert said == "save_image_websocket_node: 512x512 PNG\n"
        assert files(tmp_path) == {}
        assert server.requests[("GET", "/view")] == 0
