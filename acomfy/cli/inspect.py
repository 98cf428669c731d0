"""``acomfy inspect``: what is in a workflow, told to people or to programs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..definitions import Definitions
from ..workflow import Workflow, describe
from .arguments import load_workflow, source_of
from .classes import Classes, ObjectInfoFile, Server, Simulate
from .ends import OTHER_CODES, accept_any_text, counted, drawable, in_words, printable
from .trees import Trees, sizes
from .unnamed import with_unnamed

EXIT_CODES = f"Exit codes: 0 told; {OTHER_CODES}."

_WITHOUT_CLASSES = (
    "note: read without the server's node classes, which tell how values are called; --server or --object-info has them"
)


def inspect(
    workflow: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A workflow, in whatever file it is: JSON, picture, film, sound; - is stdin."
        ),
    ],
    server: Server = None,
    object_info: ObjectInfoFile = None,
    simulate: Simulate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Show a workflow: its nodes as a tree, their inputs, the models it needs, its seeds and sizes.

    No server is needed. With one (--server, --object-info) its names for outputs are shown, whether it has the models,
    and which inputs are seeds.
    """
    with in_words():
        classes = Classes(server, simulate, object_info)
        definitions = classes() if classes.chosen else None
        loaded, note = _load(workflow, definitions)
    accept_any_text()
    if as_json:
        print(json.dumps(_plain(loaded, definitions)))
        return
    width = shutil.get_terminal_size().columns
    for line in _told(workflow, loaded, definitions, width):
        print(drawable(printable(line)))
    if note is not None:
        print(f"\n{note}")


def _load(name: str, definitions: Definitions | None) -> tuple[Workflow, str | None]:
    """Load a workflow; the editor's format without node classes too, as far as it tells itself what it holds."""
    if definitions is not None:
        return load_workflow(name, definitions, keep_unknown=True), None
    source = source_of(name)
    asked = []

    def none() -> Definitions:
        asked.append(True)
        return Definitions({})

    workflow = load_workflow(name if isinstance(source, Path) else source, none, keep_unknown=True)
    if not asked:
        return workflow, None
    found, workflow = workflow.found, with_unnamed(workflow, source)
    workflow.found = found
    return workflow, _WITHOUT_CLASSES


def _told(name: str, workflow: Workflow, definitions: Definitions | None, width: int) -> Iterator[str]:
    links = len(workflow.links())
    yield f"{name}: {workflow.found}; {counted(len(workflow), 'node')}, {counted(links, 'link')}"
    yield ""
    yield from Trees(workflow, definitions, width).lines()
    for title, lines in _sections(workflow, definitions).items():
        if lines:
            yield from ("", f"{title}:", *(part for line in lines for part in _indented(line, width)))


def _indented(line: str, width: int) -> list[str]:
    """Indent a line, and wrap it where somebody looks at it; whoever reads a pipe wants it whole."""
    if not (sys.stdout.isatty() or "COLUMNS" in os.environ):
        return [f"  {line}"]
    return textwrap.wrap(
        line, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _sections(workflow: Workflow, definitions: Definitions | None) -> dict[str, list[str]]:
    nodes = workflow.to_dict()
    return {
        "models and files": [str(need) for need in workflow.requirements(definitions)],
        "seeds": [
            f"{value} ({describe(node_id, nodes[node_id])}, {input_name})"
            for (node_id, input_name), value in workflow.seeds(definitions).items()
        ],
        "sizes": [f"{_size(size)} ({describe(node_id, nodes[node_id])})" for node_id, size in sizes(nodes)],
    }


def _size(size: dict[str, int]) -> str:
    more = [f"{name} {value}" for name, value in size.items() if name not in ("width", "height")]
    return ", ".join([f"{size['width']} x {size['height']}", *more])


def _plain(workflow: Workflow, definitions: Definitions | None) -> dict[str, Any]:
    nodes, found = workflow.to_dict(), workflow.found
    return {
        "container": found and found.container,
        "format": found and found.format,
        "nodes": nodes,
        "files": [
            {
                "node_id": need.node_id,
                "input_name": need.input_name,
                "value": need.value,
                "folder": need.folder,
                "available": need.available,
            }
            for need in workflow.requirements(definitions)
        ],
        "seeds": [
            {"node_id": node_id, "input_name": input_name, "value": value}
            for (node_id, input_name), value in workflow.seeds(definitions).items()
        ],
        "sizes": [{"node_id": node_id, **size} for node_id, size in sizes(nodes)],
    }
