"""HTML for notebooks: pictures with captions, tables of nodes, bars. Pure; everything that is shown is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_LARGEST = 8 << 20
"""Bytes of a file that are put into a page; of a larger one only the name is shown."""
_SHOWN_TEXT = 2000
_SHOWN_VALUE = 80

_FIGURE = "display:inline-block;vertical-align:top;margin:0 12px 12px 0;max-width:256px;font:12px sans-serif"
_CELL = "text-align:left;vertical-align:top"


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of one output.

    Attributes:
        caption: Which node gave it.
        name: Its file's name; "" for a text.
        media_type: For example ``image/png``.
        data: Its bytes; None when they are not here.
        text: Its text; None when it is none.
    """

    caption: str
    name: str
    media_type: str
    data: bytes | memoryview | None = None
    text: str | None = None


def gallery(outputs: Iterable[Shown], *, empty: str = "nothing") -> str:
    """Show outputs side by side."""
    figures = "".join(map(_figure, outputs))
    return f"<div>{figures}</div>" if figures else f"<div><i>{escape(empty)}</i></div>"


def _figure(output: Shown) -> str:
    caption = escape(" · ".join(part for part in (output.caption, output.name) if part))
    return f'<figure style="{_FIGURE}">{_body(output)}<figcaption>{caption}</figcaption></figure>'


def _body(output: Shown) -> str:
    if output.text is not None:
        shown = output.text[:_SHOWN_TEXT] + ("…" if len(output.text) > _SHOWN_TEXT else "")
        return f'<pre style="white-space:pre-wrap">{escape(shown)}</pre>'
    kind = output.media_type.partition("/")[0]
    if output.data is None or len(output.data) > _LARGEST or kind not in ("image", "video", "audio"):
        return f"<div><i>{escape(output.media_type)}</i></div>"
    address = f"data:{escape(output.media_type)};base64,{b64encode(output.data).decode()}"
    if kind == "image":
        return f'<img src="{address}" style="max-width:100%">'
    return f'<{kind} src="{address}" controls style="max-width:100%"></{kind}>'


def graph(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Show a workflow's nodes as a table: id, class, title, inputs."""
    rows = [
        (node_id, str(node.get("class_type", "")), _title(node), _inputs(node.get("inputs")))
        for node_id, node in nodes.items()
    ]
    return table(("node", "class", "title", "inputs"), rows)


def _title(node: Mapping[str, Any]) -> str:
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) and title != node.get("class_type") else ""


def _inputs(inputs: Any) -> str:
    if not isinstance(inputs, Mapping):
        return ""
    return ", ".join(f"{name}={_value(value)}" for name, value in inputs.items())


def _value(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str):
        return f"→{value[0]}"  # a link
    text = repr(value)
    return text if len(text) <= _SHOWN_VALUE else text[:_SHOWN_VALUE] + "…"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay texts out as a table."""
    head = "".join(f'<th style="{_CELL}">{escape(text)}</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(text)}</td>' for text in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bars(rows: Iterable[tuple[str, str, float | None]]) -> str:
    """Show rows of a name, what it is doing, and a bar from 0 to 1; None is no bar."""
    lines = []
    for name, doing, progress in rows:
        bar = "" if progress is None else f'<progress max="1" value="{progress:.3f}"></progress> {progress:.0%}'
        lines.append(f"<tr><td>{escape(name)}</td><td>{escape(doing)}</td><td>{bar}</td></tr>")
    return f'<table style="font:12px sans-serif">{"".join(lines)}</table>'
