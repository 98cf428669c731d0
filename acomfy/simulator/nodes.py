"""What a node class is: its definition, what its function is given, what it may answer.

A `Node` is the declaration that ``/object_info`` shows, with the function that runs it. The function is called as
``function(context, **inputs)`` with the inputs that its declaration names; it may be ``async`` and gives its one
output value, a tuple of them, None for no output, or a `NodeResult` when it also shows something (``ui``) or expands
into other nodes; for that, a dictionary as ComfyUI's own nodes give it will do, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from PIL import Image

Inputs = Mapping[str, Any]
Graph = dict[str, dict[str, Any]]

Batch = list[Image.Image]
"""An IMAGE or MASK value: the pictures of a batch, RGB or L, all of one size."""


class Interrupted(Exception):
    """The running prompt was interrupted. Raised inside a node where ComfyUI looks for it: at each progress step."""


class OutOfMemoryError(RuntimeError):
    """What a node raises when its device is full; ComfyUI reports it as ``torch.OutOfMemoryError``."""


OutOfMemoryError.__module__ = "torch"


@dataclass(frozen=True, slots=True)
class ExecutionBlocker:
    """An output value that keeps every node behind it from running; with a message, the client is told."""

    message: str | None = None


@dataclass(frozen=True, slots=True)
class NodeResult:
    """The full answer of a node's function.

    Attributes:
        outputs: One value per declared output. In an expansion, a link ``[local_id, slot]`` stands for a value.
        ui: What the node shows, lists by kind (``{"images": [...]}``); sent as ``executed`` and kept in the history.
        expand: Nodes to run in this node's place, by local id; links between them name local ids.
    """

    outputs: tuple[Any, ...] = ()
    ui: Mapping[str, Any] | None = None
    expand: Graph | None = None


def as_result(answer: Any) -> NodeResult:
    """Read what a node's function gave; ``{"ui": ..., "result": ..., "expand": ...}`` as execution.py reads it."""
    match answer:
        case NodeResult():
            return answer
        case None:
            return NodeResult()
        case dict() if answer and answer.keys() <= {"ui", "result", "expand"}:
            return NodeResult(tuple(answer.get("result") or ()), answer.get("ui"), answer.get("expand"))
        case tuple():
            return NodeResult(answer)
        case _:
            return NodeResult((answer,))


class NodeContext(Protocol):
    """What a node's function is given beside its inputs."""

    node_id: str
    prompt_id: str
    prompt: Graph
    extra_data: Mapping[str, Any]
    step_time: float
    in_real_time: bool
    preview_size: int

    @property
    def files(self) -> Any:
        """The server's input, output and temp folders."""

    def progress(
        self, value: float, max: float, image: bytes | Image.Image | None = None, mime: str = "image/jpeg"
    ) -> None:
        """Report a step, with a preview or a streamed image; raise `Interrupted` if the prompt was interrupted."""

    def check_interrupted(self) -> None:
        """Raise `Interrupted` if the prompt was interrupted."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass; 0 lets everybody else run once."""

    async def in_thread(self, function: Callable[..., Any], *args: Any, pixels: int) -> Any:
        """Run a pure function of so many pixels: in the server's worker thread, or at once when they are few."""

    def record(self, image: bytes, filename: str | None = None) -> None:
        """Enter a produced image, saved or streamed, into the server's ledger."""

    def send(self, kind: str, data: Any, *, broadcast: bool = False) -> None:
        """Send a message of the node's own type to the prompt's client, or to everybody."""

    def send_text(self, text: str, *, broadcast: bool = True) -> None:
        """Send progress text (binary event 3); ComfyUI sends it to everybody unless told otherwise."""


