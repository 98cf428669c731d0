"""How much of a prompt is done, as one number.

Every node of the prompt weighs 1, or as many as the steps that it says it will take (a sampler's ``steps`` input), so
that the bar moves with the work. Cached nodes need no run and weigh nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from . import events

_ALMOST = 0.999


def weights(nodes: Mapping[str, Mapping[str, Any]], targets: Iterable[str] | None) -> dict[str, float]:
    """Give each node that will run its weight. ``targets`` are the outputs asked for; None means all."""
    wanted = nodes if targets is None else upstream(nodes, targets)
    return {node_id: _weight(nodes[node_id]) for node_id in wanted}


def _weight(node: Mapping[str, Any]) -> float:
    inputs = node.get("inputs")
    steps = inputs.get("steps") if isinstance(inputs, Mapping) else None
    return float(steps) if type(steps) is int and 1 < steps <= 10_000 else 1.0


def upstream(nodes: Mapping[str, Mapping[str, Any]], targets: Iterable[str]) -> set[str]:
    """Give the targets that exist and all nodes that they depend on."""
    found: set[str] = set()
    waiting = [target for target in targets if target in nodes]
    while waiting:
        node_id = waiting.pop()
        if node_id in found:
            continue
        found.add(node_id)
        waiting.extend(source for source in _sources(nodes[node_id]) if source in nodes)
    return found


def sinks(nodes: Mapping[str, Mapping[str, Any]], targets: Iterable[str] | None) -> list[str]:
    """Give the nodes that no other depends on; ``targets`` are the outputs asked for, None means all."""
    if targets is not None:
        return [target for target in targets if target in nodes]
    used = {source for node in nodes.values() for source in _sources(node)}
    return [node_id for node_id in nodes if node_id not in used]


def _sources(node: Mapping[str, Any]) -> list[str]:
    """Give the nodes that a node's links name, whether they exist or not."""
    inputs = node.get("inputs")
    values = inputs.values() if isinstance(inputs, Mapping) else ()
    return [value[0] for value in values if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)]


def weigh(
    weights: Mapping[str, float],
    *,
    cached: Collection[str],
    ran: Iterable[str],
    step: events.Progress | None,
    state: events.ProgressState | None,
) -> float:
    """Give the part that is done, from 0 to just under 1: only the verdict says that all is.

    Args:
        weights: What `weights` gave.
        cached: Nodes that need no run.
        ran: Nodes that began, in order; with no ``state`` all but the last count as done.
        step: The newest step of the last of them.
        state: The newest ``progress_state``, which is exact, from servers that send it.
    """
    parts = _parts_by_state(state) if state is not None else _parts_by_order(list(ran), step)
    skipped = set(cached)
    total = sum(weight for node_id, weight in weights.items() if node_id not in skipped)
    done = sum(weight * parts.get(node_id, 0.0) for node_id, weight in weights.items() if node_id not in skipped)
    return min(done / total, _ALMOST) if total else 0.0


def _parts_by_state(state: events.ProgressState) -> dict[str, float]:
    return {
        node_id: 1.0 if node.state == "finished" else _part(node.value, node.max)
        for node_id, node in state.nodes.items()
    }


def _parts_by_order(ran: list[str], step: events.Progress | None) -> dict[str, float]:
    parts = dict.fromkeys(ran, 1.0)
    if ran:
        parts[ran[-1]] = 0.0 if step is None else _part(step.value, step.max)
    return parts


def _part(value: float, maximum: float) -> float:
    # Servers send a ``max`` of 0, NaN, infinity, and a ``value`` beyond it. What compares with NaN is false.
    part = value / maximum if maximum > 0 else 0.0
    return min(part, 1.0) if part > 0 else 0.0
