"""The FastAPI example, run by uvicorn on a port, asked by a browser's means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest
import uvicorn

import acomfy
from acomfy.examples import service
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .shell import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[str]:
    config = uvicorn.Config(service.application(url), port=0, log_level="error", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    task = asyncio.create_task(web.serve())
    await eventually(lambda: web.started)
    try:
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    finally:
        web.should_exit = True
        await task


@pytest.fixture
async def url(server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(service, "GRACE", 200 * MS)
    async with serving(server.url) as url:
        yield url


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def news_of(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


async def until_done(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yield the news of a single prompt, its end included."""
    async for news in news_of(answer):
        yield news
        if news["state"] not in ("pending", "in_progress"):
            return


async def test_a_picture_is_the_answer(url: str, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{url}/run", json={"text": "a fox", "seed": 5}) as answer:
        assert (answer.status, answer.content_type) == (200, "image/png")
        assert (await answer.read()).startswith(b"\x89PNG")


async def test_a_browser_that_leaves_takes_its_prompt_along(
    server: SimulatedServer, url: str, http: aiohttp.ClientSession
) -> None:
    script = server.on("KSampler").waits_for(asyncio.Event())
    asking = asyncio.ensure_future(http.post(f"{url}/run", json={"text": "a fox"}))
    await server.wait_for(lambda: script.calls)
    asking.cancel()
    async with asyncio.timeout(5000 * MS):
        await server.wait_idle()
    assert server.ledger[server.prompts[0]["prompt_id"]].state == "cancelled"


async def test_one_stream_tells_of_eight_prompts(url: str, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{url}/events", params={"page": "p"}) as stream:
        wishes = [{"text": f"fox {number}", "page": "p"} for number in range(8)]
        answers = await asyncio.gather(*(http.post(f"{url}/prompts", json=wish) for wish in wishes))
        waiting = {(await answer.json())["prompt_id"] for answer in answers}
        previews = 0
        async for news in news_of(stream):
            previews += "preview" in news
            if "images" in news:
                async with http.get(url + news["images"][0]) as picture:
                    assert (await picture.read()).startswith(b"\x89PNG")
                waiting.discard(news["prompt_id"])
            if not waiting:
                break
        assert previews


async def test_what_fails_is_told(server: SimulatedServer, url: str, http: aiohttp.ClientSession) -> None:
    server.on("KSampler").fails_with("out of luck")
    async with http.post(f"{url}/run", json={"text": "a fox"}) as answer:
        assert answer.status == 422 and "out of luck" in (await answer.json())["detail"]
    async with http.get(f"{url}/events", params={"page": "p"}) as stream:
        await http.post(f"{url}/prompts", json={"text": "a fox", "page": "p"})
        async for news in news_of(stream):
            if "error" in news:
                assert news["state"] == "failed" and "out of luck" in news["error"]
                break


async def test_a_page_that_leaves_takes_its_prompts_along_but_not_others(
    server: SimulatedServer, url: str, http: aiohttp.ClientSession
) -> None:
    event = asyncio.Event()
    script = server.on("KSampler").waits_for(event)
    async with http.get(f"{url}/events", params={"page": "stays"}) as stays:
        async with http.get(f"{url}/events", params={"page": "leaves"}):
            for page in ("leaves", "stays", "leaves"):
                await http.post(f"{url}/prompts", json={"text": page, "page": page})
            await server.wait_for(lambda: script.calls)
        async with asyncio.timeout(5000 * MS):
            await server.wait_for(lambda: len(server.queue) == 1)
        event.set()
        async for news in news_of(stays):
            if "images" in news:
                break
    states = [server.ledger[body["prompt_id"]].state for body in server.prompts]
    assert states == ["cancelled", "completed", "deleted"]


async def test_a_page_that_comes_back_keeps_its_prompts_and_hears_how_they_are(
    server: SimulatedServer, url: str, http: aiohttp.ClientSession
) -> None:
    event = asyncio.Event()
    script = server.on("KSampler").waits_for(event)
    async with http.get(f"{url}/events", params={"page": "p"}):
        await http.post(f"{url}/prompts", json={"text": "a fox", "page": "p"})
        await server.wait_for(lambda: script.calls)
    async with http.get(f"{url}/events", params={"page": "p"}) as stream:
        states = []
        async for news in news_of(stream):
            states.append(news["state"])
            event.set()
            if "images" in news:
                break
    assert (states[0], states[-1]) == ("in_progress", "completed")


async def test_a_socket_tells_of_several_prompts_by_tag(url: str, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(f"{url}/socket") as socket:
        for tag in ("a", "b"):
            await socket.send_json({"text": "a fox", "tag": tag})
        tags: set[str] = set()
        ended: set[str] = set()
        while len(ended) < 2 or len(tags) < 2:
            news = await socket.receive_json()
            if "tag" in news:
                tags.add(news["tag"])
            elif "images" in news:
                ended.add(news["prompt_id"])
        assert tags == {"a", "b"}


async def test_a_socket_that_goes_takes_its_prompts_along(
    server: SimulatedServer, url: str, http: aiohttp.ClientSession
) -> None:
    script = server.on("KSampler").waits_for(asyncio.Event())
    async with http.ws_connect(f"{url}/socket") as socket:
        await socket.send_json({"text": "a fox"})
        await server.wait_for(lambda: script.calls)
    async with asyncio.timeout(5000 * MS):
        await server.wait_idle()


@pytest.mark.parametrize("nonsense", [b"bytes", b'{"no": "text"}', b"no JSON", b"[]"])
async def test_nonsense_closes_the_socket(url: str, http: aiohttp.ClientSession, nonsense: bytes) -> None:
    async with http.ws_connect(f"{url}/socket") as socket:
        await (socket.send_bytes(nonsense) if nonsense == b"bytes" else socket.send_str(nonsense.decode()))
        message = await socket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1003)


async def test_what_comfyui_refuses_is_told(url: str, http: aiohttp.ClientSession) -> None:
    for route in ("run", "prompts"):
        async with http.post(f"{url}/{route}", json={"text": "a fox", "seed": -5}) as answer:
            assert answer.status == 422 and "'seed'" in (await answer.json())["detail"]
    async with http.ws_connect(f"{url}/socket") as socket:
        await socket.send_json({"text": "a fox", "seed": -5, "tag": "a"})
        assert "'seed'" in (await socket.receive_json())["error"]


async def test_a_stream_that_is_dead_without_knowing_it_takes_no_news_from_the_next(
    server: SimulatedServer, url: str, http: aiohttp.ClientSession
) -> None:
    event = asyncio.Event()
    script = server.on("KSampler").waits_for(event)
    async with http.get(f"{url}/events", params={"page": "p"}) as old:
        await http.post(f"{url}/prompts", json={"text": "a fox", "page": "p"})
        await server.wait_for(lambda: script.calls)
        async with http.get(f"{url}/events", params={"page": "p"}) as new:
            event.set()
            for stream in (old, new):
                assert [news async for news in until_done(stream)][-1]["images"]


async def test_a_picture_that_is_not_there_is_a_404(url: str, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{url}/prompts/nobody/images/0") as answer:
        assert answer.status == 404


async def test_the_page_is_served(url: str, http: aiohttp.ClientSession) -> None:
    async with http.get(url) as answer:
        assert answer.content_type == "text/html" and "EventSource" in await answer.text()


async def test_a_server_that_is_not_there_is_a_503(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acomfy, "Client", partial(acomfy.Client, connect_timeout=100 * MS))
    async with serving("http://127.0.0.1:9") as url, http.post(f"{url}/run", json={"text": "a fox"}) as answer:
        assert answer.status == 503
