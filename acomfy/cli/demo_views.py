"""Lay the demonstration of a fleet out for a terminal of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .ends import printable
from .views import clock, gauge

if TYPE_CHECKING:
    from .demo_books import Books, Finding
    from .demo_play import Post, Scene

_COLUMNS = ("worker", "its server", "state", "done", "warm model")
_NARROW = 60
_BAR_WIDTH = 40
_STATES = {"busy": "green", "idle": "dim", "killed": "bold red", "down": "red", "starting": "dim"}


def draw(scene: Scene, width: int) -> RenderableType:
    """Draw the workers, each with its server, and how far the prompts are."""
    table = Table.grid(padding=(0, 2, 0, 0))
    columns = [name for name in _COLUMNS if name != "its server" or width >= _NARROW]
    for name in columns:
        table.add_column(no_wrap=True, overflow="ellipsis", justify="right" if name == "done" else "left")
    table.add_row(*(Text(name, "dim") for name in columns))
    for post in scene.posts:
        table.add_row(*(_cell(post, name) for name in columns))
    part = scene.finished / scene.prompts
    return Group(Text(""), table, Text(""), gauge(part, "cyan", min(_BAR_WIDTH, width - 1)), Text(how_far(scene)))


def _cell(post: Post, column: str) -> Text:
    match column:
        case "worker":
            return Text(post.name)
        case "its server":
            return Text(post.server.removeprefix("http://"))
        case "state":
            return Text(post.state, _STATES.get(post.state, ""))
        case "done":
            return Text(str(post.done))
    return Text(printable(post.warm.removesuffix(".safetensors")))


def how_far(scene: Scene) -> str:
    """Say in a line how far the prompts are."""
    if scene.begun is None:
        return "starting ..."
    return (
        f"{scene.finished} of {scene.prompts} prompts done, {scene.in_queue} in the queue, {scene.rate:.1f} a second, "
        f"{clock(scene.seconds)}"
    )


def proof(books: Books) -> RenderableType:
    """Lay out what was found."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in books.findings():
        style = {True: "green", False: "bold red", None: ""}[finding.holds]
        table.add_row(Text(mark(finding), style), Text(finding.text))
    return Group(Text(""), table, Text(""), Text(verdict(books), "bold green" if books.holds else "bold red"))


def mark(finding: Finding) -> str:
    """Say in a word whether something is as it should be."""
    return {True: "ok", False: "WRONG", None: ""}[finding.holds]


def verdict(books: Books) -> str:
    """Say what it all came to."""
    rate = len(books.ends) / books.seconds if books.seconds else 0.0
    took = f"{books.seconds:.1f} s, {rate:.1f} prompts a second"
    if books.holds:
        return f"nothing was lost, and nothing finished twice ({took})"
    return f"that is not as it should be ({took})"
