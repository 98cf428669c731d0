"""A fleet of workers, which are processes, in front of a real ComfyUI, over a NATS server of its own.

::

    ACOMFY_SERVER=http://127.0.0.1:8188 pytest -m live tests/live/test_live_fleet.py

Only nodes that every ComfyUI has are used, and SaveImageWebsocket, which comes with it. The server has nothing else to
do meanwhile.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import acomfy
from acomfy.capabilities import read_capabilities
from acomfy.fleet import Fleet
from acomfy.fleet.local import LocalBroker

from ..graphs import color_of, saved, streamed

pytestmark = [pytest.mark.anyio, pytest.mark.live]

URL = os.environ.get("ACOMFY_SERVER", "")
LEASE = 5.0
WITHIN = 90.0
SLOW_NODES = 60


@pytest.fixture
async def client() -> AsyncIterator[acomfy.Client]:
    """The server, beside the fleet."""
    async with acomfy.Client(URL) as client:
        await client.wait_ready()
        yield client


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    async with LocalBroker() as broker:
        yield broker


@pytest.fixture
async def fleet(broker: LocalBroker) -> AsyncIterator[Fleet]:
    async with Fleet(broker.url, lease=LEASE) as fleet, asyncio.timeout(WITHIN):
        yield fleet


class WorkerProcess:
    """``acomfy worker`` in front of the server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def working(broker: LocalBroker, *options: str) -> AsyncIterator[WorkerProcess]:
    """Have a worker work."""
    command = ["-m", "acomfy", "worker", "--nats", broker.url, "--server", URL, "--lease", str(LEASE), *options]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.DEVNULL)
    worker = WorkerProcess(process)
    try:
        yield worker
    finally:
        await worker.kill()


@pytest.fixture
async def worker(broker: LocalBroker) -> AsyncIterator[WorkerProcess]:
    async with working(broker) as worker:
        yield worker


def fresh_color() -> int:
    """A colour that no earlier run left in the server's cache."""
    return random.randrange(1 << 24)


def slow(nodes: int = SLOW_NODES, *, size: int = 2048) -> dict[str, Any]:
    """Scale a picture again and again: some seconds of work, which an interrupt ends between two nodes."""
    graph: dict[str, Any] = saved(fresh_color(), size=size)
    save = graph.pop("2")
    for number in range(2, nodes + 2):
        inputs = {"image": [str(number - 1), 0], "upscale_method": "lanczos", "crop": "disabled"}
        graph[str(number)] = {
            "class_type": "ImageScale",
            "inputs": {**inputs, "width": size, "height": size + number % 2},
        }
    save["inputs"]["images"] = [str(nodes + 1), 0]
    return {**graph, str(nodes + 2): save}


async def running(job: acomfy.Job) -> None:
    """Wait until a job runs on the server."""
    async with aclosing(job.updates(interval=0.02)) as updates:
        async for update in updates:
            if update.state is not acomfy.JobState.PENDING:
                break
    assert job.state is acomfy.JobState.IN_PROGRESS


async def line_of(client: acomfy.Client) -> str:
    return json.dumps(await client.api.get_queue())


async def executions(client: acomfy.Client, graph: dict[str, Any]) -> list[str]:
    """Give the prompts of the server's history that are this graph: its colour is its own."""
    color = graph["1"]["inputs"]["color"]
    return [
        prompt_id
        for prompt_id, entry in (await client.api.get_histories()).items()
        if entry["prompt"][2].get("1", {}).get("inputs", {}).get("color") == color
    ]


async def on_the_server(client: acomfy.Client, output: acomfy.Output) -> bytes:
    """Read a file from the server itself."""
    async with client.api.view(output.filename, subfolder=output.subfolder, type=output.type) as response:
        return await response.read()


# --- What comes back -------------------------------------------------------------------------------------------------


