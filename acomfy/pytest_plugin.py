"""Pytest fixtures with a ComfyUI that needs no GPU: ``comfy_server``, ``comfy_client``, ``comfy_faults``.

Installing acomfy is all it takes: pytest finds them by itself. They work in asynchronous tests, of pytest-asyncio in
any mode and of anyio's plugin on asyncio::

    async def test_my_bot(comfy_server, comfy_client):
        comfy_server.on("KSampler").takes(27 * 60)          # over at once: the server's clock is virtual
        result = await comfy_client.run(workflow)
        assert comfy_server.prompts[0]["prompt"]["3"]["inputs"]["seed"] == 5

    @pytest.mark.comfy_server(version="0.3.40")             # arguments of SimulatedServer
    async def test_an_old_server(comfy_server): ...

An application under test connects to ``comfy_server.url``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .client import Client
    from .simulator import Faults, SimulatedServer

_MARKER = "comfy_server(**options): arguments of the SimulatedServer that the fixture comfy_server gives"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def comfy_server(request: pytest.FixtureRequest) -> SimulatedServer:
    """Give a running `SimulatedServer` of the test's own, on a free port, with a `VirtualClock`."""
    raise AssertionError("pytest_fixture_setup runs _server instead")


@pytest.fixture
def comfy_client(comfy_server: SimulatedServer) -> Client:
    """Give a `Client` of ``comfy_server``; it is closed after the test."""
    raise AssertionError("pytest_fixture_setup runs _client instead")


@pytest.fixture
def comfy_faults(comfy_server: SimulatedServer) -> Faults:
    """Give what can go wrong with ``comfy_server``, to switch on."""
    return comfy_server.faults


async def _server(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedServer]:
    _check_asyncio()
    from .simulator import SimulatedServer, VirtualClock

    options: dict[str, Any] = {"clock": VirtualClock()}
    for mark in reversed(list(request.node.iter_markers("comfy_server"))):  # the nearest comes first
        if mark.args:
            pytest.fail(f"write pytest.mark.comfy_server(name=...), not {mark.args[0]!r} alone", pytrace=False)
        options |= mark.kwargs
    async with SimulatedServer(**options) as server:
        yield server


async def _client(comfy_server: SimulatedServer) -> AsyncIterator[Client]:
    from .client import Client

    async with Client(comfy_server.url) as client:
        yield client


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Have our asynchronous fixtures run by the plugin that runs the test, in the test's loop.

    The two plugins know their fixtures by different signs, and pytest-asyncio warns of those that it does not know; so
    the fixtures look synchronous, and each plugin gets what it takes for its own.
    """
    own = {"comfy_server": _server, "comfy_client": _client}.get(fixturedef.argname)
    if own is None or fixturedef.func.__module__ != __name__:
        return (yield)
    if "anyio_backend" not in request.fixturenames:
        wrong = _wrong_with(fixturedef.argname, request)
        own = _for_pytest_asyncio(own, _loop_scope(request)) if wrong is None else _failing(wrong)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixturedef, "func", own)
        return (yield)


def _wrong_with(name: str, request: pytest.FixtureRequest) -> str | None:
    """Say why a test cannot have the fixture; None when it can."""
    if not inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        return f"{name} runs in the test's event loop: write the test as async def"
    if not request.config.pluginmanager.hasplugin("asyncio"):
        return f"{name} needs pytest-asyncio, or anyio's marker on the test"
    return None


def _failing(why: str) -> Any:
    """Make a fixture that fails: pytest tidies up after a fixture that failed, but not after a hook that did."""

    def fail(**fixtures: Any) -> None:
        pytest.fail(why, pytrace=False)

    return fail


def _for_pytest_asyncio(function: Any, loop_scope: Any) -> Any:
    import pytest_asyncio

    async def copy(**fixtures: Any) -> AsyncIterator[Any]:
        async for value in function(**fixtures):
            yield value

    pytest_asyncio.fixture(loop_scope=loop_scope)(copy)  # marks it; the fixture that it gives has no name to be used by
    return copy


def _loop_scope(request: pytest.FixtureRequest) -> str:
    """Give the scope of the loop that the test runs in."""
    marker = request.node.get_closest_marker("asyncio")
    scope = marker.kwargs.get("loop_scope") if marker is not None else None
    return str(scope or request.config.getini("asyncio_default_test_loop_scope") or "function")


def _check_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pytest.skip("acomfy runs on asyncio, and this is the test's run on another library")
