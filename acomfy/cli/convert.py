"""``acomfy convert``: whatever holds a workflow, written in API format."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..workflow import Workflow
from .arguments import UsageError, load_workflow
from .classes import Classes, ObjectInfoFile, Server, Simulate
from .ends import OTHER_CODES, accept_any_text, counted, in_words

EXIT_CODES = f"Exit codes: 0 written; {OTHER_CODES}."


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="A file of the editor, or a picture, film or sound that ComfyUI saved; - is stdin."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT", help="Where to write it; - or nothing is stdout.")
    ] = None,
    server: Server = None,
    object_info: ObjectInfoFile = None,
    simulate: Simulate = False,
    keep_unknown: Annotated[
        bool, typer.Option("--keep-unknown", help="Keep nodes of classes that the server has not, as far as that goes.")
    ] = False,
) -> None:
    """Write a workflow in API format, which is what runs.

    The editor's own format takes the node classes of the server, which is asked for them only then.
    """
    with in_words():
        if out is not None and out.exists() and Path(source).exists() and out.samefile(source):
            raise UsageError(f"--out {out}: that is the file it is read from; only the prompt would be left of it")
        workflow = load_workflow(source, Classes(server, simulate, object_info), keep_unknown=keep_unknown)
        _write(workflow, out)
    print(f"acomfy: {source}: {workflow.found}, {counted(len(workflow), 'node')}", file=sys.stderr)


def _write(workflow: Workflow, out: Path | None) -> None:
    text = workflow.to_json()
    if out is None or str(out) == "-":
        accept_any_text()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # JSON is, whatever the terminal speaks
        print(text)
        return
    try:
        out.write_text(f"{text}\n", encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"cannot write {out}: {exc.strerror}") from None