async def test_files_are_those_of_the_server_byte_by_byte(
    fleet: Fleet, worker: WorkerProcess, client: acomfy.Client
) -> None:
    color = fresh_color()
    result = await fleet.run(saved(color, batch=3))
    assert [color_of(await output.read()) for output in result.images] == [color] * 3
    for output in result.images:
        assert await output.read() == await on_the_server(client, output)


async def test_streamed_images_which_the_server_does_not_keep(fleet: Fleet, worker: WorkerProcess) -> None:
    color = fresh_color()
    result = await fleet.run(streamed(color, batch=3))
    assert [color_of(await output.read()) for output in result.images] == [color] * 3


async def test_files_that_are_left_on_their_server_come_from_there(
    broker: LocalBroker, fleet: Fleet, client: acomfy.Client
) -> None:
    async with working(broker, "--results", "server", "--advertise", URL):
        result = await fleet.run(saved(fresh_color()))
        assert await result.images[0].read() == await on_the_server(client, result.images[0])


async def test_pictures_go_in_whatever_they_are_given_as(fleet: Fleet, worker: WorkerProcess, tmp_path: Path) -> None:
    picture = Image.frombytes("RGB", (48, 32), random.randbytes(48 * 32 * 3))
    path, data = tmp_path / "a picture ü.png", io.BytesIO()
    picture.save(path)
    picture.save(data, "PNG")
    for image in (picture, path, data.getvalue()):
        graph = saved(fresh_color())
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": image}}
        result = await fleet.run(graph)
        assert (await result.images[0].image()).convert("RGB").tobytes() == picture.tobytes()


async def test_a_hundred_prompts_are_each_done_once(fleet: Fleet, worker: WorkerProcess, client: acomfy.Client) -> None:
    graphs = [saved(color) for color in random.sample(range(1 << 24), 100)]
    seen = set()
    async for job in fleet.map(graphs, limit=10):
        assert color_of(await (await job).images[0].read()) == graphs[job.index or 0]["1"]["inputs"]["color"]
        seen.add(job.index)
    assert seen == set(range(100))
    for graph in graphs:
        assert len(await executions(client, graph)) == 1


async def test_events_and_progress_come_while_somebody_listens(fleet: Fleet, worker: WorkerProcess) -> None:
    job = await fleet.submit(slow(5))
    events = [event async for event in job.events()]
    assert isinstance(events[0], acomfy.ExecutionStart)
    assert isinstance(events[-1], acomfy.ExecutionSuccess)
    assert any(isinstance(event, acomfy.Executing) for event in events)
    assert job.progress == 1.0


async def test_another_submitter_gets_the_result(broker: LocalBroker, fleet: Fleet, worker: WorkerProcess) -> None:
    color = fresh_color()
    job = await fleet.submit(saved(color))
    async with Fleet(broker.url) as other:
        for _ in range(2):  # while it is on its way, most likely, and when it is done
            result = await (await other.attach(job.job_id))
            assert color_of(await result.images[0].read()) == color
    await job


# --- What cannot run -------------------------------------------------------------------------------------------------


async def test_what_the_server_refuses(fleet: Fleet, worker: WorkerProcess) -> None:
    graph = saved()
    graph["1"]["inputs"]["width"] = -5
    with pytest.raises(acomfy.PromptRejected) as caught:
        await fleet.run(graph)
    assert [(problem.node_id, problem.input_name) for problem in caught.value.problems] == [("1", "width")]


async def test_a_class_that_no_server_has(fleet: Fleet, worker: WorkerProcess) -> None:
    with pytest.raises(acomfy.PromptRejected, match="NoSuchNode"):
        await fleet.run(saved(fresh_color(), node="NoSuchNode"))


async def test_a_model_that_no_server_has(fleet: Fleet, worker: WorkerProcess) -> None:
    graph = saved(fresh_color())
    graph["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "misspelt.safetensors"}}
    graph["3"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["4"] = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}}
    graph["2"]["inputs"]["images"] = ["4", 0]
    with pytest.raises(acomfy.PromptRejected, match=r"misspelt\.safetensors"):
        await fleet.run(graph)


