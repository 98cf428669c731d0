"""What goes with requests: credentials of every kind, by HTTP and WebSocket alike, and to the server alone."""

from __future__ import annotations

import asyncio
import base64
import pickle
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import acomfy
from acomfy.access import Access
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .front_door import PEM, Doorkeeper, ForwardProxy, server_tls
from .graphs import color_of, saved, streamed
from .other_servers import answering, respond
from .shell import Gates, eventually, gates, quick_client, quick_delays, server

pytestmark = pytest.mark.anyio

__all__ = ["Gates", "gates", "server"]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def used_both_ways(url: str, **options: Any) -> None:
    """Run a prompt whose picture comes over the WebSocket, and read one by HTTP."""
    async with acomfy.Client(url, reconnect_delays=quick_delays, **options) as client, asyncio.timeout(10_000 * MS):
        assert len((await client.run(streamed())).images) == 1
        result = await client.run(saved(3))
        assert color_of(await result.images[0].read()) == 3


@asynccontextmanager
async def front_door(
    server: SimulatedServer, wanted: dict[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Any]:
    door = Doorkeeper(server.port, wanted or {})
    async with answering(door.handle, tls) as url:
        yield door, url
    assert {"/ws", "/prompt", "/view"} <= {path for path, _ in door.asked}


# --- Every kind of credentials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"auth": ("jo", "pä:ss wörd")}, {"Authorization": basic("jo", "pä:ss wörd")}),
        ({"token": "t0ken"}, {"Authorization": "Bearer t0ken"}),
        ({"headers": {"X-Api-Key": "k", "CF-Access": "v"}}, {"X-Api-Key": "k", "CF-Access": "v"}),
        ({"cookies": {"sid": "a=b/c+d==", "n": "2"}}, {"Cookie": "sid=a=b/c+d==; n=2"}),
        ({"cookies": {"n": "2"}, "headers": {"cookie": "a=1"}}, {"Cookie": "a=1; n=2"}),
    ],
    ids=["basic", "bearer", "headers", "cookies", "cookies in both places"],
)
async def test_credentials_go_with_every_request(
    server: SimulatedServer, options: dict[str, Any], wanted: dict[str, str]
) -> None:
    async with front_door(server, wanted) as (_, url):
        await used_both_ways(url, **options)


@pytest.mark.parametrize("in_address", [False, True])
async def test_query_parameters_go_with_every_request(server: SimulatedServer, in_address: bool) -> None:
    async with front_door(server) as (door, url):
        if in_address:
            await used_both_ways(f"{url}/?token=s+3%26c&x=1")
        else:
            await used_both_ways(url, params={"token": "s 3&c", "x": "1"})
    assert all((query["token"], query["x"]) == ("s 3&c", "1") for query in door.queries)
    assert any("filename" in query for query in door.queries)


async def test_a_cookie_that_the_server_sets_goes_with_the_websocket_too() -> None:
    asked: list[str | None] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.headers.get("Cookie"))
        response = web.json_response({"exec_info": {"queue_remaining": 0}})
        response.set_cookie("sticky", "worker-2")
        return response

    async with answering(handler) as url, acomfy.Client(url, cookies={"own": "1"}) as client:
        await client.api.get_prompt()
        asked.clear()
        with pytest.raises(acomfy.HTTPError):
            await client._open_socket()
    assert all(cookie is not None and set(cookie.split("; ")) == {"own=1", "sticky=worker-2"} for cookie in asked)


