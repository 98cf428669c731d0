"""``acomfy watch``: what is known of a server, how it is drawn, and what it takes to know it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.style import Style
from typer.testing import CliRunner

import acomfy
from acomfy import events
from acomfy.cli import observer as observing
from acomfy.cli.app import app
from acomfy.cli.blocks import half_blocks
from acomfy.cli.observer import Observer
from acomfy.cli.views import Frame, clock, draw, picture_size
from acomfy.listings import read_history
from acomfy.look import QueueSnapshot, read_queue
from acomfy.overview import Overview, ServerView, summary
from acomfy.server_info import LogEntry, read_system_stats
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .graphs import gated, sampled, saved
from .shell import Gates, client, eventually, gates, quick_delays, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

GPU = {"name": "cuda:0 NVIDIA RTX 4090 : cudaMallocAsync", "type": "cuda", "vram_total": 24e9, "vram_free": 6e9}
STATS = {"system": {"comfyui_version": "0.33.0", "ram_total": 64e9, "ram_free": 32e9}, "devices": [GPU]}
AT = 1_760_000_000_000  # a time, in milliseconds as the server tells it


def queue(*running: str, pending: str = "", graph: Any = None, client_id: str | None = "app") -> QueueSnapshot:
    extra = {} if client_id is None else {"client_id": client_id}

    def item(prompt_id: str) -> list[Any]:
        return [1, prompt_id, sampled(steps=20) if graph is None else graph, extra, []]

    return read_queue(
        {"queue_running": [item(one) for one in running], "queue_pending": [item(one) for one in pending]}
    )


def node_progress(node_id: str, value: float, most: float, state: str = "running") -> events.NodeProgress:
    return events.NodeProgress(node_id, value, most, state, node_id)


# --- What is known ---------------------------------------------------------------------------------------------------


def test_of_a_prompt_of_others_the_log_tells_the_sampler_s_steps() -> None:
    view = ServerView()
    view.take_queue(queue("a"), 0.0)
    (running,) = view.overview(5.0).running
    assert (running.progress, running.told_by, running.node, running.client) == (None, "", None, "app")
    view.take_logs([LogEntry("1", "[INFO] got prompt\n"), LogEntry("2", "\r  0%|          | 0/20 [00:00<?, ?it/s]")])
    view.take_logs([LogEntry("3", "\r \x1b[32m60%\x1b[0m|██████    | 12/20 [00:05<00:03,  2.40it/s]")])
    (running,) = view.overview(5.0).running
    assert (running.node, running.step, running.progress, running.told_by) == ("KSampler", "12/20", 0.6, "log")
    assert view.overview(5.0).lines == ("[INFO] got prompt", " 60%|██████    | 12/20 [00:05<00:03,  2.40it/s]")
    view.take_logs([LogEntry("4", "\n[INFO] Prompt executed in 9.00 seconds\n")])
    assert view.overview(5.0).running[0].progress is None


def test_which_sampler_it_is_the_log_tells_only_if_one_takes_so_many_steps() -> None:
    graph = {"a": {"class_type": "X", "inputs": {"steps": 20}}, "b": {"class_type": "Y", "inputs": {"steps": 20}}}
    view = ServerView()
    view.take_queue(queue("a", graph=graph), 0.0)
    view.take_logs([LogEntry("1", "\r  5%|▌         | 1/20 [00:00<00:01]")])
    (running,) = view.overview(0.0).running
    assert (running.node, running.step) == (None, "1/20")


def test_what_is_told_of_a_prompt_without_client_is_used() -> None:
    view = ServerView()
    view.take_queue(queue("a", client_id=None), 0.0)
    view.take_event(events.Progress(5, 20, "a", "3"))
    (running,) = view.overview(0.0).running
    assert (running.node, running.step, running.told_by, running.client) == ("KSampler", "5/20", "messages", None)
    assert running.progress is not None and 0.1 < running.progress < 0.3
    nodes = {"4": node_progress("4", 1, 1, "finished"), "3": node_progress("3", 10, 20)}
    view.take_event(events.ProgressState("a", nodes))
    (running,) = view.overview(0.0).running
    assert running.step == "10/20" and running.progress == pytest.approx(11 / 26)
    view.take_event(events.PreviewImage(memoryview(b"one"), "image/jpeg"))  # it names nobody, and came after its step
    assert bytes(view.overview(0.0).preview or b"") == b"one"
    view.take_queue(queue("b"), 1.0)
    assert view.overview(1.0).preview is None and view.overview(1.0).running[0].progress is None


def test_a_step_that_names_no_node_is_that_of_the_sampler_that_takes_so_many() -> None:
    view = ServerView()
    view.take_queue(queue("a", client_id=None), 0.0)
    view.take_event(events.Progress(5, 20, "a"))
    (running,) = view.overview(0.0).running
    assert (running.node, running.step, running.told_by) == ("KSampler", "5/20", "messages")
    assert running.progress is not None and 0.1 < running.progress < 0.3
    view.take_event(events.Progress(5, 50, "a"))
    (running,) = view.overview(0.0).running
    assert (running.node, running.step, running.progress) == (None, "5/50", 0.1)


def test_two_overviews_that_look_the_same_are_equal() -> None:
    view = ServerView()
    view.take_queue(queue("a"), 0.0)
    assert view.overview(5.1).to_the_second() == view.overview(5.9).to_the_second()
    assert view.overview(5.9).to_the_second() != view.overview(6.0).to_the_second()


def test_how_long_a_prompt_runs_is_known_from_its_start_alone() -> None:
    view = ServerView()
    view.take_queue(queue("a", pending="b"), 10.0)
    assert (view.overview(14.0).running[0].seconds, view.overview(14.0).running[0].at_least) == (4.0, True)
    assert view.take_queue(queue("b"), 20.0)
    assert not view.take_queue(queue("b"), 21.0)
    assert (view.overview(23.0).running[0].seconds, view.overview(23.0).running[0].at_least) == (3.0, False)
    view.failed("down", 30.0)
    view.failed("still down", 35.0)
    overview = view.overview(36.0)
    assert (overview.failure, overview.failing_for) == ("still down", 6.0)
    assert view.answered() and not view.answered()
    view.take_queue(queue("c"), 40.0)
    assert view.overview(41.0).running[0].at_least  # it may have begun while nothing was known


def test_what_is_read_again_is_not_logged_twice() -> None:
    view = ServerView()
    entries = [LogEntry(str(number), f"line {number}\n") for number in range(300)]
    view.take_logs(entries)
    view.take_logs([*entries[100:], LogEntry("300", "line 300\n")])
    assert view.overview(0.0).lines[-2:] == ("line 299", "line 300") and len(view.overview(0.0).lines) == 50


def test_the_history_is_told_the_newest_first() -> None:
    file = {"filename": "a.png", "subfolder": "x", "type": "output"}
    shown = {"filename": "t.png", "subfolder": "", "type": "temp"}

    def entry(outputs: Any, *messages: Any) -> Any:
        return {
            "prompt": [0, "p", sampled(), {}, ["9"]],
            "outputs": outputs,
            "status": {"messages": list(messages), "status_str": "success", "completed": True},
        }

    error = {"prompt_id": "2", "node_id": "3", "node_type": "KSampler", "exception_type": "ValueError",
             "exception_message": "no\nway", "timestamp": AT}  # fmt: skip
    times = ["execution_start", {"timestamp": AT}], ["execution_success", {"timestamp": AT + 2500}]
    view = ServerView()
    history = {"1": entry({"9": {"images": [shown, file]}}, *times), "2": entry({}, ["execution_error", error])}
    view.take_history(read_history(history))
    failed, done = view.overview(0.0).ended
    assert (failed.state, failed.note) == ("failed", "KSampler: ValueError: no way")
    assert (done.state, done.duration, done.files) == ("completed", 2.5, ("x/a.png", "t.png"))
    assert done.picture is not None and done.picture.filename == "a.png"


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (sampled(steps=20), "KSampler (20 steps) → SaveImage, 7 nodes"),
        (saved(), "EmptyImage → SaveImage, 2 nodes"),
        ({"1": {"class_type": "RTText", "inputs": {}}}, "RTText, 1 node"),
        ({str(n): {"class_type": f"S{n}", "inputs": {}} for n in range(5)}, "S0, S1, S2 and 2 more, 5 nodes"),
        ({"1": 5, "2": {"inputs": None}}, "?, 1 node"),
        ({}, "a prompt without nodes"),
    ],
)
def test_a_prompt_is_summed_up_in_a_few_words(graph: Any, says: str) -> None:
    assert summary(graph) == says


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
graphs = st.dictionaries(
    st.text(),
    json_values | st.fixed_dictionaries({"class_type": json_values, "inputs": json_values | st.just({"steps": 20})}),
    max_size=3,
)


@given(graphs, st.text(), st.floats(), st.floats(), st.integers(30, 130), st.none() | st.integers(1, 40))
def test_whatever_is_queued_and_logged_can_be_drawn(
    graph: Any, text: str, value: float, most: float, width: int, height: int | None
) -> None:
    view = ServerView()
    view.take_stats(read_system_stats(STATS))
    view.take_queue(queue("a", pending="bc", graph=graph, client_id=text), 0.0)
    view.take_logs([LogEntry("1", text), LogEntry("2", f"\r1%|{text}| 3/0 [x")])
    view.take_event(events.Progress(value, most, "a", text))
    written = drawn(view.overview(1.0), width, height)
    assert "\x1b" not in written and "\r" not in written
    assert height is None or len(written.splitlines()) <= max(height, 14)


# --- How it is drawn -------------------------------------------------------------------------------------------------


def drawn(overview: Overview, width: int, height: int | None, picture: Any = None) -> str:
    console = Console(file=io.StringIO(), width=width, height=height or 25, color_system=None)
    console.print(draw(overview, Frame("http://gpu:8188", "open", width, height), picture))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def overview() -> Overview:
    """A busy server."""
    view = ServerView()
    view.take_stats(read_system_stats(STATS))
    view.take_queue(queue("aaaaaaaa-1", pending="bcdefghijklmno", client_id="my-app-with-a-long-id"), 0.0)
    view.take_logs(LogEntry(str(number), f"line {number}\n") for number in range(30))
    view.take_logs([LogEntry("31", "\r 25%|██▌       | 5/20 [00:01<00:04]")])
    messages = [["execution_success", {"timestamp": AT}]]
    entry = {"prompt": [0, "p", sampled(), {}, []], "outputs": {}, "status": {"messages": messages}}
    view.take_history(read_history({f"ended-{number}": entry for number in range(8)}))
    return view.overview(75.0)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [16, 24, 60])
def test_it_fits_any_terminal(overview: Overview, width: int, height: int) -> None:
    lines = drawn(overview, width, height).splitlines()
    assert len(lines) <= height and all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert "ComfyUI 0.33.0 at http://gpu:8188"[:width] in text
    assert "1 running, 14 waiting" in text and "25%" in text and "over 1:15" in text
    assert "18.0 of 24.0 GB" in text and "32.0 of 64.0 GB" in text
    if height >= 24:
        assert "waiting: 14" in text and "ended, newest first" in text and "done" in text
    if height == 60:
        assert "line 29" in text and "5/20" in text


def test_a_report_leaves_nothing_out(overview: Overview) -> None:
    text = drawn(overview, 80, None)
    assert text.count("KSampler (20 steps)") == 15 and text.count("done") == 8


def test_a_server_that_does_not_answer_shows_what_was_known(overview: Overview) -> None:
    view = ServerView()
    view.failed("connection refused\x1b[2J", 0.0)
    text = drawn(view.overview(65.0), 80, 24)
    assert "failing for 1:05: connection refused\\x1b[2J" in text
    text = drawn(ServerView().overview(0.0), 80, 24)
    assert "asking" in text


def test_times_are_written_as_on_a_clock() -> None:
    assert (clock(7.9), clock(754), clock(3723)) == ("0:07", "12:34", "1:02:03")


def pixels(text: Any) -> list[list[Style]]:
    """Give the styles of a drawn picture's cells."""
    return [[Style.parse(str(span.style)) for span in line.spans] for line in text.split("\n")]


