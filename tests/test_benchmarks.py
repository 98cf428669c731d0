"""The benchmarks run, and what they compare does the same work. Nothing here looks at a time."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from acomfy import events, frames
from benchmarks import control
from benchmarks.__main__ import FAMILIES, measured
from benchmarks.graphs import workflow
from benchmarks.load_server import Channel, LoadServer
from benchmarks.report import Row, as_json, markdown, table
from benchmarks.rows.core import payloads
from benchmarks.rows.throughput import drive
from benchmarks.scale import KB, TINY
from benchmarks.sides import SIDES
from benchmarks.transcript import PROMPT_ID, SUCCESS, Plan, carries, transcript

pytestmark = pytest.mark.anyio

SOCKETS = ("acomfy", "floor", "socket per job")


@asynccontextmanager
async def load_server() -> AsyncIterator[str]:
    server = LoadServer()
    listening = await asyncio.get_running_loop().create_server(lambda: Channel(server), "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def events_of(plan: Plan, *, metadata: bool) -> list[events.Event]:
    raw = b"".join(bytes(part) for part in transcript(plan, metadata=metadata)) + SUCCESS
    return [frames.decode_text(data) if text else frames.decode_binary(data) for text, data in payloads(raw)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("metadata", [False, True])
def test_a_transcript_is_a_whole_prompt_of_twenty_steps(stream: bool, metadata: bool) -> None:
    happened = events_of(Plan(stream=stream, preview=KB), metadata=metadata)
    kinds = [type(event) for event in happened]
    assert kinds[:2] == [events.ExecutionStart, events.ExecutionCached]
    assert kinds[-1] is events.ExecutionSuccess
    begun = [event.node for event in happened if isinstance(event, events.Executing)]
    assert begun == list(workflow(stream=stream))
    assert kinds.count(events.Progress) == 20 + stream
    pictures = [event for event in happened if isinstance(event, events.PreviewImage)]
    assert [picture.mime for picture in pictures] == ["image/jpeg"] * 20 + ["image/png"] * stream
    assert all(picture.has_metadata is metadata for picture in pictures)
    assert all(event.prompt_id in (PROMPT_ID.decode(), None) for event in happened if hasattr(event, "prompt_id"))


@pytest.mark.parametrize("side", SOCKETS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("picture", [KB, 200 * KB, 3000 * KB])
async def test_each_side_gets_each_prompt_its_own_picture(side: str, stream: bool, picture: int) -> None:
    async with load_server() as url, SIDES[side](url) as connected:
        plan = {"stream": stream, "picture": picture, "preview": KB}
        await asyncio.to_thread(control.begin, url, jobs=30, backlog=5, **plan)
        await drive(connected, jobs=30, in_flight=10, stream=stream)  # raises at a wrong picture
        seen = await asyncio.to_thread(control.seen, url)
        assert seen["requests"]["POST /prompt"] == 30
        assert seen["waiting"] == 0


async def test_the_load_server_takes_uploads_and_has_large_answers() -> None:
    async with load_server() as url, SIDES["acomfy"](url) as connected:
        assert connected.client is not None
        api = connected.client.api
        stored = await api.upload_image(bytes(300 * KB), "a.png")
        assert stored.name == "a.png" and stored.raw["bytes"] > 300 * KB
        await asyncio.to_thread(control.tell, url, "big", bytes=100 * KB)
        assert len(await api.get_object_info()) > 50
        assert len(await api.get_histories(max_items=1000)) > 50


async def test_acomfy_reads_no_history_of_the_load_server() -> None:
    async with load_server() as url, SIDES["acomfy"](url) as connected:
        await asyncio.to_thread(control.begin, url, jobs=20)
        await drive(connected, jobs=20, in_flight=5, stream=False)
        requests = (await asyncio.to_thread(control.seen, url))["requests"]
        assert "GET /history" not in requests and "GET /queue" not in requests


async def test_a_picture_that_is_another_prompts_is_noticed() -> None:
    async with load_server() as url, SIDES["floor"](url) as connected:
        prompt_id, picture = await connected.fetch(workflow(stream=True))
    assert carries(picture, prompt_id)
    assert not carries(picture, PROMPT_ID.decode())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_rows_that_can_be_written(family: str) -> None:
    rows = list(measured([family], TINY))
    assert {row.family for row in rows} == {family}
    assert all(math.isfinite(row.value) for row in rows)
    data = json.loads(json.dumps(as_json(rows)))
    assert [row["name"] for row in data["rows"]] == [row.name for row in rows]
    assert data["versions"]["aiohttp"]
    text = table(rows)
    assert all(row.name in text for row in rows)
    wanted = [row for row in rows if row.wanted]
    assert len(markdown(rows).splitlines()) == 2 + len(wanted)


def test_the_readme_s_table_has_ratios_alone() -> None:
    rows = [
        Row("family", "fast", 3.0, "1/s", "floor", 2.0, 1.5, 1.02, ">= 0.95"),
        Row("family", "small", 1024.0, "B", wanted="<= 4096"),
        Row("family", "nobody asked", 1.0, "s"),
    ]
    assert "1.50" in table(rows)
    assert markdown(rows).splitlines()[2:] == [
        "| fast | floor | 1.50 | >= 0.95 | 1.02 |",
        "| small | 4,096 B at most | 0.25 | <= 1.0 |  |",
    ]


@pytest.mark.parametrize(
    "ratio, value, wanted, met",
    [(0.96, 5.0, ">= 0.95", True), (0.94, 5.0, ">= 0.95", False), (None, 5.0, "<= 10", True), (None, 5.0, "", None)],
)
def test_a_row_is_as_wanted_by_its_ratio_or_else_its_value(
    ratio: float | None, value: float, wanted: str, met: bool | None
) -> None:
    assert Row("family", "name", value, "ms", ratio=ratio, wanted=wanted).met is met
