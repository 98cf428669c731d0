"""What a ComfyUI server says on its WebSocket: one frozen dataclass per message, and nothing else.

The classes are named after the server's own names in CamelCase. ``Event`` is the closed union of them; `Unknown` keeps
it open to custom nodes and newer servers. Times are the server's wall clock in milliseconds, as sent.
Sources: ComfyUI ``server.py``, ``execution.py``, ``comfy_execution/progress.py`` and ``protocol.py`` (0.3.64, 0.38).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast


@dataclass(frozen=True, slots=True)
class Status:
    """The server's queue changed; sent to everybody. The first one on a socket carries its ``sid``.

    Attributes:
        queue_remaining: Prompts waiting and running, of all clients; None when the server did not say.
        sid: The client id under which this socket is registered; None but on the first.
    """

    queue_remaining: int | None
    sid: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureFlags:
    """The server's answer to our feature flags (since 0.3.45)."""

    flags: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExecutionStart:
    """The prompt left the queue and runs."""

    prompt_id: str
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class ExecutionCached:
    """The nodes of this prompt that need no run, possibly none. Sent once, right after the start."""

    prompt_id: str
    nodes: tuple[str, ...]
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class Executing:
    """A node begins; or, with ``node`` None, the prompt is over and its history can be read.

    Attributes:
        node: The node as executed; an expanded node has an id that is not in the prompt ("4.0.0.3").
        display_node: The node of the prompt that it stands for; None when ``node`` is.
        prompt_id: None only in the replay that follows a reconnect.
    """

    node: str | None
    display_node: str | None = None
    prompt_id: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of one node. ``max`` may be 0, and neither need be a whole number."""

    value: float
    max: float
    prompt_id: str | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """How far one node of a running prompt is.

    Attributes:
        state: ``running`` or ``finished``; a node that failed stays ``running``.
        display_node_id: The node of the prompt that it stands for.
    """

    node_id: str
    value: float
    max: float
    state: str
    display_node_id: str
    parent_node_id: str | None = None
    real_node_id: str | None = None


class ProgressState:
    """Every node that has begun so far, with its progress (since 0.3.45).

    The message grows with the graph and comes at every step, so it is parsed when ``nodes`` is first read, and not
    before. Compares by value.

    Attributes:
        prompt_id: The prompt concerned.
        nodes: `NodeProgress` by node id. Reading it raises `ProtocolError` if the message is malformed.
    """

    __slots__ = ("_nodes", "prompt_id")
    __match_args__ = ("prompt_id", "nodes")

    prompt_id: str
    _nodes: Mapping[str, NodeProgress] | Callable[[], Mapping[str, NodeProgress]]

    def __init__(
        self, prompt_id: str, nodes: Mapping[str, NodeProgress] | Callable[[], Mapping[str, NodeProgress]]
    ) -> None:
        object.__setattr__(self, "prompt_id", prompt_id)
        object.__setattr__(self, "_nodes", nodes)

    @property
    def nodes(self) -> Mapping[str, NodeProgress]:
        if not isinstance(self._nodes, Mapping):
            object.__setattr__(self, "_nodes", self._nodes())
        return cast(Mapping[str, NodeProgress], self._nodes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r}: a ProgressState is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete field {name!r}: a ProgressState is frozen")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProgressState):
            return NotImplemented
        return self.prompt_id == other.prompt_id and self.nodes == other.nodes

    __hash__ = None  # type: ignore[assignment]  # as a dataclass with a mapping in it

    def __repr__(self) -> str:
        return f"ProgressState(prompt_id={self.prompt_id!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ProgressState, (self.prompt_id, dict(self.nodes))


@dataclass(frozen=True, slots=True)
class Executed:
    """A node produced something to show; cached output nodes send it too.

    Attributes:
        output: The node's ``ui`` dict, lists of file references or values by kind; None from a cached node that has
            nothing to show.
    """

    prompt_id: str
    node: str
    display_node: str
    output: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ExecutionSuccess:
    """The prompt succeeded. Its history entry may not be readable yet."""

    prompt_id: str
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """A node raised. Ends the prompt, unless ``exception_type`` is ``ExecutionBlocked``.

    Attributes:
        traceback: The server's traceback, a line or more each.
        current_inputs: What went into the node, as text. May hold secrets of the workflow: not shown in a repr.
    """

    prompt_id: str
    node_id: str | None
    node_type: str | None
    exception_type: str
    exception_message: str
    traceback: tuple[str, ...] = field(default=(), repr=False)
    executed: tuple[str, ...] = field(default=(), repr=False)
    current_inputs: Any = field(default=None, repr=False)
    current_outputs: Any = field(default=None, repr=False)
    timestamp: int | None = None

    @property
    def blocked(self) -> bool:
        """Tell whether a branch was blocked on purpose: the prompt goes on, and normally succeeds."""
        return self.exception_type == "ExecutionBlocked"


@dataclass(frozen=True, slots=True)
class ExecutionInterrupted:
    """The prompt was stopped while it ran."""

    prompt_id: str
    node_id: str | None = None
    node_type: str | None = None
    executed: tuple[str, ...] = ()
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class Logs:
    """Lines of the server's log, for sockets that subscribed to them."""

    entries: tuple[Mapping[str, Any], ...]
    size: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PreviewImage:
    """A picture in a binary frame: a preview, or an image of SaveImageWebsocket. Compares by value.

    Wire events 1 (no ids: the router fills them in) and 4 (with metadata, since 0.3.45).

    Attributes:
        view: The image file as a view of the received frame, without a copy.
        mime: ``image/jpeg``, ``image/png``, ... by the file's first bytes, else as the server named it.
        prompt_id: None while it is not known.
        node_id: None while it is not known.
        display_node_id: The node of the prompt that ``node_id`` stands for.
    """

    view: memoryview = field(repr=False)
    mime: str
    prompt_id: str | None = None
    node_id: str | None = None
    display_node_id: str | None = None
    parent_node_id: str | None = None
    real_node_id: str | None = None
    has_metadata: bool = False

    @property
    def image(self) -> bytes:
        """Copy the image file's bytes out of the frame."""
        return bytes(self.view)

    def _key(self) -> tuple[object, ...]:
        return (
            self.view,
            self.mime,
            self.prompt_id,
            self.node_id,
            self.display_node_id,
            self.parent_node_id,
            self.real_node_id,
            self.has_metadata,
        )

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, PreviewImage) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.mime, self.prompt_id, self.node_id, len(self.view)))

    def __reduce__(self) -> tuple[Any, ...]:
        view, *rest = self._key()
        return _unpickled_preview, (self.image, *rest)


def _unpickled_preview(image: bytes, *rest: Any) -> PreviewImage:
    return PreviewImage(memoryview(image), *rest)


@dataclass(frozen=True, slots=True)
class Text:
    """Text that a node shows while it runs (binary event 3, since 0.3.34). Sent to everybody, without a prompt_id."""

    node_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type that acomfy does not know: a custom node's, or a newer server's.

    Attributes:
        type: The message's type; ``binary:N`` for a binary frame of event N.
        data: Its data as parsed JSON, or the frame's bytes after the event number.
    """

    type: str
    data: Any = field(repr=False)

    @property
    def prompt_id(self) -> str | None:
        """The prompt that the message names; None when it names none."""
        prompt_id = self.data.get("prompt_id") if isinstance(self.data, Mapping) else None
        return prompt_id if isinstance(prompt_id, str) else None


Event: TypeAlias = (
    Status
    | FeatureFlags
    | ExecutionStart
    | ExecutionCached
    | Executing
    | Progress
    | ProgressState
    | Executed
    | ExecutionSuccess
    | ExecutionError
    | ExecutionInterrupted
    | Logs
    | PreviewImage
    | Text
    | Unknown
)
