"""What `SimulatedServer.on` makes nodes do, and the clock that makes hours pass at once."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import acomfy
from acomfy.simulator import Interrupted, OutOfMemoryError, SimulatedServer, VirtualClock

from .shell import eventually

pytestmark = pytest.mark.anyio


def graph(seed: int = 0, steps: int = 20) -> dict[str, Any]:
    sampler = {"seed": seed, "steps": steps, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    checkpoint = "sd_xl_base_1.0.safetensors"
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["1", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 16, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {**sampler, **links}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "x"}},
    }


def red_png(width: int = 24, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def server(clock: VirtualClock) -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer(clock=clock) as server:
        yield server


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[acomfy.Client]:
    async with acomfy.Client(server.url) as client:
        yield client


# --- Answers -------------------------------------------------------------------------------------------------------


async def test_a_node_fails_as_it_is_told_to(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("KSampler").fails_with(ValueError("no such sampler"))
    with pytest.raises(acomfy.JobFailed, match="no such sampler") as caught:
        await client.run(graph())
    assert (caught.value.node_id, caught.value.exception_type) == ("4", "ValueError")


async def test_an_error_may_be_a_text_or_torchs_own(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("VAEDecode").fails_with(OutOfMemoryError("the GPU is full"))
    server.on("KSampler").once().fails_with("once only")
    with pytest.raises(acomfy.JobFailed, match="once only"):
        await client.run(graph())
    with pytest.raises(acomfy.OutOfMemory):
        await client.run(graph())


async def test_an_interrupt_looks_like_somebody_elses(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("KSampler").fails_with(Interrupted())
    with pytest.raises(acomfy.JobInterrupted):
        await client.run(graph())


async def test_a_script_answers_so_many_times_and_then_the_class_does(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    script = server.on("KSampler").times(2).fails_with("busy")
    for _ in range(2):
        with pytest.raises(acomfy.JobFailed):
            await client.run(graph())
    assert len((await client.run(graph())).images) == 1
    assert len(script.calls) == 2


async def test_a_script_answers_where_its_inputs_fit(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("KSampler").where(seed=3).fails_with("unlucky")
    await client.run(graph(seed=2))
    with pytest.raises(acomfy.JobFailed, match="unlucky"):
        await client.run(graph(seed=3))


async def test_the_last_script_goes_first(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("KSampler").fails_with("first")
    server.on("KSampler").once().fails_with("second")
    with pytest.raises(acomfy.JobFailed, match="second"):
        await client.run(graph())
    with pytest.raises(acomfy.JobFailed, match="first"):
        await client.run(graph())


async def test_a_script_is_asked_although_the_cache_knows_the_node(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    await client.run(graph())
    server.on("KSampler").fails_with("not from the cache")
    with pytest.raises(acomfy.JobFailed, match="not from the cache"):
        await client.run(graph())


@pytest.mark.parametrize("class_type", ["KSampler", "VAEDecode", "SaveImage"])
async def test_a_picture_comes_out_wherever_it_is_put_in(
    server: SimulatedServer, client: acomfy.Client, class_type: str
) -> None:
    server.on(class_type).returns(red_png())
    image = await (await client.run(graph())).images[0].image()
    assert image.size == (24, 8)
    assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


async def test_a_picture_may_be_a_path_or_a_batch(
    server: SimulatedServer, client: acomfy.Client, tmp_path: Path
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(red_png())
    server.on("VAEDecode").returns([path, Image.new("RGB", (24, 8), "blue")])
    images = [await output.image() for output in (await client.run(graph())).images]
    assert [image.convert("RGB").getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)]


async def test_values_must_be_as_many_as_the_outputs(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("CheckpointLoaderSimple").returns("only one")
    with pytest.raises(acomfy.JobFailed, match="has 3 outputs"):
        await client.run(graph())


async def test_a_file_of_any_kind_is_saved_as_it_is(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("SaveImage").saves(b"an mp4", "clip.mp4", "gifs")
    first, second = await client.run(graph()), await client.run(graph())
    assert [output.filename for output in (*first.videos, *second.videos)] == ["clip.mp4", "clip_2.mp4"]
    assert await second.videos[0].read() == b"an mp4"


async def test_what_is_saved_has_a_bare_name(server: SimulatedServer) -> None:
    with pytest.raises(ValueError, match="bare"):
        server.on("SaveImage").saves(b"", "../clip.mp4")


async def test_text_is_shown_beside_the_pictures(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("SaveImage").shows(text=["a caption"])
    result = await client.run(graph())
    assert (len(result.images), [output.text for output in result.texts]) == (1, ["a caption"])


async def test_a_blocked_branch_gives_nothing(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("VAEDecode").blocks()
    assert len(await client.run(graph())) == 0


async def test_a_node_waits_for_an_event_and_can_be_interrupted(server: SimulatedServer, client: acomfy.Client) -> None:
    event = asyncio.Event()
    script = server.on("KSampler").waits_for(event)
    job = await client.submit(graph())
    await server.wait_for(lambda: script.calls)
    assert await job.cancel()
    event.set()
    assert len(await client.run(graph())) == 1


async def test_a_class_that_is_not_there_is_told_with_its_neighbour(server: SimulatedServer) -> None:
    with pytest.raises(ValueError, match="did you mean 'KSampler'"):
        server.on("KSamper")


async def test_a_class_of_ones_own_takes_five_lines(server: SimulatedServer, client: acomfy.Client) -> None:
    @server.node("Shout", required={"text": ("STRING",)}, output_node=True)
    def shout(context: Any, text: str) -> Any:
        server.on("Shout").shows(text=["later"])
        return None

    await client.run({"1": {"class_type": "Shout", "inputs": {"text": "hello"}}})
    result = await client.run({"1": {"class_type": "Shout", "inputs": {"text": "hello"}}})
    assert [output.text for output in result.texts] == ["later"]


# --- Time ----------------------------------------------------------------------------------------------------------


async def test_half_an_hour_is_over_at_once(
    server: SimulatedServer, client: acomfy.Client, clock: VirtualClock
) -> None:
    server.on("KSampler").takes(27 * 60)
    result = await client.run(graph())
    assert clock.now() == pytest.approx(27 * 60)
    history = await client.api.get_history(result.prompt_id)
    assert history is not None
    times = {name: data["timestamp"] for name, data in history["status"]["messages"]}
    assert times["execution_success"] - times["execution_start"] == pytest.approx(27 * 60_000, abs=2)


async def test_a_held_clock_stands_in_the_thirteenth_minute(
    server: SimulatedServer, client: acomfy.Client, clock: VirtualClock
) -> None:
    server.on("KSampler").takes(27 * 60)
    clock.hold()
    job = await client.submit(graph(steps=27))
    steps = _steps_told(job)
    await clock.advance(13 * 60 + 1)
    assert [await anext(steps) for _ in range(13)] == list(range(1, 14))
    assert not job.done()
    await clock.advance(14 * 60)
    await job
    assert clock.now() == 27 * 60 + 1
    assert [step async for step in steps] == list(range(14, 28))


async def _steps_told(job: acomfy.Job) -> AsyncIterator[float]:
    """Yield the sampler's steps, each once, and one more for each that is told."""
    last = 0
    async for event in job.events():
        if isinstance(event, acomfy.Progress):
            while last < event.value:
                yield (last := last + 1)


