"""Every program and recipe of the README runs, against the simulated server."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import acomfy
from acomfy import examples
from acomfy.fleet import Fleet, Worker
from acomfy.fleet.local import LocalBroker
from acomfy.simulator import SimulatedServer

pytestmark = pytest.mark.anyio

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
DEFAULT = "http://127.0.0.1:8188"


def test_the_readme_has_its_snippets() -> None:
    assert len(SNIPPETS) >= 6


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
async def test_snippet_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workflow = small_workflow("text_to_image", tmp_path / "workflow_api.json")
    small_workflow("text_to_image_stream", tmp_path / "workflow_stream_api.json")
    async with AsyncExitStack() as stack:
        server, other = [await stack.enter_async_context(SimulatedServer()) for _ in range(2)]
        real_client, real_pool = acomfy.Client, acomfy.Pool

        def client(url: str = DEFAULT, **options: Any) -> acomfy.Client:
            return real_client(server.url if url == DEFAULT else url, **options)

        def pool(servers: list[Any]) -> acomfy.Pool:
            return real_pool([each.url for each, _ in zip((server, other), servers, strict=True)])

        monkeypatch.setattr(acomfy, "Client", client)
        monkeypatch.setattr(acomfy, "Pool", pool)
        if "acomfy.fleet" in SNIPPETS[number]:
            fleet = await stack.enter_async_context(fleet_of(server))
            monkeypatch.setattr("acomfy.fleet.Fleet", fleet)
        await run(SNIPPETS[number], {"acomfy": acomfy, "workflow": workflow})
        assert server.prompts or other.prompts or "SimulatedServer" in SNIPPETS[number]


@asynccontextmanager
async def fleet_of(server: SimulatedServer) -> AsyncIterator[Callable[[str], Fleet]]:
    """Start a broker and a worker beside a server; give what makes a fleet of them, whatever address is given."""
    async with LocalBroker() as broker, Worker(server.url, nats=broker.url) as worker:
        working = asyncio.create_task(worker.run())
        yield lambda url: Fleet(broker.url)
        worker.stop()
        await working


def small_workflow(name: str, path: Path) -> acomfy.Workflow:
    """Write a shipped workflow to a file, made quick."""
    workflow = examples.load(name).replace({"3.steps": 1, "5.width": 64, "5.height": 64})
    path.write_text(json.dumps(workflow.to_dict()))
    return workflow


async def run(snippet: str, names: dict[str, Any]) -> None:
    """Run a snippet: its ``asyncio.run(main())`` as an await, and awaits at its top level."""
    source = "import asyncio\n" + snippet.replace("asyncio.run(main())", "await main()")
    code = compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    outcome = eval(code, names)
    if inspect.iscoroutine(outcome):
        await outcome


def test_the_commands_of_the_readme_are_the_ones_that_ci_runs() -> None:
    commands = re.findall(r"```sh\n(.*?)\n```", README.read_text(), re.DOTALL)
    assert len(commands) == 2
    assert commands[0].endswith(
        "acomfy run --simulate --count 8 --out out --sheet out/sheet.png --seed random text_to_image"
    )
    assert commands[1].endswith("pytest -q -n 4")
    assert all(command.startswith("python3 -m venv .venv && .venv/bin/pip install -q ") for command in commands)
