"""Edits of a graph's nodes and links. Each gives the nodes that change, by id: a new node, or None for one that goes.

Nothing is changed in place, and only what changes is copied, so that workflows go on sharing the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import WorkflowError
from . import query
from .graph import check_node, describe, is_link
from .query import Nodes
from .walk import Place, links, links_into

if TYPE_CHECKING:
    from ..definitions import Definitions, InputDefinition

Changes: TypeAlias = dict[str, dict[str, Any] | None]
Source: TypeAlias = str | tuple[str, int] | list[Any]
"""An output: ``(node, slot)``, or the node alone for its first; the node by its id, its title or its class."""

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def replaced(nodes: Nodes, changes: Mapping[str | tuple[str, str], Any]) -> Changes:
    """Give inputs other values; see `Workflow.replace`."""
    changed: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        name, input_name = query.split_key(key)
        node_id = query.the_named(nodes, name)
        query.check_input(node_id, nodes[node_id], input_name)
        changed.setdefault(node_id, {})[input_name] = value
    return {
        node_id: {**(node := nodes[node_id]), "inputs": {**node["inputs"], **inputs}}
        for node_id, inputs in changed.items()
    }


def free_id(nodes: Nodes) -> str:
    """Give the number after the greatest that is a node's id."""
    return str(max((int(one) for one in nodes if one.isascii() and one.isdigit() and len(one) < 19), default=0) + 1)


def added(
    nodes: Nodes, class_type: str, inputs: Mapping[str, Any] | None, node_id: str | None, title: str | None
) -> Changes:
    """Add a node."""
    new_id = free_id(nodes) if node_id is None else node_id
    if new_id in nodes:
        raise WorkflowError(f"there is a node {new_id} already: {describe(new_id, nodes[new_id])}", node_id=new_id)
    meta = {} if title is None else {"_meta": {"title": title}}
    node = {"inputs": {} if inputs is None else inputs, "class_type": class_type, **meta}
    check_node(new_id, node)
    return {new_id: node}


def removed(nodes: Nodes, names: Iterable[str]) -> Changes:
    """Remove nodes, and the inputs that were linked to them."""
    gone = {query.the_node(nodes, name) for name in names}
    changes = _relinked(nodes, lambda place: None if place[0] in gone else place)
    return {**changes, **dict.fromkeys(gone)}


def rewired(nodes: Nodes, source: Source, target: Source, only: Iterable[str] | None) -> Changes:
    """Give whoever takes one output another instead."""
    old, new = place_of(nodes, source), place_of(nodes, target)
    takers = None if only is None else {query.the_node(nodes, name) for name in only}
    return _relinked(nodes, lambda place: new if place == old else place, takers)


def place_of(nodes: Nodes, source: Source) -> Place:
    """Read an output as people name it.

    Raises:
        WorkflowError: It is written otherwise, or there is no such node.
    """
    if isinstance(source, str):
        return query.the_node(nodes, source), 0
    if len(source) == 2 and isinstance(source[0], str) and type(source[1]) is int and source[1] >= 0:
        return query.the_node(nodes, source[0]), source[1]
    raise WorkflowError(f"{source!r} names no output: write it as (NODE, SLOT), for example ('4', 0)")


def bypassed(nodes: Nodes, names: Iterable[str], definitions: Definitions) -> Changes:
    """Take nodes out and link who took their outputs to what they took, by type, as the editor's Bypass does.

    Raises:
        WorkflowError: A node's class is not among the definitions.
    """
    gone = {query.the_node(nodes, name): None for name in names}
    through = {node_id: _passed(node_id, nodes[node_id], definitions) for node_id in gone}

    def follow(place: Place) -> Place | None:
        seen = set()
        while place[0] in gone:
            outputs = through[place[0]]
            further = outputs[place[1]] if place[1] < len(outputs) else None
            if further is None or further in seen:
                return None
            seen.add(further)
            place = further
        return place

    return {**_relinked(nodes, follow, [node_id for node_id in nodes if node_id not in gone]), **gone}


def _passed(node_id: str, node: Mapping[str, Any], definitions: Definitions) -> list[Place | None]:
    """Give for each output of a bypassed node what stands for it; None where nothing does.

    An output takes the input at its own index if the type fits, else the first input of its type; whether that one is
    linked is not asked (observed of the editor, 1.27.10 and 1.58.1).
    """
    if node["class_type"] not in definitions:
        raise WorkflowError(
            f"{describe(node_id, node)}: the server has no class {node['class_type']!r}, so that nothing is known of "
            "the types that pass through it",
            node_id=node_id,
        )
    definition = definitions[node["class_type"]]
    inputs = node["inputs"]
    known = definition.inputs_for(inputs)
    sockets = [one for name, one in known.items() if is_link(inputs.get(name)) or not _is_widget(one)]
    passed = []
    for slot, kind in enumerate(definition.output_types):
        wanted = kind if isinstance(kind, str) else "COMBO"
        same_place = [one for one in sockets[slot : slot + 1] if _fits(one.type, wanted)]
        fitting = (
            same_place
            or [one for one in sockets if one.type == wanted]
            or [one for one in sockets if _fits(one.type, wanted)]
        )
        value = inputs.get(fitting[0].name) if fitting else None
        passed.append((value[0], int(value[1])) if is_link(value) else None)
    return passed