def test_a_picture_is_drawn_two_pixels_a_cell() -> None:
    image = Image.new("RGB", (4, 3), "red")
    image.putpixel((0, 1), (0, 0, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    text = half_blocks(file.getvalue(), 4, 2)
    assert text is not None and text.plain == "▀▀▀▀\n▀▀▀▀"
    (first, *_), (below, *_) = pixels(text)
    assert (str(first.color and first.color.name), str(first.bgcolor and first.bgcolor.name)) == ("#ff0000", "#0000ff")
    assert (str(below.color and below.color.name), str(below.bgcolor and below.bgcolor.name)) == ("#ff0000", "#000000")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_pictures_of_every_mode_are_drawn_within_their_room(mode: str, kind: str) -> None:
    file = io.BytesIO()
    with contextlib.suppress(OSError):
        Image.new(mode, (300, 100)).save(file, kind)
    text = half_blocks(file.getvalue(), 40, 20)
    if not file.getvalue():
        assert text is None  # this kind of file has no such mode
    else:
        assert text is not None and len(text.split("\n")) == 7 and text.split("\n")[0].cell_len == 40


@given(st.binary(max_size=200))
def test_what_is_no_picture_is_not_drawn(data: bytes) -> None:
    assert half_blocks(data, 40, 20) is None


def test_a_picture_has_room_in_a_large_terminal_only(overview: Overview) -> None:
    assert picture_size(60, 24) == (0, 0) == picture_size(120, 12)
    file = io.BytesIO()
    Image.new("RGB", (512, 512)).save(file, "JPEG")
    for width, height in ((80, 24), (200, 50)):
        picture = half_blocks(file.getvalue(), *picture_size(width, height))
        lines = drawn(overview, width, height, picture).splitlines()
        assert len(lines) <= height and all(len(line) <= width for line in lines) and "▀" in lines[3]


# --- A server --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "_ROUND", 20 * MS)
    monkeypatch.setattr(observing, "_LEAST_ROUND", 5 * MS)
    monkeypatch.setattr(observing, "_delays", quick_delays)


@pytest.fixture
async def observer(server: SimulatedServer) -> AsyncIterator[Observer]:
    observer = Observer(server.url)
    async with observer.watching():
        yield observer
    await observer.aclose()


async def test_the_queue_the_history_and_the_log_are_kept_up_with(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, observer: Observer
) -> None:
    jobs = [await client.submit(gated(name)) for name in ("a", "b", "c")]
    await eventually(lambda: len(observer.overview().running) == 1 and len(observer.overview().waiting) == 2)
    assert observer.overview().running[0].prompt_id == jobs[0].prompt_id
    assert observer.overview().running[0].progress is None  # its progress goes to its client alone
    gates.open["a"].set()
    await jobs[0]
    await eventually(lambda: [ended.prompt_id for ended in observer.overview().ended] == [jobs[0].prompt_id])
    await eventually(lambda: any("Prompt executed" in line for line in observer.overview().lines))
    assert observer.overview().ended[0].picture is not None
    picture = await observer.picture(observer.overview().ended[0].picture)  # type: ignore[arg-type]  # just seen
    assert picture is not None and half_blocks(picture, 10, 10) is not None


async def test_a_prompt_without_client_id_is_followed_by_messages(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, observer: Observer
) -> None:
    await eventually(lambda: observer.hears == "open")
    body = b'{"prompt": %s}' % acomfy.Workflow(gated("a")).to_json().encode()
    await client.api.post_prompt(body)
    await eventually(lambda: any(prompt.told_by == "messages" for prompt in observer.overview().running))
    assert observer.overview().running[0].node == "Gate"
    gates.open["a"].set()


async def test_a_server_that_is_idle_is_asked_one_small_question_a_round(
    server: SimulatedServer, observer: Observer
) -> None:
    async def rounds(count: int) -> None:
        asked = server.requests["GET", "/prompt"]
        await server.wait_for(lambda: server.requests["GET", "/prompt"] > asked + count)

    await eventually(lambda: observer.overview().known and observer.hears == "open")
    await rounds(3)  # in which it looks at what may have happened before the socket was open
    queues, histories = server.requests["GET", "/queue"], server.requests["GET", "/history"]
    await rounds(10)
    assert (server.requests["GET", "/queue"], server.requests["GET", "/history"]) == (queues, histories)


async def test_a_server_that_was_down_is_followed_again(
    server: SimulatedServer, client: acomfy.Client, observer: Observer
) -> None:
    await eventually(lambda: observer.overview().known)
    async with server.faults.down():
        await eventually(lambda: "Cannot connect" in observer.overview().failure)
    await eventually(lambda: not observer.overview().failure and observer.hears == "open")
    job = await client.submit(saved())
    await job
    await eventually(lambda: [ended.prompt_id for ended in observer.overview().ended] == [job.prompt_id])


async def test_a_deaf_socket_is_told_and_opened_again(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, observer: Observer
) -> None:
    await eventually(lambda: observer.hears == "open" and observer.overview().known)
    ours = set(server.sockets.by_sid) - {client.client_id}
    server.faults.go_deaf()
    job = await client.submit(gated("a"))
    await eventually(lambda: len(observer.overview().running) == 1)
    await eventually(lambda: ours <= set(server.sockets.by_sid) and observer.hears == "open")
    gates.open["a"].set()
    await job


async def test_without_a_socket_it_is_asked_by_http(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    with server.faults.refuse_sockets(403):
        observer = Observer(server.url)
        async with observer.watching():
            job = await client.submit(gated("a"))
            await eventually(lambda: len(observer.overview().running) == 1)
            assert observer.hears == "refused"
            gates.open["a"].set()
            await eventually(lambda: bool(observer.overview().ended))
        await observer.aclose()
    await job


# --- The command -----------------------------------------------------------------------------------------------------


def test_a_report_is_printed_where_there_is_no_terminal_and_3_tells_of_no_server() -> None:
    result = CliRunner().invoke(app, ["watch", "--server", "http://127.0.0.1:9"])
    assert (result.exit_code, "no answer from" in result.stderr) == (3, True)
    assert CliRunner().invoke(app, ["watch", "--server", "ftp://gpu"]).exit_code == 2


async def test_once_prints_one_picture_of_the_state(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.run(saved())
    result = await asyncio.to_thread(CliRunner().invoke, app, ["watch", "--once", "--server", server.url])
    assert result.exit_code == 0, result.output
    assert "nothing runs" in result.stdout and "done" in result.stdout and "test_00001_.png" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: our end, and that of the command."""
    ours, its = pty.openpty()
    yield ours, its
    os.close(ours)
    os.close(its)


async def test_in_a_terminal_it_draws_until_ctrl_c_and_leaves_the_screen_as_it_was(
    server: SimulatedServer, terminal: tuple[int, int]
) -> None:
    ours, its = terminal
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "acomfy", "watch", "--server", server.url]
    process = await asyncio.create_subprocess_exec(*command, stdin=its, stdout=its, stderr=its, env=env)
    try:
        shown = await asyncio.to_thread(_read_until, ours, b"nothing runs")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        shown += await asyncio.to_thread(_read_until, ours, b"\x1b[?25h")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"\x1b[?1049h" in shown and b"\x1b[?1049l" in shown
    assert not re.search(rb"\x1b\[(3[1-7]|38)", shown)  # NO_COLOR
    assert b"Traceback" not in shown


def _read_until(file: int, text: bytes) -> bytes:
    read, deadline = b"", time.monotonic() + 20_000 * MS
    while text not in read and time.monotonic() < deadline:
        if select.select([file], [], [], 0.1)[0]:
            read += os.read(file, 65536)
    return read
