"""``acomfy nodes``: a Python module with a class for each node class of the server."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..codegen import MADE_BY, generate
from .arguments import UsageError
from .classes import Classes, ObjectInfoFile, Server, Simulate
from .ends import OTHER_CODES, in_words

EXIT_CODES = f"Exit codes: 0 written; {OTHER_CODES}."


def nodes(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="NAME.py", help="The module to write, and NAME.pyi beside it.")
    ] = Path("nodes.py"),
    server: Server = None,
    object_info: ObjectInfoFile = None,
    simulate: Simulate = False,
) -> None:
    """Write a typed builder: a Python class for each node class of the server.

    Graphs are built of them in Python, completed by the editor and checked by mypy or pyright; see acomfy.building.
    """
    with in_words():
        if out.suffix not in (".py", ".pyi") or not out.stem.isidentifier() or keyword.iskeyword(out.stem):
            raise UsageError(f"--out {out}: Python imports no module of that name; write for example nodes.py")
        module, stub = out.with_suffix(".py"), out.with_suffix(".pyi")
        for path in (module, stub):
            _check_is_ours(path)
        generated = generate(Classes(server, simulate, object_info)())
        _write(module, generated.module)
        _write(stub, generated.stub)
    for class_type, why in generated.skipped.items():
        print(f"acomfy: left out {class_type!r}: {why}", file=sys.stderr)
    print(f"{module} and {stub}: {len(generated.classes)} node classes")


def _check_is_ours(path: Path) -> None:
    """Refuse to write over what somebody else wrote."""
    try:
        begin = path.read_bytes()[:200] if path.exists() else b""
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from None
    if begin and MADE_BY.encode() not in begin:
        raise UsageError(f"--out {path}: there is another file of that name, which `acomfy nodes` did not write")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from None
