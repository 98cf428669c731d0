"""The values of inputs: copied as plain JSON, and what JSON cannot hold refused by node and input."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..captures import is_file
from ..errors import WorkflowError
from .graph import describe

_DEEPEST = 200
_LONGEST_INTEGER = 14_284  # bits: 4300 digits, more than which no Python reads unless it was told to


def copied(value: Any) -> Any:
    """Copy a value; mappings become dicts, lists and tuples lists."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [copied(item) for item in value]
    return value


def copied_node(node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a node; one that has no end is a WorkflowError."""
    try:
        return {key: copied(value) for key, value in node.items()}
    except RecursionError:
        check_values(node_id, node)  # says which input it is
        raise


def as_json(graph: Mapping[str, Any], indent: int | None) -> str:
    """Write JSON as JavaScript does: texts as they are, but for lone surrogates, which no UTF-8 holds."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(graph, indent=indent, separators=separators, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(graph, indent=indent, separators=separators)
    return text


def check_values(node_id: str, node: Mapping[str, Any]) -> None:
    """Refuse what JSON cannot hold, by the input's name."""
    for name, value in node["inputs"].items():
        if problem := _not_json({name: value}, 2):
            raise WorkflowError(
                f"{describe(node_id, node)}: input {name!r} {problem}", node_id=node_id, input_name=str(name)
            )
    for key, value in node.items():
        if key != "inputs" and (problem := _not_json({key: value}, 1)):
            raise WorkflowError(f"{describe(node_id, node)}: {key!r} {problem}", node_id=node_id)


def _not_json(value: Any, depth: int = 0) -> str | None:
    """Say what of a value JSON cannot hold; None when it can.

    orjson would write some of it all the same, and differently: NaN as null, a UUID as a string.
    """
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, int):
        return None if value.bit_length() <= _LONGEST_INTEGER else "holds an integer of more than 4300 digits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"holds {value}, which JSON has not"
    if depth > _DEEPEST:
        return "is nested too deeply, or contains itself"
    if isinstance(value, (list, tuple)):
        return _first_problem(value, depth)
    if isinstance(value, (dict, Mapping)):
        for key in value:
            if not isinstance(key, str):
                return f"has the key {key!r}, which is {type(key).__name__}, not a string"
        return _first_problem(value.values(), depth)
    hint = "; it is a file, which run and submit upload" if is_file(value) else ""
    return f"holds {type(value).__name__}, which JSON has not{hint}"


def _first_problem(values: Iterable[Any], depth: int) -> str | None:
    for value in values:
        if problem := _not_json(value, depth + 1):
            return problem
    return None
