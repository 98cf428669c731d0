"""A workflow drawn as trees: each output node with what feeds it, what was drawn already by name only."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich.cells import cell_len, set_cell_size

from ..definitions import Definitions
from ..workflow import Workflow, is_link, title_of

_NARROWEST = 40  # columns that are left for the text; a branch that leaves less begins again at the margin
_LONGEST_VALUE = 60
_LONGEST_PROSE = 500  # prompts are what one looks for
_PLAIN = re.compile(r"[\w./:+-]+")


class Trees:
    """The lines of a workflow's trees.

    Args:
        definitions: Tells the names of outputs; None numbers them.
        width: Columns to keep within.
    """

    def __init__(self, workflow: Workflow, definitions: Definitions | None, width: int) -> None:
        self._nodes = workflow.to_dict()
        self._definitions = definitions
        self._width = width
        self._drawn: set[str] = set()
        self._waiting: list[str] = []
        taken = {link.source for link in workflow.links()}
        self._roots = [node_id for node_id in self._nodes if node_id not in taken]

    def lines(self) -> Iterator[str]:
        """Yield the lines, every node once; a node of a cycle that no output needs is a tree of its own."""
        for root in [*self._roots, *self._nodes]:
            self._waiting.append(root)
            while self._waiting:
                node_id = self._waiting.pop()
                if node_id not in self._drawn:
                    yield self._name(node_id)
                    yield from self._below(node_id, "")

    def _below(self, node_id: str, margin: str) -> Iterator[str]:
        """Draw what a node is given: its values in a paragraph, then a branch for each link."""
        self._drawn.add(node_id)
        inputs = self._nodes[node_id]["inputs"]
        links = {name: value for name, value in inputs.items() if is_link(value)}
        values = ", ".join(f"{name}={_shown(value)}" for name, value in inputs.items() if name not in links)
        bar = f"{margin}{'│ ' if links else '  '}"
        yield from textwrap.wrap(
            values, max(self._width, len(bar) + 20), initial_indent=bar, subsequent_indent=bar, break_on_hyphens=False
        )
        for name in links:
            last = name == list(links)[-1]
            yield from self._branch(name, links[name], margin, last)

    def _branch(self, name: str, link: Any, margin: str, last: bool) -> Iterator[str]:
        source, slot = link[0], int(link[1])
        head = f"{margin}{'└' if last else '├'} {name}: {self._name(source)}{self._output(source, slot)}"
        inner = margin + ("  " if last else "│ ")
        if source not in self._nodes:
            yield f"{head}, which is not there"
        elif source in self._drawn:
            yield f"{head}, see above"
        elif len(inner) > self._width - _NARROWEST:
            self._waiting.append(source)
            yield f"{head}, see below"
        else:
            yield head
            yield from self._below(source, inner)

    def _name(self, node_id: str) -> str:
        node = self._nodes.get(node_id)
        if node is None:
            return node_id
        title, class_type = title_of(node), node["class_type"]
        return f"{node_id} {class_type}{f' {title!r}' if title and self._says_more(title, class_type) else ''}"

    def _says_more(self, title: str, class_type: str) -> bool:
        """Tell whether a title is not what the editor gives to every new node of the class."""
        if self._definitions is not None and class_type in self._definitions:
            return title not in (class_type, self._definitions[class_type].display_name)
        return _letters(title) != _letters(class_type)  # "Save Image" says nothing of a SaveImage

    def _output(self, node_id: str, slot: int) -> str:
        """Name the output that is taken, where the node has several or it is not the first."""
        class_type = self._nodes[node_id]["class_type"] if node_id in self._nodes else ""
        if self._definitions is None or class_type not in self._definitions:
            return f" [{slot}]" if slot else ""
        names = self._definitions[class_type].output_names
        if len(names) < 2 and not slot:
            return ""
        return f" {names[slot]}" if slot < len(names) else f" [{slot}]"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        text = value
    longest = _LONGEST_PROSE if isinstance(value, str) and " " in value else _LONGEST_VALUE
    return text if cell_len(text) <= longest else f"{set_cell_size(text, longest - 1).rstrip()}…"


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def sizes(nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the nodes that say how large pictures are, by id: ``{"width": 512, "height": 768, "batch_size": 4}``."""
    for node_id, node in nodes.items():
        found = {name: node["inputs"].get(name) for name in ("width", "height", "batch_size", "length")}
        if isinstance(found["width"], int) and isinstance(found["height"], int):
            yield node_id, {name: value for name, value in found.items() if isinstance(value, int)}
