"""Comfy Cloud, against the simulator in its ways: nothing here was seen on the real one."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import acomfy
from acomfy import look, profiles
from acomfy.router import Router, TrackedPrompt
from acomfy.simulator import Cloud, SimulatedServer

from .conftest import MS
from .graphs import color_of, gated, saved, streamed
from .shell import Gates, eventually, gates, quick_client

pytestmark = pytest.mark.anyio

__all__ = ["Gates", "gates"]

KEY = "comfyui-secret-key"


@pytest.fixture
async def server(gates: Gates) -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer(version="0.38.1", cloud=Cloud(KEY)) as server:
        server.add_node(gates.node)
        yield server
        assert server.cloud is not None and server.cloud.leaks == []


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[acomfy.Client]:
    async with quick_client(server, profile="cloud", api_key=KEY) as client:
        yield client


def cloud_of(server: SimulatedServer) -> Cloud:
    assert server.cloud is not None
    return server.cloud


def colored(graph: dict[str, Any], color: int) -> dict[str, Any]:
    graph["1"]["inputs"]["color"] = color
    return graph


# --- The profile -----------------------------------------------------------------------------------------------------


def test_cloud_is_known_by_its_host_and_may_be_named() -> None:
    assert profiles.choose("cloud.comfy.org") is profiles.CLOUD
    assert profiles.choose("CLOUD.comfy.org.") is profiles.CLOUD
    assert profiles.choose("cloud.comfy.org.evil.example") is profiles.COMFYUI
    assert profiles.choose("127.0.0.1", "cloud") is profiles.CLOUD
    assert profiles.choose("cloud.comfy.org", "comfyui") is profiles.COMFYUI
    for url in ("cloud.comfy.org", "http://cloud.comfy.org", "https://cloud.comfy.org/"):
        assert acomfy.Client(url, api_key=KEY).api.url == "https://cloud.comfy.org"
    client = acomfy.Client("https://cloud.comfy.org", api_key=KEY)
    assert client._transport.profile is profiles.CLOUD
    assert KEY not in repr(client) + repr(client._transport._access)


def test_every_route_is_below_the_prefix_once() -> None:
    assert profiles.CLOUD.path("/prompt") == "/api/prompt"
    assert profiles.CLOUD.path("/api/jobs/x") == "/api/jobs/x"
    assert profiles.COMFYUI.path("/prompt") == "/prompt"


def test_both_forms_of_a_history_are_read_as_entries_oldest_first() -> None:
    newest_first = {"history": [{"prompt_id": "b", "outputs": {}}, {"prompt_id": "a"}, 5, {"prompt_id": None}]}
    assert list(profiles.read_histories(newest_first)) == ["a", "b"]
    assert profiles.read_histories({"a": {}, "b": {}}) == {"a": {}, "b": {}}
    assert profiles.read_histories([]) == {}


def test_an_item_of_the_clouds_queue_is_read() -> None:
    item = [1, "id", {"1": {}}, ["9"], {look.PROMPT_ID_TAG: "ours"}]
    snapshot = look.read_queue({"queue_running": [item], "queue_pending": [item[:4]]})
    assert [found.prompt_id for found in snapshot] == ["id", "id"]
    assert snapshot.find("ours") is snapshot.running[0]
    entry = {"prompt": {"prompt_id": "id", "extra_data": {look.PROMPT_ID_TAG: "ours"}}}
    assert look.history_prompt_id({"id": entry}, "ours") == "id"


def test_a_picture_that_names_no_prompt_belongs_to_nobody_where_several_run() -> None:
    frame = struct.pack(">II", 1, 1) + b"\xff\xd8\xff\xe0 a picture"
    for interleaved in (False, True):
        router = Router(interleaved=interleaved)
        prompt = TrackedPrompt("ours", b"{}", frozenset({"9"}))
        router.register(prompt)
        router.receive('{"type": "executing", "data": {"node": "9", "display_node": "9", "prompt_id": "ours"}}')
        router.receive(frame)
        assert router.unattributed == interleaved
        assert prompt.run is not None and (not prompt.run.streamed) == interleaved


# --- Prompts ---------------------------------------------------------------------------------------------------------


async def test_a_prompt_goes_all_the_way_under_the_id_that_the_cloud_chose(
    server: SimulatedServer, client: acomfy.Client, tmp_path: Path
) -> None:
    result = await client.run(saved(0x123456))
    assert color_of(await result.images[0].read()) == 0x123456
    assert [path.exists() for path in await result.save(tmp_path)] == [True]
    assert result.prompt_id in server.ledger
    assert (await client.run(streamed(5))).images[0].streamed
    assert len(cloud_of(server).fetched) >= 2
    assert not any("X-API-Key" in headers for _, headers in cloud_of(server).fetched)
    assert server.requests["GET", "/history/{prompt_id}"] == 0


async def test_many_prompts_at_once_get_each_its_own(server: SimulatedServer, client: acomfy.Client) -> None:
    results = await asyncio.gather(*(client.run((saved, streamed)[color % 2](color)) for color in range(1, 21)))
    colors = [color_of(await result.images[0].read()) for result in results]
    assert colors == list(range(1, 21))


async def test_messages_of_the_users_other_prompts_change_nothing(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    async with quick_client(server, profile="cloud", api_key=KEY) as other:
        job = await client.submit(colored(gated("a"), 7))
        await gates.reached["a"].wait()
        for kind, data in (
            ("executing", {"node": "2", "display_node": "2", "prompt_id": "stranger"}),
            ("executed", {"node": "2", "display_node": "2", "output": {"images": []}, "prompt_id": "stranger"}),
            ("execution_success", {"prompt_id": "stranger", "timestamp": 1}),
        ):
            server.sockets.send(f'{{"type": "{kind}", "data": {json.dumps(data)}}}')
        waiting = await other.submit(saved(8))
        gates.open["a"].set()
        assert color_of(await (await job).images[0].read()) == 7
        assert color_of(await (await waiting).images[0].read()) == 8


async def test_a_prompt_is_followed_by_http_when_the_socket_is_deaf(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await client.submit(colored(gated("a"), 9))
    await gates.reached["a"].wait()
    with server.faults.stall_delivery():
        gates.open["a"].set()
        async with asyncio.timeout(10_000 * MS):
            assert color_of(await (await job).images[0].read()) == 9
    assert server.requests["GET", "/history_v2/{prompt_id}"] >= 1


@pytest.mark.parametrize("runs", [True, False])
async def test_a_prompt_is_cancelled_waiting_or_running(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, runs: bool
) -> None:
    running = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    waiting = await client.submit(saved())
    assert await waiting.position() == 1
    job = running if runs else waiting
    assert await job.cancel()
    with pytest.raises(acomfy.JobCancelled):
        await job
    gates.open["a"].set()
    if runs:
        await waiting
    else:
        await running


async def test_a_prompt_is_attached_by_its_id(server: SimulatedServer, client: acomfy.Client) -> None:
    result = await client.run(saved(3))
    async with quick_client(server, profile="cloud", api_key=KEY) as other:
        again = await (await other.attach(result.prompt_id))
        assert color_of(await again.images[0].read()) == 3
        (listed,) = (await other.api.get_jobs(sort_by="execution_duration"))["jobs"]
        assert listed["id"] == result.prompt_id
        assert list(await other.api.get_histories(max_items=1)) == [result.prompt_id]
        assert await other.api.get_history("c0ffee00-0000-4000-8000-000000000000") is None
        job = await other.attach("c0ffee00-0000-4000-8000-000000000000")
        with pytest.raises(acomfy.JobLost):
            await job


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "wrong-key"])
async def test_without_the_key_nobody_comes_in(server: SimulatedServer, key: str | None) -> None:
    async with quick_client(server, profile="cloud", api_key=key) as client:
        with pytest.raises(acomfy.AuthenticationError, match="credentials") as caught:
            await client.run(saved())
        assert (caught.value.status, caught.value.error_type) == (401, "unauthorized")
        refusal = client._connection.refusal
        assert refusal is not None and refusal.status == 401
        assert "wrong-key" not in str(caught.value) + str(refusal)


async def test_a_bearer_token_and_a_callers_session_serve_as_well(server: SimulatedServer) -> None:
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": KEY}, cookies={"sid": KEY}) as session,
        quick_client(server, profile="cloud", session=session) as one,
        quick_client(server, profile="cloud", token=KEY) as other,
    ):
        for client in (one, other):
            result = await client.run(saved(4))
            assert color_of(await result.images[0].read()) == 4
        assert other._connection.live
        assert not one._connection.live  # the socket wants its token too: followed by HTTP


@pytest.mark.parametrize(
    ("options", "status", "kind"),
    [({"paid": False}, 402, "CLOUD_SUBSCRIPTION_REQUIRED"), ({"queue_limit": 0}, 429, "QUEUE_LIMIT")],
)
async def test_what_the_account_does_not_cover_is_named(options: dict[str, Any], status: int, kind: str) -> None:
    async with (
        SimulatedServer(version="0.38.1", cloud=Cloud(KEY, **options)) as server,
        quick_client(server, profile="cloud", api_key=KEY) as client,
    ):
        with pytest.raises(acomfy.HTTPError, match=kind) as caught:
            await client.run(saved())
        assert (caught.value.status, caught.value.error_type) == (status, kind)
        assert caught.value.retry_after == (1.0 if status == 429 else None)
        assert server.prompts == [] and client.jobs == ()


async def test_a_redirect_back_to_the_cloud_goes_without_the_key_too(server: SimulatedServer) -> None:
    async with quick_client(server, profile="cloud", api_key=KEY) as client:
        result = await client.run(saved())
        await eventually(lambda: client._connection.live)
        storage = cloud_of(server)
        storage._signed.clear()
        storage._origin = f"{server.url}/api/view?filename={result.images[0].filename}&x="
        with pytest.raises(acomfy.AuthenticationError) as caught:
            async with client.api.view(result.images[0].filename):
                pass
        assert caught.value.status == 401  # the key did not go along, although it is the same host