def _is_widget(declared: InputDefinition) -> bool:
    return declared.type in _WIDGETS and not declared.force_input


def _fits(one: str, other: str) -> bool:
    """Tell whether two types may be linked: they have one in common, or one of them is any."""
    kinds, others = ({kind.strip() for kind in text.split(",")} for text in (one, other))
    return bool(kinds & others) or any("*" in both or "COMFY_MATCHTYPE_V3" in both for both in (kinds, others))


# --- LoRA ----------------------------------------------------------------------------------------------------------


def lora_inserted(
    nodes: Nodes,
    lora_name: str,
    strengths: tuple[float, float],
    model: Source | None,
    clip: Source | bool,
    definitions: Definitions | None,
    node_id: str | None,
    title: str | None,
) -> Changes:
    """Put a LoRA loader between a model, and its clip, and all that take them; see `Workflow.insert_lora`."""
    model_place = _origin(nodes, "model", definitions) if model is None else place_of(nodes, model)
    if clip is False:
        clip_place = None
    elif clip is True:
        clip_place = _origin(nodes, "clip", definitions, beside=model_place[0])
    else:
        clip_place = place_of(nodes, clip)
    inputs: dict[str, Any] = {"lora_name": lora_name, "strength_model": strengths[0]}
    if clip_place is not None:
        inputs |= {"strength_clip": strengths[1], "model": list(model_place), "clip": list(clip_place)}
    else:
        inputs |= {"model": list(model_place)}
    class_type = "LoraLoaderModelOnly" if clip_place is None else "LoraLoader"
    new = added(nodes, class_type, inputs, node_id, title)
    (new_id,) = new
    instead: dict[Place, Place] = {model_place: (new_id, 0)}
    if clip_place is not None:
        instead[clip_place] = (new_id, 1)
    return {**_relinked(nodes, lambda place: instead.get(place, place)), **new}


def _origin(nodes: Nodes, name: str, definitions: Definitions | None, *, beside: str | None = None) -> Any:
    """Find the one output that all models, or clips, of a graph come from.

    It is taken by an input of that name (by one of the type MODEL, or CLIP, when the definitions are given), and its
    node takes none itself: a loader, not one of the nodes that patch what they are given.

    Args:
        beside: Of several, the one of this node is meant; and there may be none.
    """

    def takes(node_id: str, input_name: str) -> bool:
        class_type = nodes[node_id]["class_type"]
        if definitions is None or class_type not in definitions:
            return input_name == name
        declared = definitions[class_type].inputs_for(nodes[node_id]["inputs"]).get(input_name)
        return declared is not None and declared.type == name.upper()

    taken = {(link.source, link.slot): None for link in links(nodes) if takes(link.target, link.input_name)}
    origins = [
        place
        for place in taken
        if place[0] in nodes and not any(takes(place[0], link.input_name) for link in links_into(nodes, place[0]))
    ]
    meant = origins if len(origins) == 1 else [place for place in origins if place[0] == beside]
    if len(meant) == 1:
        return meant[0]
    if not origins and beside is not None:
        return None
    listed = ", ".join(f"{describe(place[0], nodes[place[0]])} slot {place[1]}" for place in origins)
    what = f"there are several: {listed}" if origins else "no input takes one"
    raise WorkflowError(f"which {name} the LoRA is for is not clear: {what}; pass {name}=(NODE, SLOT)")


# --- Parts ---------------------------------------------------------------------------------------------------------


def _relinked(nodes: Nodes, follow: Callable[[Place], Place | None], takers: Iterable[str] | None = None) -> Changes:
    """Give each link another source, or take its input away where there is none."""
    changes: Changes = {}
    for node_id in nodes if takers is None else takers:
        node = nodes[node_id]
        moved = {link.input_name: follow((link.source, link.slot)) for link in links_into(nodes, node_id)}
        inputs = {
            name: value if name not in moved else list(moved[name] or ())
            for name, value in node["inputs"].items()
            if name not in moved or moved[name] is not None
        }
        if inputs != node["inputs"]:
            changes[node_id] = {**node, "inputs": inputs}
    return changes