async def test_nodes_of_two_prompts_sleep_one_after_the_other(
    server: SimulatedServer, client: acomfy.Client, clock: VirtualClock
) -> None:
    server.on("VAEDecode").takes(60)
    await asyncio.gather(client.run(graph(1)), client.run(graph(2)))
    assert clock.now() == pytest.approx(120)


async def test_a_failure_may_take_its_time(server: SimulatedServer, client: acomfy.Client, clock: VirtualClock) -> None:
    server.on("KSampler").takes(90).fails_with("late")
    with pytest.raises(acomfy.JobFailed, match="late"):
        await client.run(graph())
    assert clock.now() == pytest.approx(90)


async def test_two_servers_share_a_clock(clock: VirtualClock) -> None:
    async with SimulatedServer(clock=clock) as one, SimulatedServer(clock=clock) as other:
        for server, seconds in ((one, 10), (other, 30)):
            server.on("KSampler").takes(seconds)
        async with acomfy.Client(one.url) as first, acomfy.Client(other.url) as second:
            clock.hold()
            jobs = [await first.submit(graph(steps=1)), await second.submit(graph(steps=1))]
            await clock.advance(20)
            await eventually(jobs[0].done)
            assert not jobs[1].done()
            clock.release()
            await jobs[1]
    assert clock.now() == 30


async def test_a_sleeper_that_is_cancelled_takes_no_time(clock: VirtualClock) -> None:
    sleeping = asyncio.ensure_future(clock.sleep(1000))
    clock.hold()
    await asyncio.sleep(0)
    sleeping.cancel()
    await asyncio.wait([sleeping])
    clock.release()
    await clock.sleep(5)
    assert clock.now() == 5


async def test_a_job_is_cancelled_while_time_stands_still(
    server: SimulatedServer, client: acomfy.Client, clock: VirtualClock
) -> None:
    server.on("KSampler").takes(27 * 60)
    clock.hold()
    job, next_one = await client.submit(graph(1)), await client.submit(graph(2))
    await clock.advance(13 * 60)
    assert await job.cancel()
    assert (job.state, clock.now()) == ("cancelled", 13 * 60)
    await clock.advance(1)
    assert next_one.state == "in_progress"
    clock.release()
    await next_one


# --- Mistakes in tests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "error", "told"),
    [
        (lambda script: script.where(sed=5), ValueError, "KSampler has no input 'sed'; did you mean 'seed'"),
        (lambda script: script.where(zzz=5), ValueError, "it has model, seed, steps"),
        (lambda script: script.takes(-1), ValueError, "-1 seconds"),
        (lambda script: script.takes("a while"), TypeError, "not supported between"),
        (lambda script: script.times(-1), ValueError, "not negative"),
        (lambda script: script.fails_with(5), TypeError, "an exception or a text, not 5"),
        (lambda script: script.fails_with(int), TypeError, "an exception or a text"),
    ],
)
async def test_a_script_that_cannot_be_meant_is_refused_at_once(
    server: SimulatedServer, mistake: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        mistake(server.on("KSampler"))


async def test_time_does_not_run_backwards(clock: VirtualClock) -> None:
    with pytest.raises(ValueError, match="backwards"):
        await clock.advance(-1)


@pytest.mark.parametrize(
    ("declared", "function", "told"),
    [
        ({"required": {"text": "STRING"}}, lambda context, text: None, r"'text' of Odd is declared as \('STRING',\)"),
        ({"outputs": "IMAGE"}, lambda context: None, r"outputs of Odd are \('IMAGE',\)"),
        ({"required": {"text": ("STRING",)}}, lambda text: None, r"called with \(context, text\), by name"),
        ({"optional": {"text": ("STRING",)}}, lambda context: None, r"called with \(context, text\), by name"),
        ({"optional": {"text": ("STRING",)}}, lambda context, text: None, r"called with \(context\), by name"),
    ],
)
async def test_a_node_class_that_could_never_run_is_refused_at_once(
    server: SimulatedServer, declared: dict[str, Any], function: Any, told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        server.node("Odd", **declared)(function)


async def test_a_function_may_answer_as_comfyuis_own_nodes_do(server: SimulatedServer, client: acomfy.Client) -> None:
    @server.node("Measure", required={"text": ("STRING",)}, outputs=("STRING",), output_node=True)
    def measure(context: Any, text: str) -> Any:
        return {"ui": {"text": [f"{len(text)} letters"]}, "result": (text.upper(),)}

    @server.node("Repeat", required={"text": ("STRING",)}, output_node=True)
    def repeat(context: Any, text: str) -> Any:
        return {"ui": {"text": [text]}}

    nodes = {
        "1": {"class_type": "Measure", "inputs": {"text": "fox"}},
        "2": {"class_type": "Repeat", "inputs": {"text": ["1", 0]}},
    }
    result = await client.run(nodes)
    assert [text.text for text in result.texts] == ["3 letters", "FOX"]
