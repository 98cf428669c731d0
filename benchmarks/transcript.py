"""The messages of one prompt as bytes ready for the socket, with a place for the prompt_id.

They are those of ComfyUI 0.3.64, in its order, as Python's ``json.dumps`` writes them. Since every prompt_id is as long
as every other, a whole transcript is made once and then only has its ids replaced.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .graphs import SAMPLER, SAVE, STREAM, workflow

PROMPT_ID = b"00000000-0000-4000-8000-000000000000"
"""Stands in a transcript where the prompt_id goes."""

PNG = b"\x89PNG\r\n\x1a\n"
_INLINE = 64 << 10
_TEXT, _BINARY = 0x81, 0x82


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prompt does.

    Attributes:
        stream: Its picture comes over the socket; else it is a file.
        steps: Steps of its sampler.
        preview: Bytes of the preview after each step; 0 for none.
        picture: Bytes of the picture. It carries the prompt_id, see `carries`.
        decodable: The picture is a PNG of noise, about as large, and carries nothing.
    """

    stream: bool = False
    steps: int = 20
    preview: int = 0
    picture: int = 12_000
    decodable: bool = False


def carries(picture: bytes, prompt_id: str) -> bool:
    """Tell whether a picture is that of a prompt."""
    return picture[len(PNG) : len(PNG) + len(PROMPT_ID)] == prompt_id.encode()


def websocket_frame(opcode: int, size: int) -> bytes:
    """Give the header of an unmasked WebSocket frame."""
    if size < 126:
        return struct.pack(">BB", opcode, size)
    if size < 1 << 16:
        return struct.pack(">BBH", opcode, 126, size)
    return struct.pack(">BBQ", opcode, 127, size)


def text_frame(kind: str, data: dict[str, Any]) -> bytes:
    """Write a message of ComfyUI as a WebSocket frame."""
    text = json.dumps({"type": kind, "data": data}).encode()
    return websocket_frame(_TEXT, len(text)) + text


def picture_header(size: int, node: str, mime: str, *, metadata: bool) -> bytes:
    """Give all of a binary frame that comes before its picture of this size."""
    if metadata:
        about = {"node_id": node, "prompt_id": PROMPT_ID.decode(), "display_node_id": node, "parent_node_id": None}
        text = json.dumps({**about, "real_node_id": node, "image_type": mime}).encode()
        head = struct.pack(">II", 4, len(text)) + text
    else:
        head = struct.pack(">II", 1, 2 if mime == "image/png" else 1)
    return websocket_frame(_BINARY, len(head) + size) + head


@lru_cache(maxsize=8)
def picture_parts(plan: Plan) -> tuple[bytes, memoryview]:
    """Give a plan's picture: its head, which has a place for the prompt_id, and the rest."""
    if plan.decodable:
        return b"", memoryview(_noise(plan.picture))
    head = PNG + PROMPT_ID
    return head, memoryview(bytes(max(0, plan.picture - len(head))))


def _noise(size: int) -> bytes:
    import PIL.Image

    side = int((size / 3) ** 0.5)
    image = PIL.Image.frombytes("RGB", (side, side), os.urandom(3 * side * side))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()


STAMP = {"prompt_id": PROMPT_ID.decode(), "timestamp": 1795492121191}
SUCCESS = text_frame("execution_success", STAMP)


@lru_cache(maxsize=8)
def transcript(plan: Plan, *, metadata: bool) -> tuple[bytes | memoryview, ...]:
    """Give the frames of a prompt from ``execution_start`` to before `SUCCESS`, joined but for large pictures."""
    parts: list[bytes | memoryview] = [b""]
    for part in _frames(plan, metadata):
        large = len(part) > _INLINE
        if large or isinstance(parts[-1], memoryview):
            parts.append(memoryview(part) if large else bytes(part))
        else:
            parts[-1] = bytes(parts[-1]) + part
    return tuple(parts)


def fill(parts: tuple[bytes | memoryview, ...], prompt_id: bytes) -> Iterator[bytes | memoryview]:
    """Put a prompt_id into a transcript."""
    for part in parts:
        yield part.replace(PROMPT_ID, prompt_id) if isinstance(part, bytes) else part


def _frames(plan: Plan, metadata: bool) -> Iterator[bytes | memoryview]:
    prompt_id = PROMPT_ID.decode()
    yield text_frame("execution_start", STAMP)
    yield text_frame("execution_cached", {"nodes": [], **STAMP})
    states: dict[str, dict[str, Any]] = {}
    for node in workflow(stream=plan.stream):
        yield _state(states, node, 0.0, 1.0, "running")
        yield text_frame("executing", {"node": node, "display_node": node, "prompt_id": prompt_id})
        if node == SAMPLER:
            yield from _steps(plan, states, metadata)
        elif node == STREAM:
            yield _state(states, node, 0.0, 1.0, "running")
            yield from _streamed_picture(plan, metadata)
            yield text_frame("progress", {"value": 0, "max": 1, "prompt_id": prompt_id, "node": node})
        elif node == SAVE:
            output = {"images": [{"filename": f"{prompt_id}_00001_.png", "subfolder": "", "type": "output"}]}
            data = {"node": node, "display_node": node, "output": output, "prompt_id": prompt_id}
            yield text_frame("executed", data)
        yield _state(states, node, states[node]["max"], states[node]["max"], "finished")


def _steps(plan: Plan, states: dict[str, dict[str, Any]], metadata: bool) -> Iterator[bytes]:
    for step in range(1, plan.steps + 1):
        yield _state(states, SAMPLER, step, plan.steps, "running")
        if plan.preview:
            yield preview_frame(plan.preview, metadata=metadata)
        data = {"value": step, "max": plan.steps, "prompt_id": PROMPT_ID.decode(), "node": SAMPLER}
        yield text_frame("progress", data)


def preview_frame(size: int, *, metadata: bool) -> bytes:
    """Give the frame of a preview of this size."""
    return picture_header(size, SAMPLER, "image/jpeg", metadata=metadata) + b"\xff\xd8\xff".ljust(size, b"\0")


def _streamed_picture(plan: Plan, metadata: bool) -> Iterator[bytes | memoryview]:
    head, rest = picture_parts(plan)
    yield picture_header(len(head) + len(rest), STREAM, "image/png", metadata=metadata) + head
    yield rest


def _state(states: dict[str, dict[str, Any]], node: str, value: float, maximum: float, state: str) -> bytes:
    """Write the ``progress_state`` after a node moved: all nodes so far."""
    ids = {"node_id": node, "prompt_id": PROMPT_ID.decode(), "display_node_id": node}
    states[node] = {"value": value, "max": maximum, "state": state, **ids, "parent_node_id": None, "real_node_id": node}
    return text_frame("progress_state", {"prompt_id": PROMPT_ID.decode(), "nodes": states})
