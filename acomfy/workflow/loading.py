"""A graph out of whatever it is kept in: API JSON, the editor's JSON, a picture, a film, a dict.

The order of the looks: what kind of file it is, by its first bytes; then what the JSON in it is, by its form and never
by a name. Of a file with both graphs the prompt is taken, since that is what ran: no ``object_info`` is needed, and
nothing can have changed since.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

from ..errors import MetadataError, WorkflowError, WorkflowFormatError
from .graph import Graph, check_format, is_editor_format, is_request

if TYPE_CHECKING:  # what reads files and converts is imported when it is needed: most load API format, or a dict
    from ..conversion.text import Moment
    from ..definitions import Definitions
    from ..embedded import Embedded

Source: TypeAlias = str | bytes | bytearray | os.PathLike[str] | Graph
Classes: TypeAlias = "Mapping[str, Any] | Definitions | str | os.PathLike[str]"
ObjectInfo: TypeAlias = "Classes | Callable[[], Classes]"
"""The node classes of a server: what ``GET /object_info`` answers, `Definitions`, or the path of a file with it; or a
function that gives them, which is called only when they are needed."""

Format: TypeAlias = Literal["prompt", "workflow", "request"]

_HEAD = 512
_BEFORE_JSON = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"  # byte order marks, and what UTF-16 and UTF-32 put beside ASCII
_WORDS = {"prompt": "prompt", "workflow": "editor's workflow", "request": "request for POST /prompt"}
_NEEDS_OBJECT_INFO = (
    "{name} holds the editor's own workflow format, and to make a prompt of it takes the node classes of the server: "
    "pass object_info=await client.api.get_object_info(), or the path of a file with it, or run `acomfy convert`; "
    "or in ComfyUI's editor choose Workflow > Export (API) and load that file"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a workflow was loaded from.

    Attributes:
        container: ``"json"``, ``"dict"``, or the kind of file that held it: ``"png"``, ``"webp"``, ``"mp4"``, ...
        format: ``"prompt"`` (API format), ``"workflow"`` (the editor's, converted) or ``"request"`` (the body of a
            ``POST /prompt``, of which the prompt was taken).
    """

    container: str
    format: Format

    def __str__(self) -> str:
        container = self.container if self.container == "dict" else self.container.upper()
        return f"{_WORDS[self.format]} in {container}"


@dataclass(frozen=True, slots=True)
class Conversion:
    """How to convert the editor's format; see `conversion.to_api`."""

    object_info: ObjectInfo | None = None
    keep_unknown: bool = False
    rng: random.Random | None = None
    now: Moment | None = None


def read(source: Source, conversion: Conversion) -> tuple[Graph, Found]:
    """Read a graph in API format, and say where it was found.

    Raises:
        WorkflowError: It holds none, or none that can be had; the message says what to do.
        ProtocolError: The object_info is none.
        OSError: A file cannot be read.
    """
    if isinstance(source, Mapping):
        return _graph(source, "dict", "the dict", conversion)
    if isinstance(source, str) and (text := source.lstrip("\ufeff \t\r\n")).startswith("{"):
        return _graph(_parsed(text, "the text"), "json", "the text", conversion)
    if isinstance(source, bytes | bytearray):
        return _read_file(BytesIO(source), "the data", conversion)
    with Path(source).open("rb") as file:
        seekable = file if file.seekable() else BytesIO(file.read())  # a pipe
        return _read_file(seekable, os.fspath(source), conversion)


def _read_file(file: BinaryIO, name: str, conversion: Conversion) -> tuple[Graph, Found]:
    from ..embedded import kind_of, read_embedded_file

    head = file.read(_HEAD)
    kind = kind_of(head)
    file.seek(0)
    if not kind:
        _check_begins_as_json(head, name)
        return _graph(_parsed(file.read(), name), "json", name, conversion)
    try:
        embedded = read_embedded_file(file)
    except MetadataError as exc:
        raise WorkflowFormatError(f"{name}: {exc}") from exc
    return _embedded_graph(embedded, name, conversion)


def _check_begins_as_json(head: bytes, name: str) -> None:
    """Refuse what is no JSON object before all of it is read: it may be a model of many gigabytes."""
    text = head.lstrip(_BEFORE_JSON)
    binary = text[:1] not in (b"{", b"[") if text else b"\0" in head
    if not head:
        raise WorkflowFormatError(f"{name} holds no workflow: it is empty")
    if len(head) == _HEAD and binary:
        raise WorkflowFormatError(
            f"{name} holds no workflow: it begins neither as JSON does nor as a kind of file that ComfyUI writes"
        )


def _embedded_graph(embedded: Embedded, name: str, conversion: Conversion) -> tuple[Graph, Found]:
    if embedded.prompt is not None and _is_prompt(embedded.prompt):
        return _as_sent(embedded.prompt), Found(embedded.kind, "prompt")
    for graph in (embedded.workflow, embedded.prompt):
        if graph:
            return _graph(graph, embedded.kind, name, conversion)
    raise WorkflowFormatError(
        f"{name} ({embedded.kind.upper()}) holds neither a prompt nor a workflow: ComfyUI wrote none into it "
        "(--disable-metadata), or it was saved anew by a program or a site that dropped them"
    )


def _is_prompt(graph: Mapping[str, Any]) -> bool:
    try:
        check_format(graph)
    except WorkflowError:
        return False
    return bool(graph)


def _as_sent(graph: Graph) -> Graph:
    """Leave out what the server noted in the nodes.

    It keeps ``is_changed`` in the prompt that it writes into files, often as NaN, and takes the value of a prompt that
    has one for its own (ComfyUI execution.py IsChangedCache, 0.3.64): such a node would never be run again.
    """
    return {
        node_id: {key: value for key, value in node.items() if key != "is_changed"} for node_id, node in graph.items()
    }


def _graph(found: Any, container: str, name: str, conversion: Conversion) -> tuple[Graph, Found]:
    """Make a graph of JSON that was found, by its form."""
    if is_request(found):
        graph, _ = _graph(found["prompt"], container, name, conversion)
        return graph, Found(container, "request")
    if not is_editor_format(found):
        return found, Found(container, "prompt")
    if conversion.object_info is None:
        raise WorkflowFormatError(_NEEDS_OBJECT_INFO.format(name=name))
    from ..conversion import to_api

    definitions = definitions_of(conversion.object_info)
    graph = to_api(found, definitions, keep_unknown=conversion.keep_unknown, rng=conversion.rng, now=conversion.now)
    return graph, Found(container, "workflow")


def definitions_of(object_info: ObjectInfo) -> Definitions:
    """Read node classes, from a file when it is a path.

    Raises:
        ProtocolError: It is something else.
        WorkflowFormatError: The file is not JSON.
        OSError: The file cannot be read.
    """
    from ..definitions import Definitions

    if callable(object_info):
        object_info = object_info()
    if isinstance(object_info, str | os.PathLike):
        return Definitions(_parsed(Path(object_info).read_bytes(), os.fspath(object_info)))
    return Definitions.of(object_info)


def _parsed(text: str | bytes | bytearray, name: str) -> Any:
    try:
        return json.loads(text)  # not orjson: integers of any size stay exact
    except UnicodeDecodeError as exc:
        raise WorkflowFormatError(f"{name} is not JSON: byte {exc.start} is no {exc.encoding} text") from None
    except RecursionError:
        raise WorkflowFormatError(f"{name} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as exc:
        raise WorkflowFormatError(f"{name} is not JSON: {exc}") from None
