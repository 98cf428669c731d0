"""Bars in a terminal."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import acomfy
from acomfy.terminal import draw, progress
from acomfy.watching import Row, Screen, Watch, time_left

from .graphs import gated, saved
from .shell import Gates, client, eventually, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_bars_fit_any_width(width: int) -> None:
    rows = (Row("seed 1112394739824793", "Sampler 12/20", 0.56, 4.4), Row("seed [red]7", "waiting, 3 ahead"))
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(draw(Screen(rows, 3, 2, 8, 0.31, 3665.2)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    assert "56%" in text and "31%" in text and "0:04" in text and "1:01:05" in text
    if width >= 80:
        assert "seed [red]7" in text and "waiting, 3 ahead" in text and "and 3 more" in text and "2 of 8" in text


def test_time_left_is_guessed_once_there_is_something_to_go_by() -> None:
    assert time_left(0.0, 10) is None
    assert time_left(0.25, 10) == 30


class FakeJob:
    """As much of a job as a row shows."""

    def __init__(self, index: int, state: str = "pending", progress: float = 0.0, node: str | None = None) -> None:
        self.index, self.state, self.progress, self.node = index, state, progress, node
        self.prompt = SimpleNamespace(graph=b'{"3": {"class_type": "KSampler", "_meta": {"title": "Sampler"}}}')


def test_what_runs_is_shown_before_what_waits() -> None:
    running, first, second = FakeJob(7, "in_progress", 0.5, "3"), FakeJob(1), FakeJob(2)
    watch = Watch(lambda job: f"p{job.index}")
    jobs: list[Any] = [second, first, running]
    screen = watch.screen(jobs, done=1, total=4, room=2, now=0.0)
    assert [(row.name, row.doing, row.progress) for row in screen.rows] == [
        ("p7", "Sampler", 0.5),
        ("p1", "being sent", None),
    ]
    assert (screen.more, screen.done, screen.total, screen.progress) == (1, 1, 4, 1.5 / 4)


# --- Live ----------------------------------------------------------------------------------------------------------


def terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=80, height=20, color_system=None), file


async def test_bars_show_what_runs_and_waits_and_go_at_the_end(client: acomfy.Client, gates: Gates) -> None:
    console, file = terminal()
    async with progress(client, console=console):
        runs = [asyncio.ensure_future(client.run(gated(name))) for name in ("a", "b")]
        await eventually(lambda: "Gate" in file.getvalue() and "next" in file.getvalue())
        gates.open["a"].set()
        await eventually(lambda: "1 of 2" in file.getvalue())
        gates.open["b"].set()
        await asyncio.gather(*runs)
    assert file.getvalue().endswith("\x1b[2K")  # the last line is cleared
    assert not client.jobs


async def test_where_there_is_no_terminal_nothing_is_drawn(client: acomfy.Client) -> None:
    file = io.StringIO()
    async with progress(client, console=Console(file=file)) as console:
        await client.run(saved())
        console.print("a line")
    assert file.getvalue() == "a line\n"


async def test_the_block_s_own_error_passes_and_the_bars_go(client: acomfy.Client) -> None:
    console, file = terminal()
    with pytest.raises(KeyError):
        async with progress(client, console=console):
            raise KeyError("mine")
    assert not [task for task in asyncio.all_tasks() if "_refresh" in repr(task)]