@dataclass(frozen=True)
class Node:
    """A node class: what ``/object_info`` says of it, and the function that runs it.

    Input specs are written as in ``/object_info``: ``("INT", {"default": 1, "min": 1})``, ``(["a", "b"],)``,
    ``("IMAGE",)``. Where the choices change while the server runs, ``required`` is a function without arguments.

    Attributes:
        class_type: The name that prompts use.
        function: ``function(context, **inputs)``, sync or async.
        required: Specs of the inputs that a prompt must give.
        optional: Specs of those that it may give.
        hidden: Inputs that the server fills in; only declared, the context holds their values.
        outputs: The types of its outputs.
        output_names: Their names; the types when not given.
        output_node: Whether it is a reason to run a prompt, as SaveImage is.
        concurrent: Whether other nodes may run while it waits, as ComfyUI does with async nodes.
        validate: Called with the constant inputs that its parameters name; True, or a message that refuses them. It
            replaces the checks of range and choice for these inputs.
        is_changed: Called with the constant inputs; a value that enters the cache signature. NaN never equals itself.
        needed: Called with the inputs known so far; names the lazy inputs that are needed all the same.
    """

    class_type: str
    function: Callable[..., Any]
    required: Inputs | Callable[[], Inputs] = field(default_factory=dict)
    optional: Inputs = field(default_factory=dict)
    hidden: Inputs = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_names: tuple[str, ...] | None = None
    output_node: bool = False
    concurrent: bool = False
    validate: Callable[..., Any] | None = None
    is_changed: Callable[..., Any] | None = None
    needed: Callable[..., Sequence[str]] | None = None
    display_name: str | None = None
    category: str = "simulator"
    description: str = ""
    python_module: str = "nodes"

    @property
    def specs(self) -> dict[str, tuple[str, Any, dict[str, Any]]]:
        """Give each input's category, type and options; required ones first."""
        required = self.required() if callable(self.required) else self.required
        return {**_category("required", required), **_category("optional", self.optional)}

    @cached_property
    def lazy_inputs(self) -> frozenset[str]:
        """Name the inputs that are only computed when `needed` asks for them."""
        return frozenset(name for name, (_, _, options) in self.specs.items() if options.get("lazy"))

    def object_info(self) -> dict[str, Any]:
        """Write the class's entry of ``/object_info``."""
        required = self.required() if callable(self.required) else self.required
        groups = {"required": required, "optional": self.optional, "hidden": self.hidden}
        shown = {name: dict(group) for name, group in groups.items() if group or name == "required"}
        return {
            "input": shown,
            "input_order": {name: list(group) for name, group in shown.items()},
            "output": list(self.outputs),
            "output_is_list": [False] * len(self.outputs),
            "output_name": list(self.output_names or self.outputs),
            "name": self.class_type,
            "display_name": self.display_name or self.class_type,
            "description": self.description,
            "python_module": self.python_module,
            "category": self.category,
            "output_node": self.output_node,
        }


def check_declaration(node: Node) -> None:
    """Find out what would only show when a prompt runs: specs that are none, a function that cannot be called so.

    Raises:
        TypeError: Something is not as `Node` wants it.
    """
    required = node.required() if callable(node.required) else node.required
    for name, spec in {**required, **node.optional}.items():
        if not isinstance(spec, tuple | list) or not spec:
            raise TypeError(f"input {name!r} of {node.class_type} is declared as ({spec!r},), not as {spec!r}")
    if isinstance(node.outputs, str):
        raise TypeError(f"the outputs of {node.class_type} are ({node.outputs!r},), not {node.outputs!r}")
    for names in ([*required], [*required, *node.optional]):
        try:
            inspect.signature(node.function).bind(None, **dict.fromkeys(names))
        except TypeError as error:
            call = ", ".join(["context", *names])
            raise TypeError(f"the function of {node.class_type} is called with ({call}), by name: {error}") from None


def _category(name: str, group: Inputs) -> dict[str, tuple[str, Any, dict[str, Any]]]:
    return {key: (name, spec[0], dict(spec[1]) if len(spec) > 1 else {}) for key, spec in group.items()}


def is_link(value: Any) -> bool:
    """Tell whether an input value is a link to another node's output (comfy_execution/graph_utils.py is_link)."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )
