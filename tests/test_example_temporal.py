"""The Temporal example runs each workflow once for all attempts, and takes it from the server when nobody wants it."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import acomfy
from acomfy import examples, look
from acomfy.examples import temporal_activity
from acomfy.examples.temporal_activity import Comfy, Generate
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .shell import eventually, quick_client, tasks_of_the_library

pytestmark = pytest.mark.anyio

SNIPPETS = re.findall(r"```py\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text("utf-8"), re.DOTALL)
GRAPH = examples.load("text_to_image").replace({"3.steps": 1, "5.width": 64, "5.height": 64}).to_dict()


@pytest.fixture(autouse=True)
def quick_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two looks prove sooner that a prompt is gone."""
    monkeypatch.setattr(look, "CERTAIN_AFTER", 50 * MS)


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


@pytest.fixture
async def comfy(server: SimulatedServer, tmp_path: Path) -> AsyncIterator[Comfy]:
    async with quick_client(server, retry=None) as client:
        yield Comfy(client, tmp_path / "out")


class Attempt:
    """An attempt of the activity, and the heartbeats that Temporal got from it."""

    def __init__(self, comfy: Comfy, details: list[Any] | tuple[Any, ...] = (), graph: Any = GRAPH) -> None:
        self.environment = ActivityEnvironment()
        self.environment.info = replace(self.environment.info, heartbeat_details=details)
        self.environment.on_heartbeat = self._on_heartbeat
        self.heartbeats: list[tuple[Any, ...]] = []
        self.task = asyncio.ensure_future(self.environment.run(comfy.generate, graph))

    def _on_heartbeat(self, *details: Any) -> None:
        self.heartbeats.append(details)

    async def error(self) -> ApplicationError:
        with pytest.raises(ApplicationError) as caught:
            await self.task
        return caught.value


@pytest.fixture
def held(server: SimulatedServer) -> asyncio.Event:
    """Hold prompts at the sampler until this is set."""
    event = asyncio.Event()
    server.on("KSampler").waits_for(event)
    return event


async def running(server: SimulatedServer) -> str:
    """Wait until the newest prompt runs; give its id."""
    async with asyncio.timeout(10):
        await server.wait_for(
            lambda: bool(server.ledger) and next(reversed(server.ledger.values())).state == "in_progress"
        )
    return next(reversed(server.ledger))


def executions(server: SimulatedServer) -> dict[str, int]:
    return {prompt_id: entry.executions for prompt_id, entry in server.ledger.items()}


def sniff(path: Path) -> bytes:
    return path.read_bytes()[:4]


async def test_the_result_names_the_files(comfy: Comfy, server: SimulatedServer, tmp_path: Path) -> None:
    attempt = Attempt(comfy)
    made = await attempt.task
    (prompt_id,) = server.ledger
    path = tmp_path / "out" / prompt_id / "ComfyUI_00001_.png"
    assert made == {"prompt_id": prompt_id, "files": [str(path)]}
    assert sniff(path) == b"\x89PNG"


async def test_temporal_has_the_prompt_id_before_the_server_has_the_prompt(
    comfy: Comfy, server: SimulatedServer
) -> None:
    heard: list[tuple[int, Any]] = []
    attempt = Attempt(comfy)
    attempt.environment.on_heartbeat = lambda *details: heard.append((len(server.prompts), details))
    made = await attempt.task
    assert heard[0] == (0, (made["prompt_id"], "pending", 0.0))


async def test_it_beats_while_the_prompt_waits_and_nothing_changes(
    comfy: Comfy, server: SimulatedServer, held: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal_activity, "BEAT", 5 * MS)
    attempt = Attempt(comfy)
    prompt_id = await running(server)
    seen = len(attempt.heartbeats)
    await eventually(lambda: len(attempt.heartbeats) > seen + 3)
    assert attempt.heartbeats[-1][:2] == (prompt_id, "in_progress")
    held.set()
    await attempt.task
    assert attempt.heartbeats[-1][2] > 0


@pytest.mark.parametrize("why", ["cancel_requested", "not_found"])
async def test_a_prompt_that_nobody_wants_leaves_the_server(
    comfy: Comfy, server: SimulatedServer, held: asyncio.Event, why: str
) -> None:
    attempt = Attempt(comfy)
    prompt_id = await running(server)
    attempt.environment.cancel(ActivityCancellationDetails(**{why: True}))
    with pytest.raises(asyncio.CancelledError):
        await attempt.task
    assert server.ledger[prompt_id].state == "cancelled"


async def test_a_cancelled_attempt_takes_off_the_prompt_that_it_only_attached_to(
    comfy: Comfy, server: SimulatedServer, held: asyncio.Event
) -> None:
    async with quick_client(server) as other:
        await other.submit(GRAPH)
    prompt_id = await running(server)
    attempt = Attempt(comfy, [prompt_id])
    await eventually(lambda: bool(attempt.heartbeats) and len(comfy.client.jobs) == 1)
    attempt.environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt.task
    assert server.ledger[prompt_id].state == "cancelled"
    assert len(server.prompts) == 1


async def test_the_attempt_after_a_stopped_worker_attaches(
    comfy: Comfy, server: SimulatedServer, held: asyncio.Event, tmp_path: Path
) -> None:
    first = Attempt(comfy)
    prompt_id = await running(server)
    first.environment.worker_shutdown()
    first.environment.cancel(ActivityCancellationDetails(worker_shutdown=True))
    error = await first.error()
    assert (error.type, error.non_retryable) == ("WorkerShutdown", False)
    await comfy.client.aclose()
    assert server.ledger[prompt_id].state == "in_progress"
    async with quick_client(server) as client:
        second = Attempt(Comfy(client, tmp_path), list(first.heartbeats[-1]))
        await eventually(lambda: bool(second.heartbeats))
        held.set()
        assert (await second.task)["prompt_id"] == prompt_id
    assert executions(server) == {prompt_id: 1}
    assert tasks_of_the_library() == []


