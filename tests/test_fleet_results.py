"""What comes back from a fleet, and what goes along: results of every kind, errors, and input files."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from aiohttp import web
from PIL import Image

import acomfy
from acomfy import Masked
from acomfy.fleet import Fleet
from acomfy.fleet.local import LocalBroker
from acomfy.simulator import Node, NodeContext, SimulatedServer

from .brokers import broker as broker
from .brokers import connected
from .conftest import MS
from .fleets import emptied, messages_in, quick_fleet, working
from .front_door import Doorkeeper
from .graphs import color_of, gated, saved, streamed
from .shell import Gates, client, eventually, gates, server
from .test_simulator_media import EXTRA, GRAPHS

__all__ = ["broker", "client", "gates", "server"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fleet(broker: LocalBroker, server: SimulatedServer) -> AsyncIterator[Fleet]:
    async with working(broker, server), quick_fleet(broker) as fleet:
        yield fleet


def png(color: int = 0x336699, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (color >> 16, color >> 8 & 255, color & 255)).save(buffer, "png")
    return buffer.getvalue()


def loaded(image: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}},
    }


async def pixels(result: acomfy.Result) -> bytes:
    return (await result.images[0].image()).convert("RGB").tobytes()


def about(output: acomfy.Output) -> tuple[Any, ...]:
    return (
        *(output.node_id, output.key, output.subfolder, output.type, output.media_type, output.animated),
        *(output.class_type, output.title, output.text, dict(output.raw or {}).keys()),
    )


# --- Results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
async def test_a_file_of_every_kind_is_what_a_client_gets(fleet: Fleet, client: acomfy.Client, name: str) -> None:
    prompt, _, media_type = GRAPHS[name]
    ours, theirs = await fleet.run(prompt, extra_data=EXTRA), await client.run(prompt, extra_data=EXTRA)
    (mine,), (other,) = ours, theirs
    assert mine.media_type == media_type
    assert about(mine) == about(other)
    assert await mine.read() == await other.read()
    assert await mine.metadata() == await other.metadata()
    for kind in ("images", "videos", "audio", "texts", "files", "temp"):
        assert [output.node_id for output in getattr(ours, kind)] == [
            output.node_id for output in getattr(theirs, kind)
        ]


async def test_a_result_has_all_that_a_clients_result_has(fleet: Fleet, client: acomfy.Client, tmp_path: Path) -> None:
    graph = saved(0x112233, batch=3)
    graph["2"]["_meta"] = {"title": "Finals"}
    graph |= {
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "4": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": "words \ud83d\ude00 NaN"}},
    }
    ours = await fleet.run(graph)
    theirs = await client.run(saved(0x112233, batch=3) | {key: graph[key] for key in "2345"})
    assert [about(output)[:-1] for output in ours] == [about(output)[:-1] for output in theirs]
    assert [output.title for output in ours["2"]] == ["Finals"] * 3
    assert ours["2"][0].class_type == "SaveImage"
    assert len(ours.images) == 6
    assert len(ours.temp) == 3
    assert [output.text for output in ours.texts] == ["words \U0001f600 NaN"]
    assert ours["1"] == []
    with pytest.raises(KeyError):
        ours["9"]
    assert ours.raw.keys() == theirs.raw.keys()
    assert ours.cached_nodes == ()
    assert (await fleet.run(graph)).cached_nodes
    paths = await ours.save(tmp_path)
    assert len(paths) == len(await theirs.save(tmp_path / "theirs")) == 6
    assert repr(ours).startswith("<Result of prompt")


async def test_a_file_is_read_streamed_saved_and_shrunk(fleet: Fleet, client: acomfy.Client, tmp_path: Path) -> None:
    graph = saved(0x4080C0, size=300)
    (mine,) = (await fleet.run(graph)).images
    (other,) = (await client.run(graph)).images
    data = await mine.read()
    assert data == await other.read()
    assert b"".join([chunk async for chunk in mine.stream()]) == data
    assert (await mine.save(tmp_path / "a.png")).read_bytes() == data
    assert (await mine.save(tmp_path)).read_bytes() == data
    assert (await mine.image()).size == (300, 300)
    assert await mine.read(preview="jpeg;50") == await other.read(preview="jpeg;50")
    assert await mine.read(channel="rgb") == await other.read(channel="rgb")
    assert await mine.read(channel="a") == await other.read(channel="a")
    assert (await mine.metadata()).prompt == graph
    with pytest.raises(acomfy.ServerError):
        await mine.read(max_size=10)


async def test_many_files_are_read_at_once(fleet: Fleet) -> None:
    results = [job async for job in fleet.map((saved(color, batch=4) for color in range(8)), limit=8)]
    outputs = [(job.index, output) for job in results for output in (await job).images]
    found = await asyncio.gather(*(output.read() for _, output in outputs))
    assert [color_of(data) for data in found] == [color for color, _ in outputs]
    assert len(found) == 32


async def test_a_file_that_is_gone_from_the_broker_is_missing(broker: LocalBroker, fleet: Fleet) -> None:
    result, streams = await fleet.run(saved(1, batch=2)), await fleet.run(streamed(2))
    async with connected(broker.url) as connection:
        await connection.jetstream().purge_stream("OBJ_ACOMFY_FILES")
    for output in (*result.images, *streams.images):
        with pytest.raises(acomfy.OutputMissing) as caught:
            await output.read()
        assert caught.value.node_id == "2"


async def test_a_cached_node_whose_file_is_gone_has_an_output_that_is_missing(
    fleet: Fleet, server: SimulatedServer
) -> None:
    first = await fleet.run(saved(1))
    for file in server.folders.paths["output"].rglob("*.png"):
        file.unlink()
    again = await fleet.run(saved(1))
    assert again.images[0].filename == first.images[0].filename
    with pytest.raises(acomfy.OutputMissing):
        await again.images[0].read()
    assert color_of(await first.images[0].read()) == 1


async def test_an_outcome_larger_than_a_message_comes_by_the_store(fleet: Fleet, server: SimulatedServer) -> None:
    async def shout(context: NodeContext) -> Any:
        return {"ui": {"text": ["x" * 3_000_000, "ü" * 10]}}

    server.add_node(Node("Shout", shout, output_node=True))
    result = await fleet.run({"1": {"class_type": "Shout", "inputs": {}}})
    assert [len(output.text or "") for output in result.texts] == [3_000_000, 10]
    job = await fleet.attach(result.prompt_id)
    assert [len(output.text or "") for output in (await job).texts] == [3_000_000, 10]


async def test_an_attached_job_knows_the_classes_and_titles_of_its_outputs(broker: LocalBroker, fleet: Fleet) -> None:
    graph = saved(7)
    graph["2"]["_meta"] = {"title": "The end"}
    result = await fleet.run(graph)
    async with quick_fleet(broker) as other:
        again = await (await other.attach(result.prompt_id))
        assert [about(output) for output in again] == [about(output) for output in result]
        assert again.images[0].title == "The end"
        assert color_of(await again.images[0].read()) == 7


async def test_files_that_were_left_on_their_server_are_read_from_there(
    broker: LocalBroker, server: SimulatedServer
) -> None:
    door = Doorkeeper(server.port, {"Authorization": "Bearer s3cret-door"})
    runner = web.ServerRunner(web.Server(door.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with working(broker, server, results="server") as worker:
            worker._stations[0].address = url
            async with quick_fleet(broker, client_options={"token": "s3cret-door"}) as fleet:
                result = await fleet.run(saved(0x445566))
                assert color_of(await result.images[0].read()) == 0x445566
                assert (await result.images[0].image()).size == (64, 64)
                assert color_of(await (await fleet.run(streamed(3))).images[0].read()) == 3
            async with quick_fleet(broker) as fleet:
                job = await fleet.attach(result.prompt_id)
                assert job.server == url
                with pytest.raises(acomfy.AuthenticationError):
                    await (await job).images[0].read()
        assert await messages_in(broker, "OBJ_ACOMFY_FILES") == 2  # one chunk and one record of what was streamed
    finally:
        await runner.cleanup()


# --- Errors ----------------------------------------------------------------------------------------------------------


async def test_typed_errors_survive_the_trip(fleet: Fleet, client: acomfy.Client, server: SimulatedServer) -> None:
    async def fail(context: NodeContext, kind: str) -> Any:
        if kind == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        raise ValueError("no such thing: ü")

    server.add_node(Node("Fail", fail, required={"kind": ("STRING", {})}, output_node=True))
    bad = {"class_type": "SaveImage", "inputs": {"filename_prefix": ["3", 4]}, "_meta": {"title": "Bad"}}
    for graph in (
        {"7": {"class_type": "Fail", "inputs": {"kind": "value"}}},
        {"7": {"class_type": "Fail", "inputs": {"kind": "memory"}}},
        {"3": bad},
        saved(1) | {"1": {"class_type": "EmptyImage", "inputs": {"width": -1, "height": "x"}}},
    ):
        errors = []
        for way in (fleet, client):
            with pytest.raises(acomfy.AcomfyError) as caught:
                await way.run(graph)
            errors.append(caught.value)
        mine, other = errors
        assert type(mine) is type(other)
        hidden = ("prompt_id",)
        ours, theirs = ({k: v for k, v in vars(error).items() if k not in hidden} for error in errors)
        assert ours == theirs
        assert str(mine).replace(str(getattr(mine, "prompt_id", "")), "") == str(other).replace(
            str(getattr(other, "prompt_id", "")), ""
        )


async def test_a_prompt_that_somebody_else_stops_is_interrupted(
    fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    job = await fleet.submit(gated("a"))
    await gates.reached["a"].wait()
    server.interrupt()
    with pytest.raises(acomfy.JobInterrupted) as caught:
        await job
    assert not isinstance(caught.value, acomfy.JobCancelled)
    assert (caught.value.prompt_id, job.state) == (job.prompt_id, "cancelled")


# --- Input files -----------------------------------------------------------------------------------------------------


async def test_whatever_a_picture_is_given_as_it_is_that_picture(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    expected = Image.open(path).convert("RGB").tobytes()
    array = numpy.full((8, 8, 3), (0x33, 0x66, 0x99), dtype=numpy.uint8)
    with path.open("rb") as file:
        for given in (
            *(path, png(), bytearray(png()), memoryview(png()), io.BytesIO(png()), Image.open(io.BytesIO(png()))),
            *(array, array / 255.0, file, Masked(path, Image.new("L", (8, 8)))),
        ):
            assert await pixels(await fleet.run(loaded(given))) == expected, type(given)


async def test_what_is_edited_after_the_call_is_sent_as_it_was(fleet: Fleet) -> None:
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    graph = loaded(image)
    running = fleet.run(graph)
    image.paste((9, 9, 9), (0, 0, 8, 8))
    graph["2"]["class_type"] = "Nothing"
    assert await pixels(await running) == bytes((1, 2, 3)) * 64


async def test_an_output_of_the_fleet_or_of_any_server_is_an_input(fleet: Fleet, client: acomfy.Client) -> None:
    async with SimulatedServer() as other, acomfy.Client(other.url) as elsewhere:
        first = await fleet.run(saved(0x010203, size=8))
        second = await fleet.run(streamed(0x010203, size=8))
        third = await elsewhere.run(saved(0x010203, size=8))
        fourth = await client.run(saved(0x010203, size=8))
        for output in (first.images[0], second.images[0], third.images[0], fourth.images[0]):
            assert await pixels(await fleet.run(loaded(output))) == bytes((1, 2, 3)) * 64
        assert await pixels(await elsewhere.run(loaded(first.images[0]))) == bytes((1, 2, 3)) * 64


async def test_fifty_prompts_with_one_picture_store_it_once(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(size=64))
    async for job in fleet.map((loaded(path if n % 2 else png(size=64)) for n in range(50)), limit=50):
        await job
    assert await messages_in(broker, "OBJ_ACOMFY_INPUTS") == 2  # one chunk, and the record of one file
    assert len(server.uploads) == 1


async def test_a_file_that_is_not_there_is_told_by_the_call_itself(broker: LocalBroker, tmp_path: Path) -> None:
    async with quick_fleet(broker) as fleet:
        for submit in (fleet.run, fleet.submit):
            with pytest.raises(acomfy.WorkflowError, match=r"missing\.png") as caught:
                submit(loaded(tmp_path / "missing.png"))
            assert (caught.value.node_id, caught.value.input_name) == ("1", "image")
        path = tmp_path / "soon.png"
        path.write_bytes(png())
        running = fleet.run(loaded(path))
        path.unlink()
        with pytest.raises(acomfy.WorkflowError, match=r"soon\.png"):
            await running
        await emptied(fleet)
        assert not fleet.jobs


async def test_a_run_that_is_cancelled_while_its_file_is_stored_leaves_nothing_in_the_queue(
    broker: LocalBroker, tmp_path: Path
) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(200 << 20)
    async with quick_fleet(broker) as fleet:
        await fleet.wait_ready()
        running = asyncio.create_task(fleet.run(loaded(path)))
        await eventually(lambda: any(job.uploading for job in fleet.jobs))
        (job,) = fleet.jobs
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: not fleet.jobs)
        assert (job.state, job.seq) == ("cancelled", 0)
        await emptied(fleet)


async def test_a_workflow_larger_than_a_message_goes_by_the_store(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    graph = saved(5)
    graph["9"] = {"class_type": "PreviewAny", "inputs": {"source": "long " * 300_000}}
    first, second = await asyncio.gather(fleet.run(graph), fleet.run(graph))
    assert color_of(await first.images[0].read()) == color_of(await second.images[0].read()) == 5
    assert len(first.texts[0].text or "") == 1_500_000
    assert [len(json.dumps(body["prompt"])) > 1 << 20 for body in server.prompts] == [True, True]


@asynccontextmanager
async def small_messages() -> AsyncIterator[LocalBroker]:
    async with LocalBroker(config="max_payload: 64KB") as broker:
        yield broker


async def test_a_broker_with_small_messages_takes_everything_too(server: SimulatedServer) -> None:
    async with small_messages() as broker, working(broker, server), quick_fleet(broker) as fleet:
        graph = loaded(png(size=300))
        graph["9"] = {"class_type": "PreviewAny", "inputs": {"source": "long " * 30_000}}
        result = await fleet.run(graph)
        assert len(result.texts[0].text or "") == 150_000
        assert (await result.images[0].image()).size == (300, 300)
        job = await fleet.submit(saved(1, size=1500))
        async with asyncio.timeout(5000 * MS):
            assert (await (await job).images[0].image()).size == (1500, 1500)