async def test_no_two_credentials_of_one_kind_are_taken() -> None:
    address = "http://jo:secret@host"
    for options in (
        {"auth": ("a", "secret")},
        {"token": "secret"},
        {"token": lambda: "secret"},
        {"headers": {"AUTHORIZATION": "secret"}},
    ):
        with pytest.raises(ValueError, match=r"the address and in .*give them once") as caught:
            acomfy.Client(address, **options)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"headers": {"X": "a\r\nInjected: secret"}}, ValueError),
        ({"headers": {"X Y": "secret"}}, ValueError),
        ({"headers": {"X": 5}}, TypeError),
        ({"token": "secret\n"}, ValueError),
        ({"token": 5}, TypeError),
        ({"auth": ("a:b", "secret")}, ValueError),
        ({"auth": ("a", 5)}, TypeError),
        ({"auth": "a:secret"}, TypeError),
        ({"headers": {"X": "1", "x": "secret"}}, ValueError),
        ({"headers": {"x-api-key": "1"}, "api_key": "secret", "profile": "cloud"}, ValueError),
        ({"cookies": {"a": "secret; b=2"}}, ValueError),
        ({"cookies": {"a b": "secret"}}, ValueError),
        ({"params": {"a": 5}}, TypeError),
        ({"proxy": "socks5://jo:secret@host:1"}, ValueError),
        ({"proxy": "http://jo:secret@[host"}, ValueError),
        ({"url": "http://jo:secret?x@host"}, ValueError),
        ({"url": "HTTP://jo:secret#\n@host:x"}, ValueError),
        ({"ssl": None}, TypeError),
        ({"ssl": "secret"}, TypeError),
        ({"api_key": "secret"}, ValueError),
        ({"profile": "clout"}, ValueError),
        ({"proxy": "http://host:1", "unix_socket": "/x"}, ValueError),
    ],
)
def test_what_cannot_be_used_is_refused_at_once_without_showing_it(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        acomfy.Client(**options)
    assert "secret" not in str(caught.value) + repr(caught.value.__context__) + repr(caught.value.__cause__)


def test_access_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Access("http://jo:secret@host"))


# --- Tokens that are renewed -----------------------------------------------------------------------------------------


class Tokens:
    """Gives tokens, and knows which of them is good."""

    def __init__(self) -> None:
        self.given = 0
        self.good = 1
        self.waits = False

    async def __call__(self) -> str:
        self.given += 1
        token = f"token-{self.given}"
        await asyncio.sleep(20 * MS if self.waits else 0)
        return token

    def admits(self, request: web.BaseRequest) -> bool:
        return request.headers.get("Authorization") == f"Bearer token-{self.good}"


async def test_a_token_is_got_before_the_first_request_and_renewed_on_401(server: SimulatedServer) -> None:
    tokens = Tokens()
    door = Doorkeeper(server.port, {}, tokens.admits)
    async with answering(door.handle) as url, acomfy.Client(url, token=tokens, reconnect_delays=quick_delays) as client:
        await client.run(streamed())
        assert tokens.given == 1
        tokens.good = 2
        await client.run(saved())
        assert tokens.given == 2
        tokens.good = 3
        client._connection.reopen("a test")
        await eventually(lambda: tokens.given == 3 and client._connection.live)
        assert len((await client.run(streamed(5))).images) == 1
    assert tokens.given == 3
    assert len(server.prompts) == 3


async def test_requests_that_are_refused_at_once_share_one_new_token(server: SimulatedServer) -> None:
    tokens = Tokens()
    tokens.waits = True
    door = Doorkeeper(server.port, {}, tokens.admits)
    async with answering(door.handle) as url, acomfy.Client(url, token=tokens) as client:
        await asyncio.gather(*(client.api.get_prompt() for _ in range(10)))
        tokens.good = 2
        await asyncio.gather(*(client.api.get_prompt() for _ in range(10)))
    assert tokens.given == 2


async def test_a_token_that_is_refused_twice_is_an_authentication_error() -> None:
    tokens = Tokens()
    async with answering(respond(401)) as url, acomfy.Client(url, token=tokens) as client:
        await client._connection.wait_live()
        given = tokens.given
        with pytest.raises(acomfy.AuthenticationError, match="credentials"):
            await client.api.get_prompt()
        assert tokens.given == given + 1


async def test_a_plain_function_may_give_the_token(server: SimulatedServer) -> None:
    async with front_door(server, {"Authorization": "Bearer plain"}) as (_, url):
        await used_both_ways(url, token=lambda: "plain")


