"""The taskiq example runs each task's workflow once, however often the task is delivered."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker, SimpleRetryMiddleware, TaskiqResult

import acomfy
from acomfy import examples, look
from acomfy.examples import taskiq_tasks
from acomfy.examples.taskiq_tasks import Failed, MayPass, Note
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .shell import eventually, tasks_of_the_library

pytestmark = pytest.mark.anyio

GRAPH = examples.load("text_to_image").replace({"3.steps": 1, "5.width": 64, "5.height": 64}).to_dict()

WORKER_THAT_DIES = """
import asyncio, json, sys
import acomfy
from taskiq import InMemoryBroker
from acomfy.examples import taskiq_tasks

async def main(server, out):
    broker = InMemoryBroker()
    task = taskiq_tasks.add_to(broker, lambda: acomfy.Client(server), out)
    await broker.startup()
    kicked = await task.kicker().with_task_id("fox").kiq(json.load(sys.stdin))
    await kicked.wait_result()

asyncio.run(main(*sys.argv[1:]))
"""


class Worker:
    """A worker with a broker of its own: what is kicked is delivered to it alone."""

    def __init__(self, make_client: Callable[[], acomfy.Client], out: Path, **labels: Any) -> None:
        self.broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware())
        self.task: AsyncTaskiqDecoratedTask[..., Any] = taskiq_tasks.add_to(self.broker, make_client, out, **labels)

    async def deliver(self, task_id: str = "fox", graph: dict[str, Any] = GRAPH) -> TaskiqResult[Any]:
        kicked = await self.task.kicker().with_task_id(task_id).kiq(graph)
        return await kicked.wait_result(check_interval=2 * MS, timeout=20)


StartWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture(autouse=True)
def quick_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two looks prove sooner that a prompt is gone."""
    monkeypatch.setattr(look, "CERTAIN_AFTER", 50 * MS)


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
async def start(server: SimulatedServer, out: Path) -> AsyncIterator[StartWorker]:
    """Start workers, which end with the test."""
    async with AsyncExitStack() as stack:

        async def start(client: dict[str, Any] | None = None, **labels: Any) -> Worker:
            worker = Worker(lambda: acomfy.Client(**{"url": server.url, **(client or {})}), out, **labels)
            await worker.broker.startup()
            stack.push_async_callback(worker.broker.shutdown)
            return worker

        yield start
    await eventually(lambda: tasks_of_the_library() == [])


@pytest.fixture
def held(server: SimulatedServer) -> asyncio.Event:
    """Hold prompts at the sampler until this is set."""
    event = asyncio.Event()
    server.on("KSampler").waits_for(event)
    return event


async def running(server: SimulatedServer) -> str:
    """Wait until the newest prompt runs; give its id."""
    async with asyncio.timeout(20):
        await server.wait_for(
            lambda: bool(server.ledger) and next(reversed(server.ledger.values())).state == "in_progress"
        )
    return next(reversed(server.ledger))


def executions(server: SimulatedServer) -> dict[str, int]:
    return {prompt_id: entry.executions for prompt_id, entry in server.ledger.items()}


def failure(result: TaskiqResult[Any]) -> Failed:
    assert isinstance(result.error, Failed)
    return result.error


def sniff(path: Path) -> bytes:
    return path.read_bytes()[:4]


async def test_the_result_names_the_files(start: StartWorker, server: SimulatedServer, out: Path) -> None:
    result = await (await start()).deliver()
    (prompt_id,) = server.ledger
    path = out / "fox" / "ComfyUI_00001_.png"
    assert result.return_value == {"prompt_id": prompt_id, "files": [str(path)]}
    assert sniff(path) == b"\x89PNG"


