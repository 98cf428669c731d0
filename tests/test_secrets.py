"""No secret comes out: canaries are planted wherever credentials can be, and all that comes out is searched."""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

import acomfy
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .front_door import Doorkeeper, ForwardProxy
from .graphs import saved, streamed
from .other_servers import HTML, answering, respond, saying
from .shell import Gates, gates, quick_delays, server

pytestmark = pytest.mark.anyio

__all__ = ["Gates", "gates", "server"]

CANARY = "can&ry/7f3a9d"
CANARIES = (CANARY, "7f3a9d", quote(CANARY, safe=""))


def forms(text: str) -> set[str]:
    """Give what base64 makes of a canary, at whatever place of the encoded text it stands."""
    cores = []
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + text.encode()).decode().rstrip("=")
        cores.append(encoded[4 if shift else 0 : -2])
    return set(cores)


EVERY_FORM = {*CANARIES, *forms("7f3a9d")}


def secret_options(**more: Any) -> dict[str, Any]:
    """Plant a canary in every place that does not exclude another."""
    return {
        "headers": {"X-Key": CANARY, "Cookie": f"hand={CANARY.replace('&', '+')}"},
        "cookies": {"sid": CANARY},
        "params": {"token": CANARY},
        "api_key_comfy_org": CANARY,
        **more,
    }


