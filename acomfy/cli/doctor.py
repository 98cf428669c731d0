"""``acomfy doctor``: what is well with a server and the way to it, what is not, and what to do about it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..diagnosis import Finding, Level, exit_code
from .arguments import DEFAULT_SERVER, server_url
from .ends import NO_SERVER, accept_any_text, in_words, printable
from .examination import Examination

EXIT_CODES = (
    "Exit codes: 0 all is well, or there are warnings only; 1 there are problems; 2 the command line is wrong; "
    "3 nothing answers there."
)

_STYLES = {Level.OK: "green", Level.UNKNOWN: "dim", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
_WORDS = {Level.UNKNOWN: "?"}
_LEVEL_WIDTH = 8


def doctor(
    url: Annotated[
        str | None,
        typer.Argument(metavar="URL", help=f"The ComfyUI server; without it $ACOMFY_URL, else {DEFAULT_SERVER}."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Examine a server and the way to it, and say what to do about what is wrong.

    Nothing is run, and nothing is changed. Three prompts without content are posted, which ComfyUI refuses; its log
    tells of them. That shows whether messages arrive, and how much a proxy lets through.
    """
    with in_words():
        code = asyncio.run(_examine(server_url(url), as_json))
    raise typer.Exit(code)


async def _examine(url: str, as_json: bool) -> int:
    accept_any_text()
    examination, found = Examination(url), list[Finding]()
    console = Console(highlight=False)
    try:
        if not as_json:
            console.print(Text(f"examining {printable(examination.url)}", "bold"), soft_wrap=True)
        async for finding in examination.findings():
            found.append(finding)
            if not as_json:
                _tell(console, finding)
    finally:
        await examination.aclose()
    code = NO_SERVER if examination.unreachable else exit_code(found)
    if as_json:
        print(json.dumps({"url": examination.url, "exit_code": code, "findings": [asdict(one) for one in found]}))
    else:
        console.print(Text(_sum(found), "bold"), soft_wrap=True)
    return code


def _tell(console: Console, finding: Finding) -> None:
    """Print a finding; in a terminal with all its lines below each other, else what is long as one line."""
    level = Text(_WORDS.get(finding.level, str(finding.level)), _STYLES[finding.level])
    text = Text.assemble((f"{finding.check}: ", "bold"), printable(finding.text))
    advice = Text(printable(finding.advice))
    if console.is_terminal:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=_LEVEL_WIDTH)
        table.add_row(level, text)
        if finding.advice:
            table.add_row("", advice)
        console.print(table)
        return
    level.pad_right(_LEVEL_WIDTH + 1 - len(level))
    console.print(level + text, soft_wrap=True)
    if finding.advice:
        console.print(Text(" " * (_LEVEL_WIDTH + 1)) + advice, soft_wrap=True)


def _sum(found: list[Finding]) -> str:
    problems = sum(finding.level is Level.PROBLEM for finding in found)
    warnings = sum(finding.level is Level.WARNING for finding in found)
    if not problems and not warnings:
        return "all is well"
    parts = [(problems, "problem"), (warnings, "warning")]
    return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in parts if count)
