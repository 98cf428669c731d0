"""Files that stand in a graph as the values of inputs: found, told apart, and named by their content.

What may stand there is told in `acomfy.captures.Uploadable`. `take` puts a mark in the place of each, and `fill` puts
the server's names in the place of the marks; what happens between is the business of `acomfy.uploads`.

A name is made of the content's SHA-256, so that the same content has the same name whoever sends it, and two files of
one name cannot be confused. The extension is told by the content, since that is what loaders go by; where it does not
tell (latents, text), the file's own is kept.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from .captures import Content, CopyPicture, ServerFile, capture
from .errors import PromptRejected, WorkflowError
from .outputs import media_type, media_type_of

SUBFOLDER = "acomfy"
"""Where uploads of inputs go, below the server's input directory: LoadImage does not list what is in subfolders."""

HEAD_SIZE = 16

_DEEPEST = 200


@dataclass(frozen=True, slots=True)
class FileInput:
    """A file that stands in a graph.

    Attributes:
        node_id, input_name: Where it stands; None for one that stands alone.
        where: The same, for a person.
        mark: The string that stands in its place.
    """

    node_id: str | None
    input_name: str | None
    where: str
    content: Content
    mark: str


def take_one(value: Any, copy_picture: CopyPicture | None = None) -> FileInput:
    """Capture a file that stands alone; see `capture`.

    Raises:
        TypeError: It is nothing that can be uploaded.
        WorkflowError: It cannot be used.
    """
    try:
        content = capture(value, copy_picture)
    except (ValueError, TypeError, OSError) as exc:
        raise WorkflowError(f"the file to upload: {exc}") from exc
    if content is None or (isinstance(content, ServerFile) and content.output.text is not None):
        raise TypeError(f"what can be uploaded is a Path, bytes, an open file, a picture, an Output; not {value!r:.80}")
    return FileInput(None, None, "the file to upload", content, "")


def take(
    graph: Mapping[str, Any], describe: Callable[[str, Any], str], copy_picture: CopyPicture | None = None
) -> tuple[dict[str, Any], tuple[FileInput, ...]]:
    """Capture the files in a graph; give a graph with a mark in the place of each, and the files.

    A text that a node showed is put in as it is.

    Args:
        graph: The graph, of whose form all is well. It is not changed; the new one shares what holds no files.
        describe: Names a node for a person.
        copy_picture: As for `capture`.

    Raises:
        WorkflowError: A file cannot be used.
    """
    files: list[FileInput] = []
    marks = uuid.uuid4().hex
    taken: dict[str, Any] = {}
    for node_id, node in graph.items():
        inputs = {}
        for name, value in node["inputs"].items():
            slot = _Slot(node_id, str(name), f"{describe(node_id, node)}: input {name!r}", marks, files, copy_picture)
            inputs[name] = slot.without_files(value)
        changed = any(inputs[name] is not value for name, value in node["inputs"].items())
        taken[node_id] = {**node, "inputs": inputs} if changed else node
    return taken, tuple(files)


@dataclass(frozen=True, slots=True)
class _Slot:
    """One input of a graph, of which the files are taken."""

    node_id: str
    input_name: str
    where: str
    marks: str
    files: list[FileInput]
    copy_picture: CopyPicture | None

    def without_files(self, value: Any, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            return value  # said better by the check of the values
        if isinstance(value, list | tuple):
            items = [self.without_files(item, depth + 1) for item in value]
            return value if _identical(items, value) else items
        if isinstance(value, Mapping):
            values = {key: self.without_files(item, depth + 1) for key, item in value.items()}
            return value if _identical(values.values(), value.values()) else values
        try:
            content = capture(value, self.copy_picture)
        except (ValueError, TypeError, OSError) as exc:
            raise self.error(exc) from exc
        if content is None:
            return value
        if isinstance(content, ServerFile) and content.output.text is not None:
            return content.output.text
        mark = f"acomfy-{self.marks}-{len(self.files)}-"
        self.files.append(FileInput(self.node_id, self.input_name, self.where, content, mark))
        return mark

    def error(self, exc: Exception) -> WorkflowError:
        return WorkflowError(f"{self.where}: {exc}", node_id=self.node_id, input_name=self.input_name)


def _identical(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(left, right, strict=True))


def fill(graph: bytes, files: Iterable[FileInput], names: Iterable[str]) -> bytes:
    """Put the names that the server gave in the place of the marks."""
    for file, name in zip(files, names, strict=True):
        graph = graph.replace(b'"%b"' % file.mark.encode(), orjson.dumps(name))
    return graph


def refused(files: Iterable[FileInput], rejection: PromptRejected) -> list[int]:
    """Give the places of those files that a rejection is about: the server may have lost them."""
    blamed = {(problem.node_id, problem.input_name) for problem in rejection.problems}
    return [place for place, file in enumerate(files) if (file.node_id, file.input_name) in blamed]


# --- Names ---------------------------------------------------------------------------------------------------------

_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "image/svg+xml": "svg",
    "image/x-exr": "exr",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-msvideo": "avi",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mpeg": "mp3",
    "audio/mp4": "m4a",
    "audio/wav": "wav",
    "model/gltf-binary": "glb",
}
_PLAIN = re.compile(r"[a-z0-9]{1,12}")


def stored_name(sha256: str, head: bytes, filename: str = "") -> str:
    """Give the name under which content is stored: of its hash, and with the extension that loaders expect.

    Args:
        head: The first bytes of the content.
        filename: What the file is called here; "" when it has no name.
    """
    return f"{sha256[:32]}.{_extension(media_type_of(head), filename)}"


def _extension(kind: str, filename: str) -> str:
    suffix = os.path.splitext(filename)[1][1:].lower()
    suffix = suffix if _PLAIN.fullmatch(suffix) else ""
    known = _EXTENSIONS.get(kind)
    if known is None:
        return suffix or "bin"
    named = media_type(f"x.{suffix}") if suffix else ""
    # Films and sounds share their containers (mp4, m4a, mov; webm, mkv; ogg, opus): there the name tells more.
    moving = ("video", "audio")
    alike = named == kind or (named.partition("/")[0] in moving and kind.partition("/")[0] in moving)
    return suffix if alike else known
