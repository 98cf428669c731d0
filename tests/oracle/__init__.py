"""What the real editor made of hundreds of workflows; the README beside this says how they came about."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent

# Only the editor itself uses them; the server ignores them.
_FOR_THE_EDITOR = frozenset({"audioUI", "preview", "refresh"})


@cache
def _load(name: str) -> Any:
    return json.loads(gzip.decompress((_HERE / f"{name}.json.gz").read_bytes()))


def cases() -> dict[str, dict[str, Any]]:
    """Give the cases by name: ``ui``, ``1.27``, and where they apply ``1.58`` and ``missing``."""
    found: dict[str, dict[str, Any]] = _load("cases")
    return found


def newer_cases() -> dict[str, dict[str, Any]]:
    """Give the cases of a newer server (0.33.0) and frontend 1.58.1: ``ui`` and ``1.58``."""
    found: dict[str, dict[str, Any]] = _load("newer")
    return found


def differences(graph: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Say where a graph in API format differs from the editor's in what the server sees.

    Not in the order of keys, nor in what only the editor uses; large integers may have been rounded by JavaScript.
    """
    found = [f"node {node_id} is extra" for node_id in graph if node_id not in expected]
    for node_id, wanted in expected.items():
        if node_id not in graph:
            found.append(f"node {node_id} is missing")
            continue
        entry = graph[node_id]
        if entry["class_type"] != wanted["class_type"]:
            found.append(f"node {node_id} is a {entry['class_type']}, not a {wanted['class_type']}")
        found.extend(f"node {node_id} {said}" for said in _inputs(entry, wanted))
    return found


def _inputs(entry: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    ours, theirs = _server_inputs(entry), _server_inputs(wanted)
    said = [f"has no input {name!r}" for name in theirs if name not in ours]
    said += [f"has an extra input {name!r}" for name in ours if name not in theirs]
    both = [name for name in ours if name in theirs]
    return said + [
        f"{name}: {ours[name]!r}, not {theirs[name]!r}" for name in both if not same(ours[name], theirs[name])
    ]


def _server_inputs(entry: dict[str, Any]) -> dict[str, Any]:
    left_out = _FOR_THE_EDITOR | ({"image"} if entry["class_type"] == "SaveGLB" else set())
    return {name: value for name, value in entry["inputs"].items() if name not in left_out}


def same(ours: Any, theirs: Any) -> bool:
    """Compare JSON values: true is not 1, 8 is 8.0, and an integer may be what JavaScript rounded."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, int) and isinstance(theirs, int):
        return ours == theirs or float(ours) == float(theirs)
    return bool(ours == theirs)
