"""The README's table of routes, held against the methods of `Api` and against servers of every version."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

import acomfy
from acomfy.api import Api
from acomfy.simulator import SimulatedServer
from acomfy.transport import Transport

from .every_route import CALLS, answers, rows, shape
from .recorded import lines
from .test_api import api_of

pytestmark = pytest.mark.anyio

ROWS = rows()
VERSIONS = sorted({row.since for row in ROWS if row.since} | {(0, 3, 40)})


class Recorder(Transport):
    """A transport that notes what it is to send, and sends nothing."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", lambda: pytest.fail("nothing is sent"))
        self.routes: list[str] = []

    async def request(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        self.routes.append(shape(f"{method} {path}"))
        raise NotImplementedError


def methods() -> set[str]:
    """Name the routes of `Api`: all that is public and no property."""
    return {
        name for name, member in inspect.getmembers(Api) if name[0] != "_" and inspect.isroutine(inspect.unwrap(member))
    }


async def test_the_table_names_every_route_with_the_methods_that_serve_it() -> None:
    served: dict[str, set[str]] = {}
    for name, call in CALLS:
        transport = Recorder()
        with pytest.raises(NotImplementedError):
            await call(Api(transport))
        (route,) = transport.routes
        served.setdefault(route, set()).add(name)
    assert {row.route: set(row.methods) for row in ROWS} == served
    assert len({row.route for row in ROWS}) == len(ROWS)


def test_the_table_names_every_method() -> None:
    assert {name for row in ROWS for name in row.methods} == methods()
    assert {name for name, _ in CALLS} == methods()


def test_the_methods_of_the_client_that_the_table_names_exist() -> None:
    for row in ROWS:
        for name in row.client:
            assert callable(getattr(acomfy.Client, name)), row


def test_every_method_tells_its_route_in_its_docstring() -> None:
    for row in ROWS:
        for name in row.methods:
            told = [shape(part) for part in (getattr(Api, name).__doc__ or "").split("``")[1::2]]
            assert row.route in told, f"{name} does not tell of {row.route}"


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: ".".join(map(str, version)))
async def test_a_server_of_each_version_has_the_routes_that_the_table_says(version: tuple[int, ...]) -> None:
    async with SimulatedServer(version=".".join(map(str, version)), assets=True) as server, api_of(server.url) as api:
        missing = [name async for name, answer in answers(api) if is_missing(answer)]
        reached = {shape(f"{method} {path}") for method, path in server.requests}
    expected = {row.route for row in ROWS if row.since is not None and row.since <= version}
    assert {route.replace(" /api/", " /") for route in expected} <= reached  # the simulator counts both as one
    absent = {name for row in ROWS if row.route not in expected for name in row.methods}
    assert set(missing) >= absent - {"head_asset_hash"}  # its 404 means that there is no such content


def is_missing(answer: Any) -> bool:
    """Tell whether an answer is that of ComfyUI's catch-all route."""
    return isinstance(answer, acomfy.HTTPError) and (answer.status == 405 or (answer.status == 404 and not answer.body))


async def test_nothing_that_the_api_sends_upsets_a_newer_server() -> None:
    async with SimulatedServer(version="0.33.0", assets=True) as server, api_of(server.url) as api:
        upset = [
            (name, str(answer))
            async for name, answer in answers(api)
            if isinstance(answer, Exception) and getattr(answer, "status", 0) not in (400, 404, 405)
        ]
    assert [name for name, _ in upset] == ["post_prompt"], upset  # it refuses an empty prompt


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


async def test_the_simulator_answers_in_the_shapes_of_a_real_server(server: SimulatedServer) -> None:
    server.models["checkpoints"] = ["a.safetensors"]
    recorded = {
        line["path"]: line["json"]
        for line in lines("0.3.64/p_endpoints.jsonl")
        if line["ev"] == "http" and line["method"] == "GET" and line["status"] == 200 and "json" in line
    }
    paths = ["/prompt", "/queue", "/features", "/embeddings", "/models", "/models/checkpoints", "/users", "/settings"]
    paths += ["/system_stats", "/experiment/models", "/i18n", "/workflow_templates", "/v2/userdata", "/extensions"]
    paths += ["/internal/logs/raw", "/internal/files/temp", "/object_info/EmptyImage"]
    async with aiohttp.ClientSession(server.url) as session:
        server.sockets.log("a line\n")
        for path in paths:
            async with session.get(path) as response:
                assert outline(await response.json()) == outline(recorded[path]), path


def outline(value: Any, depth: int = 3) -> Any:
    """Give the types of a JSON value: of objects by key, of arrays that of the first item."""
    if isinstance(value, dict):
        return {key: outline(item, depth - 1) for key, item in value.items()} if depth else "object"
    if isinstance(value, list):
        return [outline(value[0], depth - 1)] if value and depth and isinstance(value[0], dict) else "array"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