def ways_in() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the user part of the address, and options: each kind of credential that excludes the others."""
    yield f"user:{quote(CANARY, safe='')}@", secret_options()
    yield "", secret_options(auth=("user", CANARY))
    yield "", secret_options(token=CANARY)
    yield "", secret_options(token=lambda: CANARY)
    yield "", secret_options(headers={"Authorization": f"Bearer {CANARY}"})


def text_of(exc: BaseException | None) -> str:
    """Give all that an exception tells: itself, its attributes, its pickle, its causes, and their tracebacks."""
    text = ""
    while exc is not None:
        text += "".join(traceback.format_exception(exc)) + repr(exc) + repr(exc.args) + repr(vars(exc))
        if isinstance(exc, acomfy.AcomfyError):
            text += repr(pickle.dumps(exc))
        exc = exc.__cause__ or exc.__context__
    return text


def assert_clean(text: str) -> None:
    for form in EVERY_FORM:
        place = text.find(form)
        assert place < 0, text[max(0, place - 200) : place + 100]


def saved_bytes(directory: Path) -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def all_that_fails(url: str, options: dict[str, Any]) -> list[BaseException]:
    """Use a client of a server in every way, and give the errors."""
    times: dict[str, Any] = {"connect_timeout": 30 * MS, "read_timeout": 30 * MS, "cancel_timeout": 10 * MS}
    found: list[BaseException] = []
    retry = acomfy.RetryPolicy(tries=2, first_delay=0.0)
    async with acomfy.Client(url, reconnect_delays=quick_delays, retry=retry, **times, **options) as client:

        async def outcome(call: Callable[[], Awaitable[object]]) -> None:
            try:
                async with asyncio.timeout(150 * MS):
                    await call()
            except (acomfy.AcomfyError, TimeoutError) as exc:
                found.append(exc)

        async def view() -> None:
            async with client.api.view("a.png") as response:
                await response.read()

        things = [client, client.api, client._transport, client._transport._access, client._sessions]
        logging.getLogger("acomfy").info("%r", things)
        calls = (client.api.get_queue, client.api.get_features, client.api.get_object_info, client._open_socket, view)
        await asyncio.gather(
            *map(outcome, calls),
            *map(outcome, (lambda: client.run(saved()), lambda: client.run(streamed()))),
            *map(outcome, (lambda: client.attach("no-such"), lambda: client.api.post_prompt(b"{}"))),
        )
        if (refusal := client._connection.refusal) is not None:
            found.append(refusal)
    return found


async def echo(request: web.BaseRequest) -> web.Response:
    """Tell everything that was sent, as a careless gateway does."""
    body = await request.text()
    told = f"{request.raw_path} {request.url} {dict(request.headers)} {body}"
    return web.Response(status=401 if request.path == "/ws" else 502, text=told, headers={"Location": str(request.url)})


async def echo_as_json(request: web.BaseRequest) -> web.Response:
    return web.Response(text=f"{dict(request.headers)} {request.url}", content_type="application/json")


FAULTS: dict[str, Callable[[], AbstractAsyncContextManager[str]]] = {
    "401": lambda: answering(respond(401, HTML)),
    "redirect": lambda: answering(respond(302, "", Location=f"/login?token={CANARY}")),
    "html": lambda: answering(respond(200, HTML)),
    "echo": lambda: answering(echo),
    "echo in json": lambda: answering(echo_as_json),
    "silent": lambda: saying(b"", then_wait=True),
    "cut": lambda: saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
    "nothing": lambda: saying(b""),
    "noise": lambda: saying(b"\x00\x01\x02" * 100),
    "headers": lambda: saying(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000),
    "wrong upgrade": lambda: saying(b"HTTP/1.1 101 Oh\r\nUpgrade: tea\r\n\r\n"),
}


@pytest.mark.parametrize("fault", [*FAULTS, "refused", "tls", "proxy refuses", "proxy is gone", "proxy tunnels not"])
async def test_no_failure_shows_a_secret(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    proxy_user = f"user:{quote(CANARY, safe='')}@"
    async with FAULTS.get(fault, lambda: saying(b""))() as url, ForwardProxy("never").running() as proxy:
        host = "127.0.0.1:9" if fault == "refused" else url.partition("//")[2]
        scheme = "https" if fault in ("tls", "proxy tunnels not") else "http"
        more: dict[str, Any] = {}
        if fault.startswith("proxy"):
            at = "127.0.0.1:9" if fault == "proxy is gone" else proxy.url.partition("//")[2]
            more = {"proxy": f"http://{proxy_user}{at}"}
        users = list(ways_in())
        found = await asyncio.gather(
            *(all_that_fails(f"{scheme}://{user}{host}/p", {**options, **more}) for user, options in users)
        )
        for errors in found:
            assert len(errors) >= 8, errors
            for exc in errors:
                assert_clean(text_of(exc))
    assert_clean(caplog.text)
    assert host in caplog.text


async def test_a_session_of_the_callers_own_shows_no_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for fault in ("401", "redirect", "noise", "wrong upgrade", "silent"):
        async with FAULTS[fault]() as url, aiohttp.ClientSession(headers={"X-Own": CANARY}) as session:
            for exc in await all_that_fails(url, secret_options(session=session)):
                assert_clean(text_of(exc))
    assert_clean(caplog.text)


async def test_what_works_shows_and_saves_no_secret_either(
    server: SimulatedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    door = Doorkeeper(server.port, {"X-Key": CANARY})
    out: list[object] = []
    async with answering(door.handle) as url:
        for user, options in ways_in():
            options = {**options, "headers": {"X-Key": CANARY, **options["headers"]}}
            address = url.replace("//", f"//{user}")
            async with acomfy.Client(address, reconnect_delays=quick_delays, **options) as client:
                job = await client.submit(saved())
                result = await job
                out += [client, job, job.options, job.prompt, result, *result.outputs, *await result.save(tmp_path)]
                out += [await client.run(streamed()), client.jobs, client._live, client._connection, client._watch]
                with pytest.raises(acomfy.PromptRejected) as caught:
                    await client.run({"1": {"class_type": "NoSuchClass", "inputs": {}}})
                assert_clean(text_of(caught.value))
    assert {"/ws", "/prompt", "/view"} <= {path for path, _ in door.asked}
    assert_clean(caplog.text + "".join(map(repr, out)) + "".join(map(str, out)))
    assert saved_bytes(tmp_path)
    assert not any(form.encode() in saved_bytes(tmp_path) for form in EVERY_FORM)


@pytest.mark.parametrize("fault", ["401", "silent", "noise", "wrong upgrade"])
async def test_not_even_the_variables_in_a_traceback_show_a_header_or_an_account(fault: str) -> None:
    """Error trackers send the values of variables along. (The response itself shows its address, with its query.)"""
    async with FAULTS[fault]() as url:
        for _, options in list(ways_in())[1:]:
            options.pop("params")
            for exc in await all_that_fails(url, options):
                told = traceback.TracebackException.from_exception(exc, capture_locals=True)
                own = [
                    line
                    for frame in told.stack
                    if "/tests/" not in frame.filename
                    for line in (frame.locals or {}).items()
                ]
                assert_clean(repr(own))


async def test_the_variables_of_what_holds_credentials_show_none() -> None:
    """Debuggers and error trackers write them out: ``repr(vars(...))``."""
    for user, options in ways_in():
        proxy = f"http://user:{quote(CANARY, safe='')}@proxy"
        async with acomfy.Client(f"http://{user}host", proxy=proxy, **options) as client:
            for thing in (client, client._transport, client._transport._access, client._sessions, client._submission):
                assert_clean(repr(vars(thing)))


async def test_nothing_that_holds_credentials_is_pickled() -> None:
    async with acomfy.Client("http://user:secret@host") as client:
        for thing in (client, client.api, client._transport, client._sessions, client._submission):
            with pytest.raises(TypeError):
                pickle.dumps(thing)


def test_the_search_finds_what_it_looks_for() -> None:
    hidden = base64.b64encode(f"user:{CANARY}".encode()).decode()
    for text in (f"a {CANARY} b", quote(CANARY, safe=""), hidden, base64.b64encode(f"a:{CANARY}".encode()).decode()):
        with pytest.raises(AssertionError):
            assert_clean(text)
