"""Nodes that misbehave, for tests: a server has them only when asked, ``server.add_node(*odd_nodes.ALL)``.

Each takes a ``value`` of any type where it can stand between two other nodes.
"""

from __future__ import annotations

import time
from typing import Any

from .nodes import ExecutionBlocker, Node, NodeContext, NodeResult, OutOfMemoryError

_ANY: tuple[str, dict[str, Any]] = ("*", {})
_SECONDS = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0, "step": 0.01})
_TICK = 0.01

_ODD_VALUES: dict[str, Any] = {
    "nan": [float("nan")],
    "infinity": [float("inf"), float("-inf")],
    "huge": [2**64, -(2**70)],
    "null": [None],
    "text": "abc",  # ComfyUI takes a bare string for a list, and shows its letters
    "nested": [{"deep": [1, "two", None, {"three": 3.0}]}],
    "surrogate": ["\ud83d"],
    "empty": [],
}


def _raise(context: NodeContext, value: Any, message: str) -> None:
    raise RuntimeError(message)


def _run_out_of_memory(context: NodeContext, value: Any) -> None:
    raise OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)")


async def _sleep(context: NodeContext, value: Any, seconds: float) -> Any:
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        context.progress(passed, seconds)
        await context.sleep(min(_TICK, seconds - passed))
    context.progress(seconds, seconds)
    return value


async def _ignore_interrupts(context: NodeContext, value: Any, seconds: float) -> Any:
    await context.sleep(seconds)
    return value


def _expand(context: NodeContext, value: Any, seconds: float) -> NodeResult:
    branch = {"class_type": "Sleep", "inputs": {"value": value, "seconds": seconds}}
    last = {"class_type": "Join", "inputs": {"first": ["1", 0], "second": ["2", 0], "third": ["3", 0]}}
    return NodeResult((["4", 0],), expand={"1": branch, "2": branch, "3": branch, "4": last})


def _mix(context: NodeContext, ratio: float, left: Any = None, right: Any = None) -> Any:
    return left if ratio < 0.5 else right


def _needed_to_mix(ratio: float, left: Any = None, right: Any = None) -> list[str]:
    return ["left"] if ratio < 0.5 else ["right"]


def _say(context: NodeContext, text: str, broadcast: bool) -> NodeResult:
    context.send_text(text, broadcast=broadcast)
    context.send("acomfy.simulator.said", {"text": text, "node": context.node_id}, broadcast=broadcast)
    return NodeResult(ui={"text": [text]})


RAISE = Node("Raise", _raise, required={"value": _ANY, "message": ("STRING", {"default": "it broke"})}, outputs=("*",))
"""Raises RuntimeError with the message."""

OUT_OF_MEMORY = Node("OutOfMemory", _run_out_of_memory, required={"value": _ANY}, outputs=("*",))
"""Fails as a device without memory does."""

SLEEP = Node("Sleep", _sleep, required={"value": _ANY, "seconds": _SECONDS}, outputs=("*",), concurrent=True)
"""Sleeps and shows progress every 10 ms, when it also notices an interrupt; other nodes may run beside it."""

IGNORE_INTERRUPTS = Node(
    "IgnoreInterrupts", _ignore_interrupts, required={"value": _ANY, "seconds": _SECONDS}, outputs=("*",)
)
"""Sleeps without progress: an interrupt takes effect only when the next node begins."""

BLOCK_BRANCH = Node(
    "BlockBranch",
    lambda context, value, message: ExecutionBlocker(message or None),
    required={"value": _ANY, "message": ("STRING", {"default": ""})},
    outputs=("*",),
)
"""Keeps every node behind it from running; with a message, the client is told in an ``execution_error``."""

ODD_OUTPUT = Node(
    "OddOutput",
    lambda context, kind: NodeResult(ui={"value": _ODD_VALUES[kind]}),
    required={"kind": (list(_ODD_VALUES),)},
    output_node=True,
)
"""Shows NaN, infinity, integers beyond 64 bits, null, a bare string, nested values or a lone surrogate."""

OUTPUT_WITHOUT_UI = Node(
    "OutputWithoutUi", lambda context, value: value, required={"value": _ANY}, outputs=("*",), output_node=True
)
"""An output node that shows nothing: no ``executed`` when it runs, ``"output": null`` when it is cached."""

EXPAND = Node("Expand", _expand, required={"value": _ANY, "seconds": _SECONDS}, outputs=("*",))
"""Expands into three sleeping nodes side by side and a `JOIN` behind them, with ids like ``4.0.0.3``."""

JOIN = Node(
    "Join",
    lambda context, first, second, third: first,
    required={"first": _ANY, "second": _ANY, "third": _ANY},
    outputs=("*",),
)
"""Waits for three values and gives the first."""

LAZY_MIX = Node(
    "LazyMix",
    _mix,
    required={"ratio": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0})},
    optional={"left": ("*", {"lazy": True}), "right": ("*", {"lazy": True})},
    outputs=("*",),
    needed=_needed_to_mix,
)
"""Begins, then asks for one of its two inputs, and begins again when that is there."""

SAY = Node(
    "Say",
    _say,
    required={"text": ("STRING", {"default": "hello"}), "broadcast": ("BOOLEAN", {"default": False})},
    output_node=True,
)
"""Sends progress text (binary event 3) and a message of a type of its own."""

ALL = (
    RAISE,
    OUT_OF_MEMORY,
    SLEEP,
    IGNORE_INTERRUPTS,
    BLOCK_BRANCH,
    ODD_OUTPUT,
    OUTPUT_WITHOUT_UI,
    EXPAND,
    JOIN,
    LAZY_MIX,
    SAY,
)
