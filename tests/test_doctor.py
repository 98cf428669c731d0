"""``acomfy doctor``: what is found of a server and the way to it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import acomfy
from acomfy import diagnosis
from acomfy.cli import doctor, examination
from acomfy.cli.app import app
from acomfy.cli.examination import Examination
from acomfy.diagnosis import Answer, Download, Finding, Level, SocketTrial, exit_code
from acomfy.look import QueueItem, QueueSnapshot
from acomfy.server_info import read_system_stats
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .front_door import Doorkeeper, server_tls
from .graphs import gated, saved
from .other_servers import answering, respond
from .shell import Gates, client, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

STATS = {"system": {"comfyui_version": "0.3.64"}, "devices": []}
HERE = "http://gpu:8188/system_stats"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait shorter for what does not come."""
    monkeypatch.setattr(examination, "_PUSH_TIME", 200 * MS)
    monkeypatch.setattr(examination, "_GREETING_TIME", 300 * MS)
    monkeypatch.setattr(examination, "_FLAGS_TIME", 300 * MS)
    monkeypatch.setattr(examination, "_OLD_HANDLER_TIME", 10 * MS)
    monkeypatch.setattr(examination, "_LOOKS_APART", 50 * MS)
    monkeypatch.setattr(diagnosis.way, "_PORTS", ())  # what runs on this machine is nobody's business


async def examined(url: str) -> dict[str, Finding]:
    """Give what is found, by its check; of several the worst."""
    inspected, found = Examination(url), dict[str, Finding]()
    order = list(Level)
    try:
        async for finding in inspected.findings():
            known = found.get(finding.check)
            if known is None or order.index(known.level) <= order.index(finding.level):
                found[finding.check] = finding
    finally:
        await inspected.aclose()
    return found


def levels(found: dict[str, Finding], level: Level) -> set[str]:
    return {check for check, finding in found.items() if finding.level is level}


# --- The first answer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "check", "says", "advises"),
    [
        (Answer(HERE, 200, json=STATS), "server", "a ComfyUI answers at http://gpu:8188", ""),
        (Answer(HERE, 301, location="https://gpu/system_stats"), "address", "redirects", "with https: https://gpu"),
        (Answer(HERE, 302, location="https://login.example/in"), "access", "login.example", "login"),
        (Answer(HERE, 302, location="http://gpu:8188/login"), "access", "/login", "login"),
        (Answer(HERE, 302), "access", "to nowhere", "login"),
        (Answer(HERE, 308, location=f"{HERE}/"), "access", "redirects", "adds a slash"),
        (Answer(HERE, 302, location="http://gpu:8188/c/system_stats"), "address", "redirects", "http://gpu:8188/c"),
        (Answer(HERE, 401, challenge='Basic realm="x"', server="nginx"), "access", "it wants Basic", "user:password@"),
        (Answer(HERE, 403, server="nginx", text="no"), "access", "refused: 403 (by nginx)", "credentials"),
        (Answer(HERE, 403, server="Python/3.12 aiohttp/3.11"), "access", "refuses the origin", "--enable-cors-header"),
        (Answer(HERE, 407), "access", "407", "proxy="),
        (Answer(HERE, 502, "text/html", "nginx"), "server", "(by nginx) gets no answer", "another port"),
        (Answer(HERE, 400, text="plain HTTP request was sent to HTTPS port"), "address", "https", "https://gpu:8188"),
        (Answer(HERE, 200, "text/html", text="<html>"), "address", "a page where ComfyUI says JSON", "login page"),
        (Answer(HERE, 404, "text/html", "nginx"), "address", "404, text/html, by nginx", "the path under which"),
        (Answer("http://gpu/api/system_stats", 404), "address", "404", "leave /api out"),
        (Answer(HERE, 200, "application/json", json={"system": 1}), "address", "something else", "is that the address"),
        (Answer(HERE, 500, "text/plain"), "address", "500", "is that the address"),
    ],
)
def test_the_first_answer_is_understood(answer: Answer, check: str, says: str, advises: str) -> None:
    finding = diagnosis.judge_answer(answer)
    assert (finding.check, says in finding.text, advises in finding.advice) == (check, True, True), finding
    assert (finding.level is Level.OK) == (answer.json is STATS)