@pytest.mark.parametrize("answer", [KeyError("secret"), None, "bad\nsecret"])
async def test_a_failing_token_provider_is_named_and_asked_again(server: SimulatedServer, answer: Any) -> None:
    answers = [answer, answer]

    def provider() -> Any:
        given = answers.pop() if answers else "good"
        if isinstance(given, Exception):
            raise given
        return given

    async with aiohttp.ClientSession() as session:
        transport = acomfy.transport.Transport(Access(server.url, token=provider), lambda: session)
        for _ in range(2):
            with pytest.raises(acomfy.ServerUnreachable, match="no access token") as caught:
                await transport.get_object("/prompt")
            assert caught.value.maybe_sent is False
            assert "secret" not in str(caught.value)
        assert await transport.get_object("/prompt")


async def test_a_token_provider_that_hangs_or_is_cancelled_is_a_failing_one(server: SimulatedServer) -> None:
    async def hangs() -> str:
        await asyncio.Event().wait()
        return "late"

    async def waits_for_cancelled_work() -> str:
        work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        work.cancel()
        return await work

    for provider, name in ((hangs, "TimeoutError"), (waits_for_cancelled_work, "InterruptedError")):
        options: dict[str, Any] = {"token": provider, "request_timeout": 30 * MS, "retry": None}
        async with quick_client(server, connect_timeout=10 * MS, **options) as client, asyncio.timeout(5000 * MS):
            for call in (client.run(saved()), client.queue()):
                with pytest.raises(acomfy.ServerUnreachable, match=rf"no access token could be had \({name}\)"):
                    await call


async def test_a_cancelled_renewal_leaves_the_next_request_able_to_renew(server: SimulatedServer) -> None:
    tokens = Tokens()
    tokens.waits = True
    door = Doorkeeper(server.port, {}, lambda request: request.headers.get("Authorization") == "Bearer token-2")
    async with answering(door.handle) as url, aiohttp.ClientSession() as session:
        transport = acomfy.transport.Transport(Access(url, token=tokens), lambda: session)
        first = asyncio.create_task(transport.get_object("/prompt"))
        await eventually(lambda: tokens.given == 1)
        second = asyncio.create_task(transport.get_object("/prompt"))
        first.cancel()
        assert await second
    assert tokens.given == 2


# --- The way there ---------------------------------------------------------------------------------------------------


async def test_a_self_signed_server_is_reached_by_its_certificate_or_without_check(server: SimulatedServer) -> None:
    for option in (False, ssl.create_default_context(cafile=PEM)):
        async with front_door(server, tls=server_tls()) as (_, url):
            await used_both_ways(url, ssl=option)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("environment", [False, True])
