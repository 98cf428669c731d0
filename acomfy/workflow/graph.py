"""What a prompt in ComfyUI's API format is, told from everything else.

API format is ``{node_id: {"class_type": str, "inputs": {name: value or [node_id, slot]}, "_meta": {"title": str}}}``:
what "Export (API)" of the web editor writes and what ``POST /prompt`` takes. The JSON that the editor saves otherwise
(``nodes`` and ``links``) is another format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeGuard

from ..errors import WorkflowError, WorkflowFormatError

Graph: TypeAlias = Mapping[str, Any]
"""A prompt in API format; a `Workflow` is one."""

_API_FORMAT = "in ComfyUI's editor choose Workflow > Export (API) and load that file"


def check_format(graph: object) -> None:
    """Tell an API-format graph from everything else.

    Raises:
        WorkflowFormatError: It is no API-format graph; the message says what to do.
        WorkflowError: A node of it is malformed.
    """
    if not isinstance(graph, Mapping):
        raise WorkflowFormatError(f"a workflow is a JSON object of nodes, not {type(graph).__name__}")
    if "nodes" in graph and is_editor_format(graph):
        raise WorkflowFormatError(
            f"this is the editor's own workflow format, not API format: {_API_FORMAT}, or convert it with "
            "Workflow.load(..., object_info=...)"
        )
    if "prompt" in graph and is_request(graph):
        raise WorkflowFormatError("this is a request for POST /prompt, not a workflow: pass what is under 'prompt'")
    for node_id, node in graph.items():
        check_node(node_id, node)


def is_editor_format(graph: object) -> bool:
    """Tell whether this is what the editor saves: a list of nodes."""
    return isinstance(graph, Mapping) and isinstance(graph.get("nodes"), list)


def is_request(graph: object) -> bool:
    """Tell whether this is a body of ``POST /prompt``, which has the graph under ``prompt``."""
    prompt = graph.get("prompt") if isinstance(graph, Mapping) else None
    return isinstance(prompt, Mapping) and "class_type" not in prompt


def is_link(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Tell whether an input's value is a link, ``[node_id, slot]``, and not a value of its own.

    A list of that form is one (comfy_execution/graph_utils.py is_link); that the node exists is another question.
    """
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def check_node(node_id: object, node: object) -> None:
    """Refuse what is no node of an API-format graph; raises as `check_format`."""
    if not isinstance(node_id, str):
        raise WorkflowError(f"node id {node_id!r} is {type(node_id).__name__}, not a string")
    if not isinstance(node, Mapping):
        raise WorkflowFormatError(
            f"{node_id!r} is {type(node).__name__}, not a node with a class_type: {_API_FORMAT}", node_id=node_id
        )
    if not isinstance(node.get("class_type"), str):
        raise WorkflowFormatError(f"node {node_id} has no class_type: {_API_FORMAT}", node_id=node_id)
    if not isinstance(node.get("inputs"), Mapping):
        raise WorkflowError(f"{describe(node_id, node)} has no inputs: give it at least {{}}", node_id=node_id)


def title_of(node: Mapping[str, Any]) -> str | None:
    """Give a node's title in the editor; None when it has none."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) else None


def describe(node_id: str, node: Mapping[str, Any]) -> str:
    """Name a node for a person: ``node 3 (KSampler, 'Second pass')``."""
    title, class_type = title_of(node), node.get("class_type")
    return f"node {node_id} ({class_type}{f', {title!r}' if title and title != class_type else ''})"
