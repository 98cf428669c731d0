"""Nodes and inputs found by what people call them, and named in the error when they are not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from ..errors import WorkflowError
from .graph import check_node, describe, title_of
from .values import copied

Nodes: TypeAlias = Mapping[str, Mapping[str, Any]]

_SHOWN_NODES = 30


def the_node(nodes: Nodes, name: str) -> str:
    """Give the id of the one node with this id, else with this title, else of this class.

    Raises:
        WorkflowError: None or several match; the message names them.
    """
    if name in nodes:
        return name
    matches = titled(nodes, name) or of_class(nodes, name)
    return _the_one(nodes, name, matches, "id, title or class")


def the_named(nodes: Nodes, name: str) -> str:
    """Give the id of the one node with this id, or else with this title.

    Raises:
        WorkflowError: None or several match; the message names them.
    """
    if name in nodes:
        return name
    searched = "id or title"
    if "." in name:
        searched = "id or title (where names hold dots, write ('NODE', 'INPUT'))"
    return _the_one(nodes, name, titled(nodes, name), searched)


def titled(nodes: Nodes, title: str) -> list[str]:
    """Give the nodes with this title."""
    return [node_id for node_id, node in nodes.items() if title_of(node) == title]


def of_class(nodes: Nodes, class_type: str) -> list[str]:
    """Give the nodes of this class."""
    return [node_id for node_id, node in nodes.items() if node.get("class_type") == class_type]


def the_nodes(
    nodes: Nodes, name: str | None, class_type: str | None, title: str | None, inputs: Mapping[str, Any]
) -> list[str]:
    """Give the ids of all nodes that answer to everything that is given; see `Workflow.find_all`."""
    found = list(nodes)
    if name is not None:
        found = [name] if name in nodes else titled(nodes, name) or of_class(nodes, name)
    return [node_id for node_id in found if _answers(nodes[node_id], class_type, title, inputs)]


def _answers(node: Mapping[str, Any], class_type: str | None, title: str | None, inputs: Mapping[str, Any]) -> bool:
    if class_type is not None and not _matches(class_type, str(node.get("class_type"))):
        return False
    if title is not None and not _matches(title, title_of(node) or ""):
        return False
    given = node["inputs"]
    wanted = inputs.items()
    return all(name in given and (value is ... or copied(given[name]) == copied(value)) for name, value in wanted)


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


def _the_one(nodes: Nodes, name: str, matches: list[str], searched: str) -> str:
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise WorkflowError(f"{name!r} names {len(matches)} nodes: {_listed(nodes, matches)}; use a node id")
    raise WorkflowError(f"no node has the {searched} {name!r}; there are: {_listed(nodes, list(nodes))}")


def _listed(nodes: Nodes, node_ids: list[str]) -> str:
    shown = ", ".join(describe(node_id, nodes[node_id]) for node_id in node_ids[:_SHOWN_NODES])
    more = len(node_ids) - _SHOWN_NODES
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def check_input(node_id: str, node: Mapping[str, Any], input_name: str) -> None:
    """Refuse an input that a node lacks.

    Raises:
        WorkflowError: It lacks it, or is malformed.
    """
    check_node(node_id, node)  # it may have been edited
    names = list(node["inputs"])
    if input_name in names:
        return
    import difflib  # 1 ms that only a mistake pays

    close = difflib.get_close_matches(input_name, names, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(names) or 'none'}"
    raise WorkflowError(
        f"{describe(node_id, node)} has no input {input_name!r}; {hint}", node_id=node_id, input_name=input_name
    )


def split_key(key: str | tuple[str, str]) -> tuple[str, str]:
    """Part ``"NODE.INPUT"`` at its last dot; a tuple is parted already.

    Raises:
        WorkflowError: It is neither.
    """
    if isinstance(key, tuple) and len(key) == 2:
        return key
    name, dot, input_name = key.rpartition(".") if isinstance(key, str) else ("", "", "")
    if not dot:
        raise WorkflowError(f"{key!r} names no input: write it as 'NODE.INPUT', for example '3.seed'")
    return name, input_name
