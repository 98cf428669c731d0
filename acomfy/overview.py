"""What a server is doing, put together from its answers and messages: `Overview`, for those who show it.

Who hears what decides what can be known (ComfyUI server.py, execution.py, 0.3.40 to 0.38). The queue, the history and
the memory are everybody's. How far a prompt is goes to the ``client_id`` that submitted it alone; of a prompt that was
submitted without one it goes to everybody, as does everything's ``progress_state`` on 0.3.45 to 0.3.56. For all others
the server's log tells how far a sampler is, since samplers draw their bars there. To listen under the client_id of an
application is no way out: the server would send to the newer socket alone, and the application would go deaf.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from . import events
from .errors import JobFailed, ProtocolError
from .listings import HistoryEntry
from .look import QueueItem, QueueSnapshot
from .loose import member, seconds_of, text_of
from .outputs import FileReference, produced_by
from .progress import sinks, weigh, weights
from .server_info import Device, LogEntry, SystemStats

_MOST_LINES = 50
_REMEMBERED = 1_000  # more than the 300 that the server keeps and gives again
_LONGEST_LINE = 500
_ID_LENGTH = 8
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_BAR = re.compile(r"\d+%\|[^|]*\| *(\d{1,6})/(\d{1,6}) +\[")
_PROMPT_OVER = "Prompt executed in"
_MOST_OUTPUTS = 3

Nodes: TypeAlias = Mapping[str, Mapping[str, Any]]
Known: TypeAlias = tuple[str | None, str, float | None, str]
"""How far a prompt is: the node that runs, its step, the part that is done, and what tells it; see `Running`."""


@dataclass(frozen=True, slots=True)
class Running:
    """A prompt that runs.

    Attributes:
        client: The client_id that submitted it; None when it was submitted without.
        node: The node that runs, by title or class; None when that is not told.
        step: Of that node, for example ``12/20``; "" when it has none.
        progress: 0 to 1, of the whole prompt when ``told_by`` is ``messages``, of a sampler when it is ``log``.
        told_by: ``messages``, ``log``, or "" when nothing tells.
        seconds: Since it was first seen to run.
        at_least: It ran already when it was first looked for, so that it runs longer.
    """

    prompt_id: str
    client: str | None
    summary: str
    node: str | None
    step: str
    progress: float | None
    told_by: str
    seconds: float
    at_least: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt that waits.

    Attributes:
        created_at: When it was submitted, in seconds since 1970 by the server's clock (since 0.3.69); None: untold.
    """

    prompt_id: str
    client: str | None
    summary: str
    created_at: float | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A prompt that has ended.

    Attributes:
        state: ``completed``, ``failed`` or ``cancelled``.
        duration: Seconds; None when the server does not tell.
        files: Names of the files that it made.
        picture: A saved picture among them; None when there is none.
        note: What failed, in words; "" when nothing did.
    """

    prompt_id: str
    state: str
    summary: str
    duration: float | None
    ended_at: float | None
    files: tuple[str, ...]
    picture: FileReference | None
    note: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the machine or of a device, in bytes."""

    name: str
    used: int
    total: int

    @property
    def part(self) -> float:
        """The used part, 0 to 1."""
        return min(self.used / self.total, 1.0) if self.total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Overview:
    """What is known of a server at one moment.

    Attributes:
        version: ComfyUI's; None when it is not known.
        failure: Why the server does not answer; "" when it does.
        failing_for: Seconds since it stopped answering.
        waiting: In the order in which they will run.
        ended: The newest first.
        preview: The newest preview of what runs, as a picture file; None when there is none.
        lines: The last lines of the server's log.
        known: False before the first answer.
    """

    version: str | None
    failure: str
    failing_for: float
    running: tuple[Running, ...]
    waiting: tuple[Waiting, ...]
    ended: tuple[Ended, ...]
    memories: tuple[Memory, ...]
    preview: memoryview | None = field(repr=False, compare=False)
    lines: tuple[str, ...] = field(repr=False)
    known: bool

    def to_the_second(self) -> Overview:
        """Give the same with whole seconds: two that are equal look the same."""
        running = tuple(replace(prompt, seconds=int(prompt.seconds)) for prompt in self.running)
        return replace(self, running=running, failing_for=int(self.failing_for))