async def test_the_attempt_after_a_worker_that_died_when_all_was_done_saves_the_same_prompt(
    comfy: Comfy, server: SimulatedServer
) -> None:
    first = Attempt(comfy)
    made = await first.task
    assert await Attempt(comfy, list(first.heartbeats[0])).task == made
    assert executions(server) == {made["prompt_id"]: 1}


async def test_a_pause_leaves_the_prompt(comfy: Comfy, server: SimulatedServer, held: asyncio.Event) -> None:
    attempt = Attempt(comfy)
    prompt_id = await running(server)
    attempt.environment.cancel(ActivityCancellationDetails(paused=True))
    with pytest.raises(asyncio.CancelledError):
        await attempt.task
    held.set()
    assert (await Attempt(comfy, list(attempt.heartbeats[-1])).task)["prompt_id"] == prompt_id
    assert executions(server) == {prompt_id: 1}


async def test_an_attempt_that_is_stopped_while_it_posts_leaves_the_prompt_for_the_next(
    comfy: Comfy, server: SimulatedServer
) -> None:
    attempt = Attempt(comfy)
    await eventually(lambda: bool(attempt.heartbeats))
    attempt.environment.worker_shutdown()
    attempt.environment.cancel(ActivityCancellationDetails(worker_shutdown=True))
    assert (await attempt.error()).type == "WorkerShutdown"
    made = await Attempt(comfy, list(attempt.heartbeats[-1])).task
    assert executions(server) == {made["prompt_id"]: 1}


async def test_a_prompt_that_never_arrived_or_is_lost_is_run_anew(comfy: Comfy, server: SimulatedServer) -> None:
    attempt = Attempt(comfy, ["4b1d5f2e-0000-4000-8000-000000000000"])
    made = await attempt.task
    assert executions(server) == {made["prompt_id"]: 1}
    assert attempt.heartbeats[0] == ("4b1d5f2e-0000-4000-8000-000000000000",)
    assert attempt.heartbeats[-1][0] == made["prompt_id"]


async def test_what_the_server_refuses_or_a_node_raises_is_not_tried_again(
    comfy: Comfy, server: SimulatedServer
) -> None:
    server.on("KSampler").fails_with("out of luck")
    error = await Attempt(comfy).error()
    assert (error.type, error.non_retryable) == ("JobFailed", True)
    assert "out of luck" in str(error)
    refused = examples.load("text_to_image").replace({"4.ckpt_name": "none.safetensors"}).to_dict()
    error = await Attempt(comfy, graph=refused).error()
    assert (error.type, error.non_retryable) == ("PromptRejected", True)
    error = await Attempt(comfy, graph={"nodes": [], "links": []}).error()
    assert (error.type, error.non_retryable) == ("WorkflowFormatError", True)


async def test_a_server_that_is_away_or_boots_or_lost_the_prompt_is_tried_again(
    comfy: Comfy, server: SimulatedServer, held: asyncio.Event, tmp_path: Path
) -> None:
    with server.faults.answer_as_booting(503):
        error = await Attempt(comfy, ["4b1d5f2e-0000-4000-8000-000000000000"]).error()
        assert (error.type, error.non_retryable) == ("HTTPError", False)
    attempt = Attempt(comfy)
    await running(server)
    await server.faults.restart()
    error = await attempt.error()
    assert (error.type, error.non_retryable) == ("JobLost", False)
    async with acomfy.Client("http://127.0.0.1:9", connect_timeout=10 * MS) as nobody:
        error = await Attempt(Comfy(nobody, tmp_path)).error()
        assert (error.type, error.non_retryable) == ("ServerUnreachable", False)


async def test_the_readme_starts_a_worker_and_a_workflow(
    server: SimulatedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a Temporal that runs the worker's activity itself."""
    comfies: list[Comfy] = []

    class Temporal:
        async def execute_workflow(self, run: object, graph: Any, *, id: str, task_queue: str) -> Any:
            assert (run, task_queue) == (Generate.run, "comfyui")
            return await Attempt(comfies[0], graph=graph).task

    async def connect(target: str) -> Temporal:
        return Temporal()

    def worker(temporal: Temporal, comfy: Comfy) -> AbstractAsyncContextManager[None]:
        comfies.append(comfy)
        return nullcontext()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("temporalio.client.Client.connect", connect)
    monkeypatch.setattr(temporal_activity, "worker", worker)
    monkeypatch.setattr(acomfy, "Client", lambda url, real=acomfy.Client: real(server.url))
    (snippet,) = [one for one in SNIPPETS if "temporal_activity" in one]
    names: dict[str, Any] = {"acomfy": acomfy, "workflow": acomfy.Workflow(GRAPH)}
    await eval(compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    assert sniff(Path(names["made"]["files"][0])) == b"\x89PNG"


def test_the_worker_asks_for_cancellation_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(temporal_activity, "Worker", lambda temporal, **given: options.update(given))
    comfy = Comfy(acomfy.Client(), Path("out"))
    temporal_activity.worker(None, comfy)  # type: ignore[arg-type]
    assert options["max_heartbeat_throttle_interval"].total_seconds() <= 1  # else Temporal's client holds them back
    assert (options["workflows"], options["activities"]) == ([Generate], [comfy.generate])