@given(
    st.integers(100, 599),
    st.text(),
    st.text(),
    st.none() | st.text() | st.dictionaries(st.sampled_from(["system", "devices"]), st.none() | st.just({})),
)
def test_whatever_answers_is_judged(status: int, location: str, kind: str, body: Any) -> None:
    location = "" if any(char in "[]" for char in location) else location  # an Answer's is an address, or empty
    finding = diagnosis.judge_answer(Answer(HERE, status, kind, location=location, json=body))
    assert finding.level is Level.PROBLEM and finding.text and finding.advice


def test_other_addresses_are_of_the_same_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.way, "_PORTS", (8188, 8000))
    assert diagnosis.other_addresses("http://gpu:8188") == [
        "https://gpu:8188",
        "http://gpu:8188/comfyui",
        "http://gpu:8188/comfy",
        "http://gpu:8000",
    ]
    assert diagnosis.other_addresses("https://[::1]/api/") == [
        "http://[::1]/api",
        "https://[::1]",
        "http://[::1]:8188",
        "http://[::1]:8000",
    ]


# --- Judgements ------------------------------------------------------------------------------------------------------


def stats(version: str | None = "0.3.64", **system: Any) -> Any:
    return read_system_stats({"system": {"comfyui_version": version, **system}, "devices": []})


@pytest.mark.parametrize(
    ("version", "level", "advises"),
    [
        ("0.33.0", Level.OK, ""),
        ("0.3.57", Level.OK, ""),
        ("0.3.50", Level.WARNING, "0.3.57"),
        ("0.3.40", Level.WARNING, "0.3.45"),
        ("0.3.10", Level.WARNING, "0.3.40 and newer"),
        (None, Level.WARNING, "old one"),
    ],
)
def test_a_version_is_judged_by_what_it_lacks(version: str | None, level: Level, advises: str) -> None:
    finding = diagnosis.judge_version(stats(version), None)
    assert finding.level is level and advises in finding.advice


def test_the_clocks_agree_as_far_as_whole_seconds_tell() -> None:
    def answer(date: float, received_at: float) -> Answer:
        return Answer(HERE, 200, took=0.1, date=date, received_at=received_at)

    assert diagnosis.clock_offset([answer(100, 100.99), answer(101, 101.2)]) == 0.0
    assert diagnosis.clock_offset([answer(160, 100.5)]) == 59.5
    assert diagnosis.clock_offset([answer(40, 100.5)]) == pytest.approx(-59.4)
    assert diagnosis.clock_offset([Answer(HERE, 200)]) is None
    ahead, behind = diagnosis.judge_clock([answer(160, 100)]), diagnosis.judge_clock([answer(0, 10_000)])
    assert "60 s ahead of ours" in ahead.text and "3 hours behind ours" in behind.text
    assert diagnosis.judge_clock([]).level is Level.UNKNOWN
    assert diagnosis.judge_clock([answer(103, 100.0)]).level is Level.OK


def test_little_memory_is_a_warning() -> None:
    device = {"name": "cuda:0 RTX : cudaMallocAsync", "type": "cuda", "vram_total": 24e9, "vram_free": 0.2e9}
    found = diagnosis.judge_memory(
        read_system_stats({"system": {"ram_total": 64e9, "ram_free": 40e9}, "devices": [device]})
    )
    assert [(finding.level, finding.text) for finding in found] == [
        (Level.WARNING, "cuda:0 RTX: 200.0 MB of 24.0 GB free"),
        (Level.OK, "RAM: 40.0 GB of 64.0 GB free"),
    ]
    assert [finding.level for finding in diagnosis.judge_memory(stats())] == [Level.UNKNOWN]


@pytest.mark.parametrize(
    ("download", "says"),
    [
        (Download("a", 10_000_000, 0.01, 0.5, True), ""),
        (Download("a", 10_000_000, 0.01, 0.5, True, "gzip"), "compressed already"),
        (Download("a", 10_000_000, 0.01, 0.5, False), "begins anew"),
        (Download("a", 10_000_000, 1.9, 2.0, None), "whole file first"),
        (Download("a", 1_000_000, 0.1, 2.0, True), "that is slow"),
        (Download("a", 70, 0.05, 0.05, True), ""),
        (Download("a", 0, 0.0, 0.0, None), ""),
    ],
)
def test_downloads_are_judged(download: Download, says: str) -> None:
    finding = diagnosis.judge_download(download)
    assert finding.level is (Level.WARNING if says else Level.OK) and says in finding.advice