async def test_a_node_that_fails(fleet: Fleet, worker: WorkerProcess) -> None:
    graph = saved(fresh_color(), size=1)
    blur = {"image": ["1", 0], "blur_radius": 31, "sigma": 1.0}  # more than the picture has to be mirrored
    graph["3"] = {"class_type": "ImageBlur", "inputs": blur}
    graph["2"]["inputs"]["images"] = ["3", 0]
    with pytest.raises(acomfy.JobFailed) as caught:
        await fleet.run(graph)
    assert (caught.value.node_id, caught.value.class_type) == ("3", "ImageBlur")


# --- Cancelled -------------------------------------------------------------------------------------------------------


async def test_a_running_prompt_is_off_its_server_within_two_seconds(
    fleet: Fleet, worker: WorkerProcess, client: acomfy.Client
) -> None:
    can = read_capabilities(await client.api.get_system_stats(), None)
    job = await fleet.submit(slow())
    await running(job)
    assert await job.cancel() is can.targeted_interrupt  # before 0.3.57 it could stop somebody else's
    assert (job.prompt_id in await line_of(client)) is not can.targeted_interrupt


async def test_a_waiting_prompt_never_gets_there(fleet: Fleet, worker: WorkerProcess, client: acomfy.Client) -> None:
    first, graph = await fleet.submit(slow(20)), saved(fresh_color())
    await running(first)
    second = await fleet.submit(graph)
    assert await second.cancel()
    with pytest.raises(acomfy.JobCancelled):
        await second
    await first
    assert await executions(client, graph) == []


async def test_prompts_of_others_are_waited_for_and_left_alone(
    fleet: Fleet, worker: WorkerProcess, client: acomfy.Client
) -> None:
    theirs = [slow(15), slow(15)]
    async with acomfy.Client(URL) as other:
        jobs = [await other.submit(graph) for graph in theirs]
        await running(jobs[0])
        ours = await fleet.submit(slow())
        await jobs[0]
        assert ours.state is acomfy.JobState.PENDING
        assert ours.prompt_id not in await line_of(client)
        await jobs[1]
        await running(ours)
        behind = await other.submit(saved(fresh_color()))
        await ours.cancel()
        await behind


# --- Workers that die ------------------------------------------------------------------------------------------------


async def test_the_prompt_of_a_worker_that_is_killed_is_followed_where_it_runs(
    broker: LocalBroker, fleet: Fleet, worker: WorkerProcess, client: acomfy.Client
) -> None:
    graph = slow()
    job = await fleet.submit(graph)
    await running(job)
    await worker.kill()
    async with working(broker):
        result = await job
    assert color_of(await result.images[0].read()) == graph["1"]["inputs"]["color"]
    assert job.attempt == 1
    assert await executions(client, graph) == [job.prompt_id]


async def test_a_worker_that_hangs_for_longer_than_its_lease_does_no_harm(
    broker: LocalBroker, fleet: Fleet, worker: WorkerProcess, client: acomfy.Client
) -> None:
    graph = slow()
    job = await fleet.submit(graph)
    await running(job)
    worker.pause()
    async with working(broker):
        await job
        worker.go_on()
        assert color_of(await (await fleet.run(saved(7))).images[0].read()) == 7
    assert job.attempt == 1
    assert await executions(client, graph) == [job.prompt_id]


async def test_a_broker_that_is_killed_and_comes_back_costs_no_prompt(
    broker: LocalBroker, fleet: Fleet, worker: WorkerProcess, client: acomfy.Client
) -> None:
    graphs = [slow(20), *(saved(fresh_color()) for _ in range(5))]
    jobs = [await fleet.submit(graph) for graph in graphs]
    await running(jobs[0])
    assert await fleet.waiting() == len(jobs)
    await broker.restart()
    for job, graph in zip(jobs, graphs, strict=True):
        assert color_of(await (await job).images[0].read()) == graph["1"]["inputs"]["color"]
        assert await executions(client, graph) == [job.prompt_id]
