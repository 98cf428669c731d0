"""Graphs built in Python: nodes are objects, linked by their outputs.

``acomfy nodes`` writes a module with a class for each node class of your server; this is what those classes are made
of. Example::

    from acomfy.building import build
    from nodes import CheckpointLoaderSimple, CLIPTextEncode, EmptyLatentImage, KSampler, SaveImage, VAEDecode

    checkpoint = CheckpointLoaderSimple(ckpt_name="v1-5.safetensors")
    positive = CLIPTextEncode(clip=checkpoint.CLIP, text="a fox", _title="Positive")
    negative = CLIPTextEncode(clip=checkpoint.CLIP, text="")
    sampler = KSampler(
        model=checkpoint.MODEL, positive=positive.CONDITIONING, negative=negative.CONDITIONING,
        latent_image=EmptyLatentImage().LATENT, seed=5, sampler_name="euler", scheduler="normal", _id="3",
    )
    picture = VAEDecode(samples=sampler.LATENT, vae=checkpoint.VAE)
    workflow = build(SaveImage(images=picture.IMAGE))

What is upstream of the nodes that `build` is given comes along. A required input that has a default may be left out;
an optional one that is left out, or None, is not sent. Names that are no identifiers are spelled with underscores
(``resize_type.width`` is ``resize_type_width``). What begins with an underscore is the builder's own.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from .errors import WorkflowError
from .workflow import Graph, Workflow

T_co = TypeVar("T_co", bound=str, covariant=True)

_order = itertools.count()


@dataclass(frozen=True, slots=True, eq=False)
class Output(Generic[T_co]):
    """One output of a node, to be given as an input to another.

    Attributes:
        node: The node; or the id of one that is in the workflow already.
        slot: Its place among the node's outputs, from 0.
        type: ComfyUI's type, for example ``"MODEL"``.
    """

    node: Node | str
    slot: int
    type: T_co

    def __repr__(self) -> str:
        return f"<Output {self.slot} ({self.type}) of {self.node!r}>"


Int: TypeAlias = int | Output[Literal["INT"]]
Float: TypeAlias = float | Output[Literal["FLOAT"]]
String: TypeAlias = str | Output[Literal["STRING"]]
Boolean: TypeAlias = bool | Output[Literal["BOOLEAN"]]


def link(node_id: str, slot: int = 0) -> Output[Any]:
    """Name an output of a node that is in a workflow already; see `build`'s ``into``."""
    return Output(node_id, slot, "*")


class Node:
    """A node of a graph that is being built: the base of the classes in a generated module.

    Its outputs are its attributes: ``checkpoint.MODEL``.

    Args:
        _id: Its node id; without it `build` counts from 1, in the order in which the nodes were made.
        _title: Its title, ``_meta.title``.
        _inputs: More inputs by ComfyUI's own names, for what the definitions of the server do not tell.
        inputs: Its inputs: values, or outputs of other nodes.

    Raises:
        TypeError: An input is missing or unknown, or a node stands where one of its outputs should.
    """

    _spec: ClassVar[Mapping[str, Any]] = {"class_type": "", "inputs": {}, "outputs": []}

    def __init__(
        self,
        *,
        _id: str | None = None,
        _title: str | None = None,
        _inputs: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> None:
        self._id = _id
        self._title = _title
        self._place = next(_order)
        self._values = {**_Call(type(self).__name__, self._spec["inputs"], inputs).values(), **(_inputs or {})}
        for value in _leaves(self._values.values()):
            if isinstance(value, Node):
                raise TypeError(f"{type(self).__name__} takes outputs, not nodes: {_hint(value)}")
        for slot, (name, output_type) in enumerate(self._spec["outputs"]):
            self.__dict__[name] = Output(self, slot, output_type)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} node{'' if self._id is None else ' ' + self._id}>"


def _hint(node: Node) -> str:
    names = [f".{name}" for name, _ in node._spec["outputs"]]
    return f"write {', '.join(names)} behind the {type(node).__name__}" if names else f"{node!r} has none"


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


# --- Building ------------------------------------------------------------------------------------------------------


def build(*nodes: Node, into: Graph | None = None) -> Workflow:
    """Make a workflow of nodes and of all that is upstream of them.

    Args:
        nodes: Those at the end: what saves or shows something. Giving others too does no harm.
        into: A workflow to add them to; it stays as it is. `link` names outputs of its nodes.

    Raises:
        WorkflowError: Two nodes have the same id, or a `link` names a node that is not there.
    """
    found: dict[int, Node] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if found.setdefault(node._place, node) is node:
            waiting.extend(o.node for o in _outputs(node) if isinstance(o.node, Node) and o.node._place not in found)
    workflow = Workflow(into if into is not None else {})
    in_order = [found[place] for place in sorted(found)]
    ids = _ids(in_order, set(workflow))
    for node in in_order:
        inputs = {name: _written(value, ids) for name, value in node._values.items()}
        title = {} if node._title is None else {"_meta": {"title": node._title}}
        workflow[ids[node]] = {"inputs": inputs, "class_type": node._spec["class_type"], **title}
    _check_links(in_order, workflow)
    return workflow


