"""The main job against a real ComfyUI: ``ACOMFY_SERVER=http://127.0.0.1:8188 pytest -m live``.

Only nodes that every ComfyUI has are used, and SaveImageWebsocket, which comes with it. Nothing is deleted there.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator

import pytest

import acomfy

from ..graphs import color_of, saved, streamed

pytestmark = [pytest.mark.anyio, pytest.mark.live]


@pytest.fixture
async def client() -> AsyncIterator[acomfy.Client]:
    async with acomfy.Client(os.environ["ACOMFY_SERVER"]) as client:
        await client.wait_ready()
        yield client


def fresh_color() -> int:
    """A colour that no earlier run left in the server's cache."""
    return random.randrange(1 << 24)


async def test_saved_images(client: acomfy.Client) -> None:
    color = fresh_color()
    result = await client.run(saved(color, batch=3))
    assert [color_of(await output.read()) for output in result.images] == [color] * 3
    image = await result.images[0].image()
    assert json.loads(image.info["prompt"])["1"]["inputs"]["color"] == color


async def test_streamed_images(client: acomfy.Client) -> None:
    color = fresh_color()
    result = await client.run(streamed(color, batch=3))
    assert [color_of(await output.read()) for output in result.images] == [color] * 3


async def test_a_streamed_image_of_4096_by_4096(client: acomfy.Client) -> None:
    result = await client.run(streamed(fresh_color(), size=4096))
    assert (await result.images[0].image()).size == (4096, 4096)


async def test_a_hundred_prompts_at_once_both_ways(client: acomfy.Client) -> None:
    colors = random.sample(range(1 << 24), 50)
    calls = [client.run(call(color, batch=2)) for color in colors for call in (saved, streamed)]
    results = await asyncio.gather(*calls)
    for index, result in enumerate(results):
        assert [color_of(await output.read()) for output in result.images] == [colors[index // 2]] * 2


async def test_a_cached_prompt(client: acomfy.Client) -> None:
    color = fresh_color()
    first = await client.run(saved(color))
    second = await client.run(saved(color))
    assert second.images == first.images
    assert set(second.cached_nodes or ()) == {"1", "2"}


async def test_two_clients_and_a_stranger_without_a_client_id(client: acomfy.Client) -> None:
    colors = random.sample(range(1 << 24), 20)
    async with acomfy.Client(os.environ["ACOMFY_SERVER"]) as other:
        await other.wait_ready()
        calls = []
        for color in colors:
            await client.api.post_prompt(json.dumps({"prompt": streamed(fresh_color())}).encode())
            calls += [asyncio.create_task(one.run(streamed(color, batch=2))) for one in (client, other)]
        for index, call in enumerate(calls):
            images = (await call).images
            assert [color_of(await output.read()) for output in images] == [colors[index // 2]] * 2


async def test_cancelled_runs_leave_nothing_on_the_server(client: acomfy.Client) -> None:
    tasks = [asyncio.create_task(client.run(saved(fresh_color(), size=512, batch=4))) for _ in range(20)]
    await asyncio.sleep(0)
    ids = [job.prompt_id for job in client.jobs]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(10):
        while client.jobs:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.01)
    queue = json.dumps(await client.api.get_queue())
    assert not any(prompt_id in queue for prompt_id in ids)


async def test_attach_to_a_finished_prompt(client: acomfy.Client) -> None:
    color = fresh_color()
    job = await client.submit(saved(color))
    await job
    async with acomfy.Client(os.environ["ACOMFY_SERVER"]) as other:
        result = await (await other.attach(job.prompt_id))
        assert color_of(await result.images[0].read()) == color


async def test_what_the_server_refuses(client: acomfy.Client) -> None:
    graph = saved()
    graph["1"]["inputs"]["width"] = -5
    with pytest.raises(acomfy.PromptRejected) as caught:
        await client.run(graph)
    assert [(problem.node_id, problem.input_name) for problem in caught.value.problems] == [("1", "width")]


async def test_events_and_progress(client: acomfy.Client) -> None:
    job = await client.submit(saved(fresh_color(), size=256, batch=8))
    events = [event async for event in job.events()]
    assert isinstance(events[-1], acomfy.ExecutionSuccess)
    assert job.progress == 1.0