async def test_a_prompt_id_is_noted_before_the_server_has_the_prompt(
    start: StartWorker, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[tuple[str, int]] = []
    write = Note.write

    def see(note: Note, **known: Any) -> dict[str, Any]:
        posted.append((known["prompt_id"], len(server.prompts)))
        return write(note, **known)

    monkeypatch.setattr(Note, "write", see)
    worker = await start()
    results = await asyncio.gather(*(worker.deliver(f"fox {number}") for number in range(3)))
    assert posted[0][1] == 0
    assert {prompt_id for prompt_id, _ in posted} == {result.return_value["prompt_id"] for result in results}


async def test_a_task_of_a_worker_that_was_killed_is_not_run_twice(
    start: StartWorker, server: SimulatedServer, held: asyncio.Event, out: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arguments = ("-c", WORKER_THAT_DIES, server.url, str(out))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(acomfy.Workflow(GRAPH).to_json().encode())
    process.stdin.close()
    prompt_id = await running(server)
    process.kill()
    await process.wait()
    worker = await start()
    second = asyncio.ensure_future(worker.deliver())
    await eventually(lambda: len(worker.broker.state.comfy.jobs) == 1)
    held.set()
    assert (await second).return_value["prompt_id"] == prompt_id
    assert executions(server) == {prompt_id: 1}


async def test_a_task_that_is_delivered_again_while_it_runs_follows_the_same_prompt(
    start: StartWorker, server: SimulatedServer, held: asyncio.Event
) -> None:
    first_worker, second_worker = await start(), await start()
    first = asyncio.ensure_future(first_worker.deliver())
    prompt_id = await running(server)
    others = [asyncio.ensure_future(worker.deliver()) for worker in (first_worker, second_worker)]
    await eventually(lambda: len(second_worker.broker.state.comfy.jobs) == 1)
    held.set()
    results = await asyncio.gather(first, *others)
    assert [result.return_value["prompt_id"] for result in results] == [prompt_id] * 3
    assert executions(server) == {prompt_id: 1}


async def test_a_task_that_is_delivered_again_after_its_end_asks_nobody(
    start: StartWorker, server: SimulatedServer
) -> None:
    first = await (await start()).deliver()
    server.requests.clear()
    assert (await (await start()).deliver()).return_value == first.return_value
    assert not server.requests


async def test_a_worker_that_is_stopped_leaves_the_prompt_to_the_next(
    start: StartWorker, server: SimulatedServer, held: asyncio.Event
) -> None:
    worker = await start()
    first = asyncio.ensure_future(worker.deliver())
    prompt_id = await running(server)
    await worker.broker.state.comfy.aclose()
    error = failure(await first)
    assert (type(error), error.kind) == (MayPass, "ClientClosed")
    held.set()
    assert (await (await start()).deliver()).return_value["prompt_id"] == prompt_id
    assert executions(server) == {prompt_id: 1}


async def test_a_task_that_times_out_takes_its_prompt_from_the_server(
    start: StartWorker, server: SimulatedServer, held: asyncio.Event
) -> None:
    worker = await start(timeout=300 * MS)
    result = await worker.deliver()
    assert isinstance(result.error, TimeoutError)
    assert [entry.state for entry in server.ledger.values()] == ["cancelled"]
    held.set()
    assert not (await (await start()).deliver()).is_err  # a later delivery runs it anew
    assert [entry.state for entry in server.ledger.values()] == ["cancelled", "completed"]


async def test_what_the_server_refuses_or_a_node_raises_is_not_tried_again(
    start: StartWorker, server: SimulatedServer
) -> None:
    server.on("KSampler").once().fails_with("out of luck")
    worker = await start()
    refused = examples.load("text_to_image").replace({"4.ckpt_name": "none.safetensors"}).to_dict()
    graphs: list[dict[str, Any]] = [GRAPH, refused, {"nodes": [], "links": []}]
    results = [await worker.deliver(f"{number}", graph) for number, graph in enumerate(graphs)]
    kinds = ["JobFailed", "PromptRejected", "WorkflowFormatError"]
    assert [(type(result.error), failure(result).kind) for result in results] == [(Failed, kind) for kind in kinds]
    assert "out of luck" in str(results[0].error)
    assert len(server.ledger) == 1
    assert not (await (await start()).deliver("0")).is_err  # who sends it again means it


async def test_a_prompt_that_the_server_lost_is_tried_again(
    start: StartWorker, server: SimulatedServer, held: asyncio.Event
) -> None:
    first = asyncio.ensure_future((await start()).deliver())
    lost = await running(server)
    held.set()
    await server.faults.restart()
    result = await first
    assert result.return_value["prompt_id"] != lost
    assert [entry.state for entry in server.ledger.values()] == ["lost", "completed"]


async def test_a_server_that_is_away_is_tried_again_until_there_were_enough_tries(
    start: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    begin = taskiq_tasks.run_once

    def count(client: acomfy.Client, workflow: dict[str, Any], note: Note) -> Awaitable[acomfy.Result]:
        tries.append(client.api.url)
        return begin(client, workflow, note)

    monkeypatch.setattr(taskiq_tasks, "run_once", count)
    nobody = {"url": "http://127.0.0.1:9", "connect_timeout": 10 * MS, "retry": None}
    result = await (await start(nobody, max_retries=3)).deliver()
    assert (type(result.error), failure(result).kind) == (MayPass, "ServerUnreachable")
    assert len(tries) == 3


async def test_errors_are_what_they_were_when_a_result_backend_kept_them(
    start: StartWorker, server: SimulatedServer
) -> None:
    server.on("KSampler").fails_with("out of luck")
    result = await (await start()).deliver()
    kept = failure(TaskiqResult[Any].model_validate_json(result.model_dump_json()))
    assert (type(kept), kept.kind, kept.message) == (Failed, "JobFailed", failure(result).message)


@pytest.mark.parametrize("task_id", ["..", "../fox", "/etc/fox", "a/b"])
def test_a_task_id_cannot_leave_the_directory(tmp_path: Path, task_id: str) -> None:
    note = Note(tmp_path / "out", task_id)
    note.write(prompt_id="1")
    assert note.read() == {"prompt_id": "1"}
    assert note.folder.parent == tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len([*(tmp_path / "out").iterdir()]) == 1