def queue(running: str = "", pending: str = "") -> QueueSnapshot:
    return QueueSnapshot(*(tuple(QueueItem(0, one, {}, {}) for one in ids) for ids in (running, pending)))


def test_a_queue_in_which_nothing_runs_is_a_dead_worker_and_a_long_run_a_hint() -> None:
    dead = diagnosis.judge_queue(queue(pending="ab"), queue(pending="ab"), 2.0, None)
    assert dead.level is Level.PROBLEM and "restart ComfyUI" in dead.advice
    assert diagnosis.judge_queue(queue(pending="a"), queue(pending="b"), 2.0, None).level is Level.OK
    assert diagnosis.judge_queue(queue(pending="a"), queue("a"), 2.0, None).level is Level.OK
    assert diagnosis.judge_queue(queue("a"), queue("a"), 2.0, 7200).level is Level.WARNING
    assert diagnosis.judge_queue(queue("a"), queue("b"), 2.0, 7200).level is Level.OK
    assert diagnosis.judge_queue(queue("a"), queue("a"), 2.0, 20).level is Level.OK


GREETED = {"opened": 0.01, "first_status": 0.01}
FLAGS = {"flags": {"supports_preview_metadata": True}, "round_trip": 0.01}


@pytest.mark.parametrize(
    ("trial", "check", "level"),
    [
        (SocketTrial(refusal=403), "WebSocket", Level.PROBLEM),
        (SocketTrial(refusal=400), "WebSocket", Level.PROBLEM),
        (SocketTrial(failure="reset"), "WebSocket", Level.PROBLEM),
        (SocketTrial(opened=0.01), "WebSocket", Level.PROBLEM),
        (SocketTrial(**GREETED), "flags", Level.WARNING),  # type: ignore[arg-type]  # of several types
        (SocketTrial(**GREETED, flags={}), "flags", Level.WARNING),  # type: ignore[arg-type]
        (SocketTrial(**GREETED, **{**FLAGS, "round_trip": 2.0}), "flags", Level.WARNING),  # type: ignore[arg-type]
        (SocketTrial(**GREETED, **FLAGS, provoked=True), "hearing", Level.PROBLEM),  # type: ignore[arg-type]
        (SocketTrial(**GREETED, **FLAGS), "hearing", Level.UNKNOWN),  # type: ignore[arg-type]
        (SocketTrial(**GREETED, **FLAGS, failure="closed"), "hearing", Level.PROBLEM),  # type: ignore[arg-type]
        (SocketTrial(**GREETED, **FLAGS, pushed="Status"), "hearing", Level.OK),  # type: ignore[arg-type]
    ],
)
def test_a_socket_is_judged(trial: SocketTrial, check: str, level: Level) -> None:
    found = {finding.check: finding.level for finding in diagnosis.judge_socket(trial, (0, 33, 0))}
    assert found[check] is level


def test_a_server_from_before_the_flags_need_not_answer_them() -> None:
    trial = SocketTrial(opened=0.01, first_status=0.01, pushed="logs", provoked=True)
    found = diagnosis.judge_socket(trial, (0, 3, 40))
    assert not exit_code(found) and Level.WARNING not in {finding.level for finding in found}
    assert diagnosis.judge_again(trial).level is Level.OK
    assert diagnosis.judge_again(SocketTrial(opened=0.01, first_status=0.01, provoked=True)).level is Level.WARNING
    assert diagnosis.judge_again(SocketTrial(opened=0.01, first_status=0.01)).level is Level.UNKNOWN
    assert diagnosis.judge_again(SocketTrial(refusal=429)).level is Level.PROBLEM


# --- Servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.3.40", "0.3.64", "0.33.0"])
async def test_a_server_that_is_well_has_no_problem_and_runs_nothing(version: str) -> None:
    async with SimulatedServer(version=version) as server:
        async with acomfy.Client(server.url) as client:
            await client.run(saved())
        before = dict(server.queue.history)
        found = await examined(server.url)
        assert not levels(found, Level.PROBLEM), found
        assert levels(found, Level.WARNING) == ({"version"} if version == "0.3.40" else set())
        assert levels(found, Level.UNKNOWN) == {"messages"}
        assert found["hearing"].values["heard"] == "logs" and found["reconnect"].level is Level.OK
        assert found["files"].values["bytes"] > 0 and "not in parts" not in found["files"].text
        assert dict(server.queue.history) == before and len(server.prompts) == 1
        await server.wait_for(lambda: not server.sockets.by_sid)
        assert not server.sockets.log_readers


async def test_a_deaf_socket_is_a_problem(server: SimulatedServer) -> None:
    with server.faults.stall_delivery():
        found = await examined(server.url)
    assert levels(found, Level.PROBLEM) == {"hearing"} and "deaf" in found["hearing"].text


@pytest.mark.parametrize(("status", "advises"), [(403, "credentials must hold"), (404, "Upgrade")])
async def test_a_refused_socket_is_a_problem(server: SimulatedServer, status: int, advises: str) -> None:
    with server.faults.refuse_sockets(status):
        found = await examined(server.url)
    assert levels(found, Level.PROBLEM) == {"WebSocket"} and advises in found["WebSocket"].advice


async def test_requests_that_are_too_large_are_a_problem(server: SimulatedServer) -> None:
    with server.faults.refuse_as_too_large():
        found = await examined(server.url)
    assert levels(found, Level.PROBLEM) == {"uploads"} and "client_max_body_size" in found["uploads"].advice
    assert found["hearing"].level is Level.UNKNOWN  # the prompt that is to be refused was refused as too large


