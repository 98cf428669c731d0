"""Whose event is this, and what state is that prompt in.

Theory of operation
-------------------
One socket carries the messages of all prompts of a client. The router knows the live ones by their prompt_id; a frame
costs one look-up, whatever their number. It applies what the frame says to its prompt and gives the prompt back, with
the typed event, when somebody must be told: a verdict was reached, or somebody listens. It never waits, and nothing
that a server sends makes it raise.

A prompt moves ``pending`` -> ``in_progress`` -> a verdict, and there it stays. The rules of each message are one
method of the table ``_RULES``:

* ``execution_start`` opens a *run*. One that was seen, on a connection that has stood since, makes the run *intact*:
  nothing of it can have been missed, and at ``execution_success`` its outputs are complete without a look at history.
* ``execution_success`` comes before the history entry; ``executing`` with node null comes after it. For a prompt
  without verdict the latter means that the verdict was missed: HTTP must be asked (``over``).
* ``execution_error`` of type ``ExecutionBlocked`` ends nothing.
* A cached output node sends ``executed`` without ``executing``, and its output may be null.
* Messages about prompts that are not ours are normal: jobs posted without client_id are broadcast.

Every loss (the connection ended, a frame could not be read) starts a new *generation*. Runs of an older one are no
longer intact. A node that streams pictures (SaveImageWebsocket) is complete when its ``executing`` and the prompt's
verdict fall into one generation.

A picture without metadata (event 1) names no prompt. The server runs one prompt at a time, so it belongs to the one in
whose *window* it arrives: opened by any message of a live prompt, closed by its end, by a message about any other
prompt, and by a loss. Its node is that of the last ``executing`` or ``progress``. Outside a window it is dropped and
counted.

``progress``, ``progress_state`` and ``status`` are nearly all of the traffic. Only the newest is kept, unparsed,
until somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import orjson

from . import events, frames, verdict
from .errors import ProtocolError
from .outputs import Produced, StreamedImage, in_graph_order, produced_by
from .progress import weigh, weights
from .verdict import JobState, Verdict

NO_NODES: frozenset[str] = frozenset()

_STATUS = b'{"type": "status", '


class Run:
    """What is known of one execution of a prompt.

    Attributes:
        generation: The router's when ``execution_start`` was seen; None when that was missed.
        node: The node of the last ``executing``.
        ran: The nodes of the prompt that began, in order.
        step: The newest ``progress`` frame since ``node`` began, unparsed.
        state: The newest ``progress_state`` frame, unparsed.
        preview: The newest picture that is no output.
        executed: ``{node_id: (display_node, ui)}`` of what was produced so far.
        streamed: The pictures of each streaming node, in order.
        streaming_since: The generation in which each streaming node began.
    """

    __slots__ = (
        "cached",
        "executed",
        "generation",
        "node",
        "preview",
        "ran",
        "start",
        "state",
        "step",
        "streamed",
        "streaming_since",
    )

    def __init__(self, generation: int | None) -> None:
        self.generation = generation
        self.start: int | None = None
        self.cached: list[str] | None = None
        self.node: str | None = None
        self.ran: dict[str, None] = {}
        self.step: bytes | None = None
        self.state: bytes | None = None
        self.preview: events.PreviewImage | None = None
        self.executed: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.streamed: dict[str, list[events.PreviewImage]] = {}
        self.streaming_since: dict[str, int] = {}


class TrackedPrompt:
    """A live prompt, as the router knows it.

    Attributes:
        graph: The prompt as it was encoded for ``POST /prompt``.
        stream_nodes: Its nodes whose pictures are outputs, not previews.
        listeners: How many want every event, not only the verdict.
        number: Its place in the server's order; None until the POST was answered.
        run: None until it was seen to run.
        over: True when its end was seen but not its verdict: HTTP must be asked.
        verdict: None while it is live.
        intact: With a verdict, True when no output can have been missed.
    """

    __slots__ = (
        "_progress",
        "graph",
        "intact",
        "listeners",
        "number",
        "over",
        "prompt_id",
        "run",
        "state",
        "stream_nodes",
        "targets",
        "touched",
        "verdict",
    )

    def __init__(
        self,
        prompt_id: str,
        graph: bytes,
        stream_nodes: frozenset[str] = NO_NODES,
        targets: tuple[str, ...] | None = None,
    ) -> None:
        self.prompt_id = prompt_id
        self.graph = graph
        self.stream_nodes = stream_nodes
        self.targets = targets
        self.state = JobState.PENDING
        self.number: float | None = None
        self.listeners = 0
        self.touched = False
        self.run: Run | None = None
        self.over = False
        self.verdict: Verdict | None = None
        self.intact = False
        self._progress = 0.0

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Parse the prompt: its nodes by id, in graph order."""
        nodes: dict[str, dict[str, Any]] = orjson.loads(self.graph)
        return nodes

    def titles(self) -> dict[str, str]:
        """Give the titles of the nodes that have one."""
        titles = {}
        for node_id, node in self.nodes().items():
            meta = node.get("_meta")
            if isinstance(meta, dict) and isinstance(meta.get("title"), str):
                titles[node_id] = meta["title"]
        return titles

    def progress(self) -> float:
        """Give the part that is done, 0 to 1. Never goes back; 1.0 on success alone."""
        if self.verdict is not None and self.verdict.state is JobState.COMPLETED:
            return 1.0
        if self.run is not None:
            self._progress = max(self._progress, self._weighed(self.run))
        return self._progress

    def _weighed(self, run: Run) -> float:
        state = None if run.state is None else _readable(frames.decode_text, run.state)
        step = None if run.step is None else _readable(frames.decode_text, run.step)
        return weigh(
            weights(self.nodes(), self.targets),
            cached=run.cached or (),
            ran=run.ran,
            step=step if isinstance(step, events.Progress) else None,
            state=state if isinstance(state, events.ProgressState) else None,
        )

    def produced(self) -> list[Produced]:
        """Give what the prompt produced so far, in graph order."""
        run = self.run
        if run is None:
            return []
        items: list[Produced] = []
        for display_node, ui in run.executed.values():
            items.extend(produced_by(display_node, ui))
        for node_id, images in run.streamed.items():
            for index, image in enumerate(images):
                items.append(StreamedImage(node_id, index, image.view, image.mime))
        if len(run.executed) + len(run.streamed) < 2:
            return items
        return in_graph_order(items, self.nodes())

    def incomplete_stream(self, generation: int) -> str | None:
        """Give a streaming node of which pictures may have been missed; None when there is none."""
        for node_id in sorted(self.stream_nodes):
            if self.run is None or self.run.streaming_since.get(node_id) != generation:
                return node_id
        return None