async def test_a_proxy_is_used_with_its_own_credentials(
    server: SimulatedServer, monkeypatch: pytest.MonkeyPatch, encrypted: bool, environment: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    tls = server_tls() if encrypted else None
    async with (
        front_door(server, {"Authorization": "Bearer t0ken"}, tls) as (door, url),
        ForwardProxy(basic("jo", "pröxy@")).running() as proxy,
    ):
        address = proxy.url.replace("http://", "http://jo:pr%C3%B6xy%40@")
        if environment:
            monkeypatch.setenv("HTTPS_PROXY" if encrypted else "http_proxy", address)
            await used_both_ways(url, trust_env=True, token="t0ken", ssl=False)
        else:
            await used_both_ways(url, proxy=address, token="t0ken", ssl=False)
        assert len(proxy.heads) >= 2
        assert all(line.startswith("CONNECT") == encrypted for line, _ in proxy.heads)
        if encrypted:
            assert all("authorization" not in headers for _, headers in proxy.heads)
            assert all("Proxy-Authorization" not in headers for _, headers in door.asked)


async def test_the_environment_is_not_read_unasked(server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with acomfy.Client(server.url) as client:
        assert await client.api.get_prompt() == 0
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with acomfy.Client(server.url, trust_env=True) as client:
        assert await client.api.get_prompt() == 0


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_proxy_that_wants_credentials_says_so(server: SimulatedServer, encrypted: bool) -> None:
    url = server.url.replace("http", "https") if encrypted else server.url
    async with ForwardProxy("never").running() as proxy, acomfy.Client(url, proxy=proxy.url) as client:
        await client._connection.wait_live()
        refusal = client._connection.refusal
        assert refusal is not None and refusal.status == 407
        with pytest.raises(acomfy.ServerUnreachable, match="streams its images over it; GET .*answered with 407"):
            await client.run(streamed())
        with pytest.raises(acomfy.AuthenticationError, match="proxy='http://user:password@host:port'") as caught:
            await client.api.get_prompt()
        assert caught.value.status == 407


async def test_a_unix_socket_leads_to_the_server(server: SimulatedServer, tmp_path: Path) -> None:
    path = tmp_path / "comfy.sock"
    door = Doorkeeper(server.port, {"Authorization": "Bearer t0ken", "Host": "comfy"})
    runner = web.ServerRunner(web.Server(door.handle, access_log=None), shutdown_timeout=0.01)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    try:
        await used_both_ways("http://comfy", unix_socket=path, token="t0ken")
    finally:
        await runner.cleanup()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ValueError, match="UnixConnector"):
            acomfy.Client(unix_socket=path, session=session)


async def test_a_callers_session_carries_all_of_it(server: SimulatedServer) -> None:
    async with (
        front_door(server, {"Authorization": "Bearer t0ken", "X-Mine": "1", "Cookie": "a=b"}) as (_, url),
        ForwardProxy(None).running() as proxy,
        aiohttp.ClientSession(headers={"X-Mine": "1"}) as session,
    ):
        await used_both_ways(url, session=session, token="t0ken", cookies={"a": "b"}, proxy=proxy.url)
        assert not session.closed
        async with session.get(f"{server.url}/prompt") as response:
            assert response.status == 200
        assert len(proxy.heads) >= 2


async def test_a_session_that_cannot_work_is_refused_at_once() -> None:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # aiohttp 3.14 on
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("user", "secret"))
    async with session:
        several: list[dict[str, Any]] = [{"token": "t"}, {"token": lambda: "t"}, {"headers": {"authorization": "x"}}]
        for options in several:
            with pytest.raises(ValueError, match="credentials are in the session's auth") as caught:
                acomfy.Client(session=session, **options)
            assert "secret" not in str(caught.value)
        acomfy.Client(session=session)
    for connector in (aiohttp.TCPConnector(limit=1), aiohttp.TCPConnector(limit_per_host=1)):
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(ValueError, match="the WebSocket takes that"):
                acomfy.Client(session=session)


# --- To the server alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_session", [False, True])
async def test_no_redirect_takes_a_credential_elsewhere(own_session: bool) -> None:
    asked = []

    async def elsewhere(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=404)

    async with (
        answering(elsewhere) as other,
        answering(respond(307, Location=f"{other}/steal")) as url,
        aiohttp.ClientSession(headers={"X-Mine": "secret"}) as session,
        acomfy.Client(url, session=session if own_session else None, headers={"X-Key": "secret"}) as client,
    ):
        await client._connection.wait_live()
        refusal = client._connection.refusal
        assert refusal is not None and refusal.status == 307 and f"redirects to {other}/steal" in str(refusal)
        for call in (client.api.get_prompt, client.api.get_system_stats):
            with pytest.raises(acomfy.AuthenticationError, match="it redirects to"):
                await call()
        with pytest.raises(acomfy.AuthenticationError):
            async with client.api.view("a.png"):
                pass
    assert asked == []


async def test_the_key_of_a_comfy_account_goes_with_each_prompt_and_stays_nowhere(server: SimulatedServer) -> None:
    async with quick_client(server, api_key_comfy_org="comfy-secret") as client:
        job = await client.submit(saved(), extra_data={"mine": 1})
        result = await job
        await client.submit(saved(2), extra_data={"api_key_comfy_org": "its own"})
        await client.run(saved(3))
    keys = [prompt["extra_data"]["api_key_comfy_org"] for prompt in server.prompts]
    assert keys == ["comfy-secret", "its own", "comfy-secret"]
    assert server.prompts[0]["extra_data"]["mine"] == 1
    seen = [repr(thing) for thing in (job, job.options, result, client, client.api, client._transport)]
    assert not any("comfy-secret" in text for text in seen)
