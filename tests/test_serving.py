"""The simulator in other places: an aiohttp application, a far network, the command line."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
from aiohttp import web
from typer.testing import CliRunner

import acomfy
from acomfy.cli.app import app
from acomfy.cli.arguments import UsageError
from acomfy.cli.serve import switch_on
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .graphs import sampled, saved, streamed

pytestmark = pytest.mark.anyio


async def test_it_lives_under_a_path_of_an_application_and_starts_and_stops_with_it() -> None:
    server, application = SimulatedServer(), web.Application()
    server.mount(application, "/comfy/")

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    application.router.add_get("/", hello)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with acomfy.Client(url + server.url) as client:
        assert len((await client.run(sampled())).images) == 1
        assert len((await client.run(streamed())).images) == 1
        assert server.requests["POST", "/prompt"] == 2
        with server.faults.refuse_as_too_large(), pytest.raises(acomfy.PayloadTooLarge):
            await client.run(saved())
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert await answer.text() == "hello"
    await runner.cleanup()
    assert server.folders.paths["output"].exists() is False


async def test_latency_delays_answers_and_messages_and_keeps_their_order() -> None:
    delay = 40 * MS
    async with SimulatedServer(latency=delay) as server, acomfy.Client(server.url) as client:
        await client.wait_ready()
        begin = time.monotonic()
        job = await client.submit(sampled())
        events = [type(event).__name__ async for event in job.events()]
        assert time.monotonic() - begin >= 2 * delay
        assert (events[0], events[-1]) == ("ExecutionStart", "ExecutionSuccess")
        await job
        await server.flush()


def test_faults_are_switched_on_by_name() -> None:
    async def faulty() -> None:
        server = SimulatedServer()
        switch_on(server, ["delay-history=0.25", "skip-success", "cut-downloads=7"])
        assert server.faults.history_delay == 0.25
        assert len(server.sockets.changes) == 1

    asyncio.run(faulty())


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("nope", "is none of: answer-as-booting"),
        ("kill-worker", "is none of"),
        ("delay-history", "write it as delay-history=SECONDS"),
        ("delay-history=soon", "'soon' is no number"),
        ("freeze=1", "write it as freeze"),
    ],
)
def test_a_fault_that_is_none_is_a_usage_error(fault: str, says: str) -> None:
    async def faulty() -> None:
        with pytest.raises(UsageError, match=says):
            switch_on(SimulatedServer(), [fault])

    asyncio.run(faulty())


def test_serve_lists_its_faults() -> None:
    said = CliRunner().invoke(app, ["serve", "--fault", "list"])
    assert said.exit_code == 0
    assert "cut-downloads=AFTER" in said.output and "stall-delivery " in said.output