def _readable(decoder: Callable[[bytes], events.Event], frame: bytes) -> events.Event | None:
    try:
        event = decoder(frame)
        if isinstance(event, events.ProgressState):
            event.nodes  # noqa: B018  # parses it
        return event
    except ProtocolError:
        return None


Delivery: TypeAlias = tuple[TrackedPrompt | None, events.Event]
"""The prompt concerned (None: it belongs to no prompt of ours) and what happened."""


class Router:
    """Route frames to live prompts.

    Attributes:
        live: The tracked prompts by prompt_id.
        generation: Counts the losses. Two equal values have nothing missed between them.
        listeners: How many want the events that belong to no prompt.
        unattributed: Pictures that were dropped because they belong to no live prompt.
        unreadable: Frames that were malformed.
        statuses: How many ``status`` messages came.
    """

    def __init__(self) -> None:
        self.live: dict[str, TrackedPrompt] = {}
        self.generation = 0
        self.listeners = 0
        self.unattributed = 0
        self.unreadable = 0
        self.statuses = 0
        self._status: bytes | None = None
        self._window: TrackedPrompt | None = None

    def register(self, prompt: TrackedPrompt) -> None:
        """Begin to route to a prompt. Before its POST: a cached prompt can end before the answer is read."""
        self.live[prompt.prompt_id] = prompt

    def rekey(self, prompt: TrackedPrompt, prompt_id: str) -> None:
        """Take over the prompt_id that a server before 0.3.45 chose instead of ours."""
        self.forget(prompt)
        prompt.prompt_id = prompt_id
        self.live[prompt_id] = prompt

    def forget(self, prompt: TrackedPrompt) -> None:
        """Stop routing to a prompt. Does nothing when that was done."""
        if self.live.get(prompt.prompt_id) is prompt:
            del self.live[prompt.prompt_id]
        if self._window is prompt:
            self._window = None

    def lose(self) -> None:
        """Note that messages may have been missed."""
        self.generation += 1
        self._window = None

    @property
    def queue_remaining(self) -> int | None:
        """Prompts waiting and running on the server, by the newest ``status``; None when none came since a loss."""
        event = None if self._status is None else _readable(frames.decode_text, self._status)
        return event.queue_remaining if isinstance(event, events.Status) else None

    def receive(self, frame: str | bytes) -> Delivery | None:
        """Take a frame: str is a text frame, bytes a binary one. See `receive_text` and `receive_binary`."""
        if isinstance(frame, str):
            return self.receive_text(frame.encode("utf-8", "surrogatepass"))
        return self.receive_binary(frame)

    def receive_text(self, frame: bytes) -> Delivery | None:
        """Take a text frame; give back what somebody must be told, or None."""
        prompt_id = frames.peek_prompt_id(frame)
        if prompt_id is not None:
            return self._step(prompt_id, frame)
        if frame.startswith(_STATUS):
            self.statuses += 1
            self._status = frame
            if not self.listeners:
                return None
        try:
            kind, data = frames.parse(frame)
            rule = _RULES.get(kind)
            if rule is None:
                return self._other(kind, data)
            prompt = self._addressee(data)
            if prompt is None:
                return None
            rule(self, prompt, data)
            if prompt.listeners or prompt.over or prompt.verdict is not None:
                return prompt, frames.to_event(kind, data)
        except ProtocolError:
            self._unread()
        return None

    def receive_binary(self, frame: bytes) -> Delivery | None:
        """Take a binary frame; give back what somebody must be told, or None. Its picture is not copied."""
        try:
            event = frames.decode_binary(frame)
        except ProtocolError:
            self._unread()
            return None
        if isinstance(event, events.PreviewImage):
            return self._picture(event)
        if isinstance(event, events.Text) and self._window is not None:
            return (self._window, event) if self._window.listeners else None
        return (None, event) if self.listeners else None

    # --- Text frames -----------------------------------------------------------------------------------------------

    def _addressee(self, data: Any) -> TrackedPrompt | None:
        """Find the live prompt that a message is about, and open its window; close any when it is about another."""
        try:
            prompt_id = data["prompt_id"]
            prompt = self.live.get(prompt_id)
        except (KeyError, TypeError):
            # The replay after a reconnect ({"node": id} alone) names no prompt: it tells nothing.
            return None
        self._window = prompt
        if prompt is None or prompt.verdict is not None:
            return self._settled(prompt, data)
        prompt.touched = True
        return prompt

    def _settled(self, prompt: TrackedPrompt | None, data: dict[str, Any]) -> TrackedPrompt | None:
        """Pass on, of a prompt that has its verdict, only the word that its history can be read."""
        self._window = None
        if prompt is not None and "node" in data and data["node"] is None:
            prompt.over = True
            return prompt
        return None

    def _step(self, prompt_id: str, frame: bytes) -> Delivery | None:
        """Keep the newest ``progress`` or ``progress_state`` of a prompt."""
        prompt = self._window
        if prompt is None or prompt.prompt_id != prompt_id:
            prompt = self._window = self.live.get(prompt_id)
            if prompt is None:
                return None
        if prompt.verdict is not None:
            return None
        run = prompt.run or self._joined(prompt)
        prompt.touched = True
        if frames.is_progress_state(frame):
            run.state = frame
        else:
            run.step = frame
        if not prompt.listeners:
            return None
        try:
            return prompt, frames.decode_text(frame)
        except ProtocolError:
            self.unreadable += 1
            return None

    def _other(self, kind: str, data: Any) -> Delivery | None:
        """Pass on a message that changes no prompt, if anybody listens."""
        event = frames.to_event(kind, data)
        if isinstance(event, events.Progress | events.ProgressState):
            return self._unusual_step(event)
        prompt = self.live.get(event.prompt_id or "") if isinstance(event, events.Unknown) else None
        if prompt is not None:
            return (prompt, event) if prompt.listeners else None
        return (None, event) if self.listeners else None

    def _unusual_step(self, event: events.Progress | events.ProgressState) -> Delivery | None:
        """Take a step that is not written the way ComfyUI writes it, so that its prompt_id could not be peeked."""
        if event.prompt_id is None:
            return None  # before 2024-01; whose it is cannot be told
        frame = frames.encode(event)
        return self._step(event.prompt_id, frame.encode() if isinstance(frame, str) else frame)

    def _unread(self) -> None:
        """Count a frame that could not be read. It may have been anybody's output."""
        self.unreadable += 1
        self.lose()

    # --- The rules: one per message that moves a prompt ------------------------------------------------------------

    def _joined(self, prompt: TrackedPrompt) -> Run:
        """Give the prompt's run; open one whose start was missed if there is none."""
        if prompt.run is None:
            prompt.run = Run(None)
            prompt.state = JobState.IN_PROGRESS
        return prompt.run

    def _execution_start(self, prompt: TrackedPrompt, data: dict[str, Any]) -> None:
        prompt.run = run = Run(self.generation)
        run.start = data.get("timestamp")
        prompt.state = JobState.IN_PROGRESS

    def _execution_cached(self, prompt: TrackedPrompt, data: dict[str, Any]) -> None:
        nodes = data.get("nodes")
        if not isinstance(nodes, list):
            raise ProtocolError("'nodes' is not a list")
        (prompt.run or self._joined(prompt)).cached = nodes

    def _executing(self, prompt: TrackedPrompt, data: dict[str, Any]) -> None:
        node = data.get("node")
        if node is None:
            self._window = None
            prompt.over = True
            return
        run = prompt.run or self._joined(prompt)
        run.node = node = node if isinstance(node, str) else str(node)
        run.step = None
        display_node = data.get("display_node")
        run.ran[display_node if isinstance(display_node, str) else node] = None
        if node in prompt.stream_nodes:
            run.streaming_since.setdefault(node, self.generation)

    def _executed(self, prompt: TrackedPrompt, data: dict[str, Any]) -> None:
        run = prompt.run or self._joined(prompt)
        output = data.get("output")
        if output is None:
            return
        event = frames.to_event("executed", data)
        if not isinstance(event, events.Executed):
            raise AssertionError("the decoder of 'executed' makes Executed")
        run.executed[event.node] = (event.display_node, output)

    def _execution_success(self, prompt: TrackedPrompt, data: dict[str, Any]) -> None:
        self._conclude(prompt, verdict.COMPLETED)

    def _execution_error(self, prompt: TrackedPrompt, data: dict[str, Any]) -> None:
        event = frames.to_event("execution_error", data)
        if not isinstance(event, events.ExecutionError):
            raise AssertionError("the decoder of 'execution_error' makes ExecutionError")
        if event.blocked:
            self._joined(prompt)
        else:
            self._conclude(prompt, verdict.failed(event, prompt.titles().get(event.node_id or "")))

    def _execution_interrupted(self, prompt: TrackedPrompt, data: dict[str, Any]) -> None:
        self._conclude(prompt, verdict.interrupted(prompt.prompt_id))

    def _conclude(self, prompt: TrackedPrompt, verdict: Verdict) -> None:
        prompt.verdict = verdict
        prompt.intact = prompt.run is not None and prompt.run.generation == self.generation
        self._window = None

    # --- Pictures --------------------------------------------------------------------------------------------------

    def _picture(self, event: events.PreviewImage) -> Delivery | None:
        if event.has_metadata:
            prompt = self.live.get(event.prompt_id or "")
        else:
            prompt = self._window
            if prompt is not None:
                event = _attributed(event, prompt)
        if prompt is None or prompt.verdict is not None:
            self.unattributed += 1
            return None
        prompt.touched = True
        run = prompt.run or self._joined(prompt)
        if event.node_id is not None and event.node_id in prompt.stream_nodes:
            run.streamed.setdefault(event.node_id, []).append(event)
        else:
            run.preview = event
        return (prompt, event) if prompt.listeners else None


def _attributed(event: events.PreviewImage, prompt: TrackedPrompt) -> events.PreviewImage:
    """Fill in whose picture it is: the prompt of the window, and the node of its last step or ``executing``."""
    run = prompt.run
    node_id = event.node_id
    if node_id is None and run is not None:
        step = None if run.step is None else _readable(frames.decode_text, run.step)
        node_id = (step.node if isinstance(step, events.Progress) else None) or run.node
    return events.PreviewImage(event.view, event.mime, prompt.prompt_id, node_id, node_id)


_RULES: dict[str, Callable[[Router, TrackedPrompt, dict[str, Any]], None]] = {
    "execution_start": Router._execution_start,
    "execution_cached": Router._execution_cached,
    "executing": Router._executing,
    "executed": Router._executed,
    "execution_success": Router._execution_success,
    "execution_error": Router._execution_error,
    "execution_interrupted": Router._execution_interrupted,
}
