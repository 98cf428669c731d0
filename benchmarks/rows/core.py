"""The pure core alone: what a frame costs the router, against parsing it with orjson."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import orjson

from acomfy.router import Router, TrackedPrompt

from ..report import Row
from ..scale import Scale
from ..transcript import PROMPT_ID, SUCCESS, Plan, text_frame, transcript

LARGE, LARGER = "progress_state of 30 KB", "progress_state of 300 KB"
FAMILY = "core"
_PROMPTS = 100


def payloads(raw: bytes) -> Iterator[tuple[bool, bytes]]:
    """Take unmasked WebSocket frames apart; tell of each whether it is text."""
    at = 0
    while at < len(raw):
        text, length = raw[at] == 0x81, raw[at + 1]
        at += 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(raw[at : at + size], "big")
            at += size
        yield text, raw[at : at + length]
        at += length


def frames_by_kind() -> dict[str, list[bytes]]:
    """Give the text frames of one prompt by kind, with places for its id, and two large ``progress_state``."""
    raw = b"".join(bytes(part) for part in transcript(Plan(), metadata=True))
    raw += SUCCESS + text_frame("status", {"status": {"exec_info": {"queue_remaining": 7}}})
    found: dict[str, list[bytes]] = {}
    for _, frame in payloads(raw):
        found.setdefault(orjson.loads(frame)["type"], []).append(frame)
    return {**found, LARGE: [_large_state(135)], LARGER: [_large_state(1350)]}


def _large_state(count: int) -> bytes:
    ids = {"prompt_id": PROMPT_ID.decode(), "display_node_id": "7", "parent_node_id": None, "real_node_id": "7"}
    nodes = {str(node): {"value": 3.0, "max": 20.0, "state": "running", "node_id": "7", **ids} for node in range(count)}
    return next(payloads(text_frame("progress_state", {"prompt_id": PROMPT_ID.decode(), "nodes": nodes})))[1]


def cost(kind: str, *, live: int = _PROMPTS, repeats: int) -> tuple[float, float]:
    """Measure nanoseconds a frame of a kind: of the router with so many live prompts, and of ``orjson.loads``.

    Of several runs, in turns, the fastest counts: what slows a loop that does nothing but compute is not the loop's.
    """
    others = [str(uuid.uuid4()) for _ in range(live - _PROMPTS)]
    runs = [(_routed(kind, others), _timed(orjson.loads, _frames(kind, _prompt_ids()))) for _ in range(repeats)]
    return min(routed for routed, _ in runs), min(parsed for _, parsed in runs)


def _prompt_ids() -> list[str]:
    return [str(uuid.uuid4()) for _ in range(_PROMPTS)]


def _frames(kind: str, prompt_ids: Sequence[str]) -> list[bytes]:
    templates = frames_by_kind()[kind]
    return [frame.replace(PROMPT_ID, prompt_id.encode()) for prompt_id in prompt_ids for frame in templates]


def _routed(kind: str, others: Sequence[str]) -> float:
    router, prompt_ids = Router(), _prompt_ids()
    for prompt_id in [*others, *prompt_ids]:
        router.register(TrackedPrompt(prompt_id, b"{}"))
    if kind != "execution_start":
        for frame in _frames("execution_start", prompt_ids):
            router.receive_text(frame)
    return _timed(router.receive_text, _frames(kind, prompt_ids))


def _timed(take: Callable[[bytes], object], frames: Sequence[bytes]) -> float:
    start = time.perf_counter_ns()
    for frame in frames:
        take(frame)
    return (time.perf_counter_ns() - start) / len(frames)


def rows(scale: Scale) -> Iterator[Row]:
    """Measure each kind of frame, all frames of one job together, and one kind with ever more live prompts."""
    kinds = frames_by_kind()
    costs = {kind: cost(kind, repeats=scale.repeats) for kind in kinds}
    large, larger = costs.pop(LARGE), costs.pop(LARGER)
    ours, theirs = (sum(costs[kind][side] * len(kinds[kind]) for kind in costs) for side in (0, 1))
    frames = sum(len(kinds[kind]) for kind in costs)
    yield _row(f"a frame of a job, on average of its {frames}", ours / frames, theirs / frames, "<= 2.0")
    yield replace(_row(LARGE, *large, "<= 0.1"), growth=larger[0] / large[0])
    for kind, (routed, parsed) in costs.items():
        yield _row(f"{kind}, {len(kinds[kind])} a job", routed, parsed, "<= 2.0")
    levels = (scale.live, 10 * scale.live)
    few, many = (cost("executing", live=live, repeats=scale.repeats)[0] for live in levels)
    name = f"executing, {levels[1]:,} live prompts"
    yield Row(FAMILY, name, many, "ns", f"{levels[0]:,} live", few, many / few, many / few, wanted="<= 1.10")


def _row(name: str, routed: float, parsed: float, wanted: str) -> Row:
    return Row(FAMILY, name, routed, "ns", "orjson.loads", parsed, routed / parsed, wanted=wanted)