class ServerView:
    """Know what a server is doing from what it is told; times are given, so that it needs no clock.

    Attributes:
        remaining: Prompts that wait or run by the newest ``status``; None when none came.
        statuses: How many ``status`` messages came.
    """

    def __init__(self) -> None:
        self.remaining: int | None = None
        self.statuses = 0
        self._stats: SystemStats | None = None
        self._running_items: tuple[QueueItem, ...] = ()
        self._waiting: tuple[Waiting, ...] = ()  # not the snapshot: that holds all graphs
        self._queue_known = False
        self._ended: tuple[Ended, ...] = ()
        self._since: dict[str, tuple[float, bool]] = {}
        self._steps: dict[str, events.Progress] = {}
        self._states: dict[str, events.ProgressState] = {}
        self._ran: dict[str, dict[str, None]] = {}
        self._preview: tuple[str | None, memoryview] | None = None
        self._told_last: str | None = None
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._line = ""
        self._logged: dict[LogEntry, None] = {}
        self._bar: tuple[int, int] | None = None
        self._failure: tuple[str, float] | None = None

    # --- What it is told -------------------------------------------------------------------------------------------

    def failed(self, reason: str, now: float) -> None:
        """Note that the server does not answer; what was known of it stays until it does."""
        self._failure = reason, self._failure[1] if self._failure is not None else now
        self.remaining = None
        self._queue_known = False

    def answered(self) -> bool:
        """Note that the server answers; tell whether it did not before."""
        failed, self._failure = self._failure is not None, None
        return failed

    def take_stats(self, stats: SystemStats) -> None:
        """Take the answer to ``GET /system_stats``."""
        self._stats = stats

    def take_history(self, entries: Iterable[HistoryEntry]) -> None:
        """Take the newest history entries, in the order in which they ended."""
        self._ended = tuple(_ended(entry) for entry in reversed(tuple(entries)))

    def take_queue(self, queue: QueueSnapshot, now: float) -> bool:
        """Take the answer to ``GET /queue``; tell whether other prompts run, or wait, than before."""
        waiting = tuple(_waiting(item) for item in queue.pending)
        changed = (self._running_items, self._waiting) != (queue.running, waiting)
        running = {item.prompt_id for item in queue.running}
        if not running <= self._since.keys():
            self._bar = None if self._queue_known else self._bar
        self._since = {
            prompt_id: self._since.get(prompt_id, (now, not self._queue_known)) for prompt_id in sorted(running)
        }
        self._running_items, self._waiting, self._queue_known = queue.running, waiting, True
        known = queue.ids()
        for told in (self._steps, self._states, self._ran):
            for prompt_id in told.keys() - known:
                del told[prompt_id]
        if self._preview is not None and self._preview[0] not in running:
            self._preview = None
        return changed

    def take_event(self, event: events.Event) -> None:
        """Take a message of the WebSocket."""
        match event:
            case events.Status(queue_remaining=remaining):
                self.statuses += 1
                self.remaining = remaining
            case events.Progress(prompt_id=str(prompt_id), node=node):
                self._steps[prompt_id] = event
                self._told_last = prompt_id
                if node is not None:
                    self._ran.setdefault(prompt_id, {})[node] = None
            case events.ProgressState(prompt_id=prompt_id):
                self._states[prompt_id] = event
                self._told_last = prompt_id
            case events.PreviewImage(prompt_id=prompt_id, view=view):
                # Pictures of prompts without client_id name none, but come after a step of theirs.
                self._preview = prompt_id or self._told_last, view

    def take_logs(self, entries: Iterable[LogEntry]) -> None:
        """Take what the server wrote to its log; entries that were taken before are passed over."""
        for entry in entries:
            if entry in self._logged:
                continue
            self._logged[entry] = None
            for part in re.split(r"(?<=[\n\r])", entry.text):
                self._write(part)
        while len(self._logged) > _REMEMBERED:
            del self._logged[next(iter(self._logged))]

    def _write(self, part: str) -> None:
        """Add a part of a line; what comes after a carriage return is written over it."""
        line = _ANSI.sub("", part)
        self._line = (self._line + line.strip("\r\n"))[:_LONGEST_LINE]
        if (bar := _BAR.search(self._line)) is not None and int(bar[2]) > 0:
            self._bar = int(bar[1]), int(bar[2])
        if _PROMPT_OVER in self._line:  # newer servers write [INFO] before it
            self._bar = None
        if part.endswith("\r"):
            self._line = ""
        elif part.endswith("\n"):
            if self._line.strip():
                self._lines.append(self._line.rstrip())
            self._line = ""

    # --- What it tells ---------------------------------------------------------------------------------------------

    def overview(self, now: float) -> Overview:
        """Put together what is known."""
        reason, since = self._failure or ("", now)
        open_line = (self._line.rstrip(),) if self._line.strip() else ()
        return Overview(
            version=self._stats.comfyui_version if self._stats is not None else None,
            failure=reason,
            failing_for=max(0.0, now - since),
            running=tuple(self._running(item, now) for item in self._running_items),
            waiting=self._waiting,
            ended=self._ended,
            memories=tuple(memories(self._stats)) if self._stats is not None else (),
            preview=None if self._preview is None else self._preview[1],
            lines=(*self._lines, *open_line),
            known=self._stats is not None,
        )

    def _running(self, item: QueueItem, now: float) -> Running:
        since, at_least = self._since.get(item.prompt_id, (now, True))
        node, step, progress, told_by = self._how_far(item)
        return Running(
            item.prompt_id,
            _client(item),
            summary(item.prompt),
            node,
            step,
            progress,
            told_by,
            max(0.0, now - since),
            at_least,
        )

    def _how_far(self, item: QueueItem) -> Known:
        nodes = _nodes(item.prompt)
        state, step = self._states.get(item.prompt_id), self._steps.get(item.prompt_id)
        if state is not None and _readable(state):
            return _by_state(nodes, state)
        return _by_step(nodes, step, self._ran.get(item.prompt_id, {})) if step is not None else self._by_log(nodes)

    def _by_log(self, nodes: Nodes) -> Known:
        """Read off the newest bar in the log how far a sampler is; which one, if only one takes so many steps."""
        if self._bar is None:
            return None, "", None, ""
        value, most = self._bar
        sampler = _sampler(nodes, most)
        name = None if sampler is None else _name(nodes, sampler)
        return name, f"{value}/{most}", _share(value, most), "log"


def _by_state(nodes: Nodes, state: events.ProgressState) -> Known:
    part = weigh(weights(nodes, None), cached=(), ran=(), step=None, state=state)
    shown = reversed(list(state.nodes.values()))
    running = next((node for node in shown if node.state == "running"), None)
    if running is None:
        return None, "", part, "messages"
    return _name(nodes, running.display_node_id), _step(running.value, running.max), part, "messages"


def _by_step(nodes: Nodes, step: events.Progress, ran: Collection[str]) -> Known:
    node_id = step.node or _sampler(nodes, step.max)
    if node_id is None:  # servers before 0.3.45 do not tell it of a prompt without client_id
        return None, _step(step.value, step.max), _share(step.value, step.max), "messages"
    order = [*(other for other in ran if other != node_id), node_id]
    part = weigh(weights(nodes, None), cached=(), ran=order, step=step, state=None)
    return _name(nodes, node_id), _step(step.value, step.max), part, "messages"


def memories(stats: SystemStats) -> Iterator[Memory]:
    """Give the memory of each device and of the machine; once where they are the same (CPU)."""
    for device in stats.devices:
        if device.type != "cpu" and device.vram_total:
            yield Memory(
                device_name(device), device.vram_total - min(device.vram_free, device.vram_total), device.vram_total
            )
    if stats.ram_total:
        yield Memory("RAM", stats.ram_total - min(stats.ram_free, stats.ram_total), stats.ram_total)


def device_name(device: Device) -> str:
    """Name a device for a person, of ComfyUI names like ``cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync``."""
    name = device.name.partition(" : ")[0].strip()
    return name or (device.type if device.index is None else f"{device.type}:{device.index}")


def summary(graph: Mapping[str, Any]) -> str:
    """Say in a few words what a prompt is: its samplers, or its first node, and its outputs."""
    nodes = _nodes(graph)
    if not nodes:
        return "a prompt without nodes"
    outputs = sinks(nodes, None)
    heavy = [node_id for node_id, weight in weights(nodes, None).items() if weight > 1]
    first = [
        f"{_class(nodes[node_id])} ({member(nodes[node_id].get('inputs'), 'steps')} steps)" for node_id in heavy[:2]
    ] or [_class(node) for node_id, node in nodes.items() if node_id not in outputs][:1]
    names = list(dict.fromkeys(_class(nodes[node_id]) for node_id in outputs))
    shown = ", ".join(names[:_MOST_OUTPUTS]) + (f" and {more} more" if (more := len(names) - _MOST_OUTPUTS) > 0 else "")
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    return " → ".join([", ".join(first), shown] if first else [shown]) + f", {count}"


def short(prompt_id: str) -> str:
    """Shorten an id for a person."""
    return prompt_id[:_ID_LENGTH]


def _waiting(item: QueueItem) -> Waiting:
    created_at = seconds_of(item.extra_data.get("create_time"))
    return Waiting(item.prompt_id, _client(item), summary(item.prompt), created_at)


def _client(item: QueueItem) -> str | None:
    return text_of(item.extra_data.get("client_id")) or None


def _ended(entry: HistoryEntry) -> Ended:
    produced = [thing for node_id, ui in entry.outputs.items() for thing in produced_by(node_id, ui)]
    files = [thing for thing in produced if isinstance(thing, FileReference)]
    files.sort(key=lambda file: file.type != "output")
    pictures = (file for file in files if file.media_type.startswith("image/"))
    return Ended(
        entry.prompt_id,
        str(entry.state),
        summary(entry.prompt),
        entry.duration,
        entry.ended_at,
        tuple(f"{file.subfolder}/{file.filename}" if file.subfolder else file.filename for file in files),
        next(pictures, None),
        _note(entry),
    )


def _note(entry: HistoryEntry) -> str:
    error = entry.error
    if not isinstance(error, JobFailed):
        return ""
    where = error.title or error.class_type or (f"node {error.node_id}" if error.node_id else "")
    what = " ".join(f"{error.exception_type}: {error.exception_message}".split())
    return f"{where}: {what}" if where else what


def _nodes(graph: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {node_id: node for node_id, node in graph.items() if isinstance(node, Mapping)}


def _class(node: Mapping[str, Any]) -> str:
    return text_of(node.get("class_type")) or "?"


def _name(nodes: Nodes, node_id: str) -> str:
    """Name a node by its title, else its class, else its id."""
    node = nodes.get(node_id) or nodes.get(node_id.partition(".")[0]) or {}
    return text_of(member(node.get("_meta"), "title")) or text_of(node.get("class_type")) or node_id


def _sampler(nodes: Nodes, steps: float) -> str | None:
    """Find the one node that takes so many steps; None when there is none, or several."""
    fitting = [node_id for node_id, node in nodes.items() if member(node.get("inputs"), "steps") == steps]
    return fitting[0] if len(fitting) == 1 else None


def _share(value: float, most: float) -> float:
    part = value / most if most > 0 else 0.0
    return min(part, 1.0) if part > 0 else 0.0  # NaN is neither


def _step(value: float, most: float) -> str:
    return f"{value:g}/{most:g}" if most > 1 else ""


def _readable(state: events.ProgressState) -> bool:
    try:
        return bool(state.nodes)
    except ProtocolError:
        return False