def _outputs(node: Node) -> Iterator[Output[Any]]:
    return (value for value in _leaves(node._values.values()) if isinstance(value, Output))


def _ids(nodes: list[Node], taken: set[str]) -> dict[Node, str]:
    """Give each node its id: the one that it was made with, or else the next number."""
    ids: dict[Node, str] = {}
    for node in nodes:
        if node._id is not None:
            if node._id in taken:
                raise WorkflowError(f"two nodes have the id {node._id!r}", node_id=node._id)
            taken.add(node._id)
            ids[node] = node._id
    numbers = (str(number) for number in itertools.count(1))
    for node in nodes:
        if node._id is None:
            ids[node] = next(number for number in numbers if number not in taken)
    return ids


def _written(value: Any, ids: Mapping[Node, str]) -> Any:
    """Write a value as API format has it; a list would be taken for a link (ComfyUI execution.py get_input_data)."""
    if isinstance(value, Output):
        return [ids[value.node] if isinstance(value.node, Node) else value.node, value.slot]
    return {"__value__": list(value)} if isinstance(value, list | tuple) else value


def _check_links(nodes: Iterable[Node], workflow: Workflow) -> None:
    for node in nodes:
        for output in _outputs(node):
            if isinstance(output.node, str) and output.node not in workflow:
                raise WorkflowError(f"{node!r} is linked to node {output.node}, which is not in the workflow")


# --- Reading a call's arguments ------------------------------------------------------------------------------------


class _Call:
    """The keyword arguments of one node, read by what the generated module says about its inputs.

    Each parameter is ``{"name": ComfyUI's name, "ways": [...], "grow": names of a growing input's slots, "prefix":
    what stands before the numbers}``. A way says when the input exists and what it is then: ``{"when": [parameter,
    key] or [parameter], "required": bool, "default": value}``; inputs that always exist have one way without "when".
    """

    def __init__(self, name: str, parameters: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self._name = name
        self._parameters = parameters
        self._given = {key: value for key, value in given.items() if value is not None}
        for key in given:
            if key not in parameters:
                close = difflib.get_close_matches(key, parameters, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(parameters) or 'none'}"
                raise TypeError(f"{name} has no input {key!r}; {hint}")

    def values(self) -> dict[str, Any]:
        """Give the inputs by ComfyUI's names.

        Raises:
            TypeError: One is missing, or was given though it does not exist with the others.
        """
        values: dict[str, Any] = {}
        for key, parameter in self._parameters.items():
            way = next((way for way in parameter["ways"] if self._exists(way)), None)
            if key in self._given:
                if way is None:
                    raise TypeError(f"{self._name} has the input {key!r} only {self._whens(parameter)}")
                values |= self._sent(key, parameter, self._given[key])
            elif way is not None and "default" in way:
                values[parameter["name"]] = way["default"]
            elif way is not None and way["required"]:
                raise TypeError(f"{self._name} needs the input {key!r}")
        return values

    def _exists(self, way: Mapping[str, Any]) -> bool:
        when = way.get("when")
        if when is None:
            return True
        value = self._given.get(when[0])
        if len(when) == 1 or isinstance(value, Output):
            return value is not None
        return bool(value == when[1])

    def _whens(self, parameter: Mapping[str, Any]) -> str:
        whens = [way["when"] for way in parameter["ways"]]
        return " or ".join(f"with {when[0]}={when[1]!r}" if len(when) > 1 else f"with {when[0]}" for when in whens)

    def _sent(self, key: str, parameter: Mapping[str, Any], value: Any) -> dict[str, Any]:
        name, slots = parameter["name"], parameter.get("grow")
        if slots is None:
            return {name: value}
        if isinstance(value, Mapping):
            items = dict(value)
            for slot in items:
                if slot not in slots:
                    raise TypeError(f"{self._name}: {key} has no {slot!r}; it has: {', '.join(slots)}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) > len(slots):
                raise TypeError(f"{self._name} takes at most {len(slots)} {key}, not {len(value)}")
            items = dict(zip(slots, value, strict=False))
        else:
            raise TypeError(f"{self._name} takes a list of {key}, not {type(value).__name__}")
        needed = parameter["needed"]
        if missing := [slot for slot in slots[:needed] if items.get(slot) is None]:
            raise TypeError(f"{self._name} needs {needed} {key}; there is no {missing[0]!r}")
        return {f"{name}.{slot}": item for slot, item in items.items() if item is not None}


# --- Generated modules ---------------------------------------------------------------------------------------------


def node_classes(module: str, table: str) -> dict[str, type[Node]]:
    """Make the classes of a generated module out of its table."""
    return {
        name: type(name, (Node,), {"__module__": module, "__doc__": spec.pop("doc", None), "_spec": spec})
        for name, spec in json.loads(table).items()
    }