async def test_a_dead_worker_is_seen_by_a_queue_in_which_nothing_runs(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await client.submit(gated("g"))
    await gates.reached["g"].wait()
    found = await examined(server.url)
    assert found["queue"].level is Level.OK and found["queue"].values == {"running": 1, "waiting": 0}
    gates.open["g"].set()
    await job
    server.faults.kill_worker()
    await client.submit(saved(5))
    found = await examined(server.url)
    assert levels(found, Level.PROBLEM) == {"queue"} and "worker has died" in found["queue"].advice


async def test_files_that_are_gone_are_told(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.run(saved())
    for path in server.folders.paths["output"].iterdir():
        path.unlink()
    found = await examined(server.url)
    assert found["files"].level is Level.UNKNOWN and "404" in found["files"].text


async def test_nothing_there_is_unreachable(server: SimulatedServer) -> None:
    async with server.faults.down():
        inspected = Examination(server.url)
        found = [finding async for finding in inspected.findings()]
        await inspected.aclose()
    assert inspected.unreachable and [finding.level for finding in found] == [Level.PROBLEM]


async def test_a_missing_path_and_a_wrong_scheme_are_told_by_the_right_address(server: SimulatedServer) -> None:
    application, inner = web.Application(), SimulatedServer()
    inner.mount(application, "/comfyui/")
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    found = await examined(url)
    await runner.cleanup()
    assert found["address"].level is Level.PROBLEM

    inspected = Examination(f"{server.url}/wrong")
    told = [finding async for finding in inspected.findings()]
    await inspected.aclose()
    assert told[-1].values == {"found": server.url} and not inspected.unreachable
    inspected = Examination(server.url.replace("http:", "https:"))
    told = [finding async for finding in inspected.findings()]
    await inspected.aclose()
    assert told[-1].values == {"found": server.url} and inspected.unreachable


async def test_https_without_a_known_certificate_says_so(server: SimulatedServer) -> None:
    async with answering(Doorkeeper(server.port, {}).handle, server_tls()) as url:
        found = await examined(url)
        assert "certificate" in found["server"].text and "ssl=False" in found["server"].advice
        assert "0.3.64 answers if its certificate is not checked" in found["certificate"].text
        plain = await examined(url.replace("https:", "http:"))
    assert plain["address"].values == {"found": url}


@asynccontextmanager
async def proxied(server: SimulatedServer, wanted: dict[str, str]) -> AsyncIterator[str]:
    async with answering(Doorkeeper(server.port, wanted).handle) as url:
        yield url


async def test_credentials_in_the_address_are_used_and_never_told(server: SimulatedServer) -> None:
    async with acomfy.Client(server.url) as client:
        await client.run(saved())
    async with proxied(server, {"Authorization": "Basic bWU6aHVudGVyMg=="}) as url:
        refused = await examined(url)
        assert refused["access"].level is Level.PROBLEM and "user:password" in refused["access"].advice
        inside = await examined(url.replace("http://", "http://me:hunter2@"))
        assert levels(inside, Level.PROBLEM) == {"uploads"}  # this proxy takes no more than 1 MiB
        assert "not in parts" in inside["files"].text  # nor does it pass Range on
        wrong = await examined(url.replace("http://", "http://me:hunter3@"))
    assert "hunter" not in repr([refused, inside, wrong])


async def test_a_redirect_is_told_without_its_query() -> None:
    location = "https://login.example/in?next=secret"
    async with answering(respond(302, Location=location)) as url:
        found = await examined(url)
    assert "https://login.example/in" in found["access"].text and "secret" not in repr(found)


async def test_a_socket_that_says_nothing_is_a_problem() -> None:
    async def silent(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for _ in socket:
                pass
            return socket
        return web.json_response(STATS)

    async with answering(silent) as url:
        found = await examined(url)
    assert "no first status comes" in found["WebSocket"].text


@pytest.mark.parametrize("body", ["", "null", "[]", "{}", '{"queue_running": 5}', '{"x": {"outputs": 5}}', "<html>"])
@pytest.mark.parametrize("status", [200, 204, 302, 400, 429, 500])
async def test_a_server_that_talks_nonsense_is_examined_to_the_end(body: str, status: int) -> None:
    async def odd(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/system_stats":
            return web.json_response(STATS)
        return web.Response(status=status, text=None if status == 204 else body)

    async with answering(odd) as url:
        found = await examined(url)
    assert found["server"].level is Level.OK and found["WebSocket"].level is Level.PROBLEM


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the command will find."""
    findings: list[Finding] = []

    class Examined:
        unreachable = False

        def __init__(self, url: str) -> None:
            self.url = url

        async def findings(self) -> AsyncIterator[Finding]:
            for finding in findings:
                yield finding

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(doctor, "Examination", Examined)
    return findings


@pytest.mark.parametrize(
    ("level", "code", "says"),
    [
        (Level.OK, 0, "all is well"),
        (Level.UNKNOWN, 0, "all is well"),
        (Level.WARNING, 0, "1 warning"),
        (Level.PROBLEM, 1, "1 problem"),
    ],
)
def test_the_exit_code_is_that_of_problems(found: list[Finding], level: Level, code: int, says: str) -> None:
    found.append(Finding("clock", level, "a text\x1b[2J", "an advice", {"seconds": 1}))
    result = CliRunner().invoke(app, ["doctor", "http://gpu"])
    assert result.exit_code == code and says in result.stdout and "an advice" in result.stdout
    assert "\x1b" not in result.stdout
    result = CliRunner().invoke(app, ["doctor", "http://gpu", "--json"])
    told = json.loads(result.stdout)
    assert (result.exit_code, told["exit_code"], told["url"]) == (code, code, "http://gpu")
    assert told["findings"] == [
        {"check": "clock", "level": level, "text": "a text\x1b[2J", "advice": "an advice", "values": {"seconds": 1}}
    ]


def test_nothing_there_ends_with_3_and_nonsense_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    result = CliRunner().invoke(app, ["doctor", "http://127.0.0.1:9"])
    assert result.exit_code == 3 and "is ComfyUI running there" in result.stdout
    assert time.monotonic() - begin < 5000 * MS
    assert CliRunner().invoke(app, ["doctor", "ftp://gpu"]).exit_code == 2
    monkeypatch.setenv("ACOMFY_URL", "http://me:hunter2@127.0.0.1:9")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(result.stdout)["url"] == "http://127.0.0.1:9" and "hunter2" not in result.output
