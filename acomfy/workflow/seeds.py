"""The seeds of a graph: which inputs they are, and other values for them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .graph import is_link
from .query import Nodes
from .walk import links

if TYPE_CHECKING:
    from ..definitions import Definitions, InputDefinition

_NAMES = ("seed", "noise_seed")
_GREATEST = 2**50  # the editor draws none greater, since it counts in doubles; also where the server names no maximum


def seeds(nodes: Nodes, definitions: Definitions | None) -> Iterator[tuple[str, str, InputDefinition | None]]:
    """Yield every input that holds a seed: its node's id, its name, and what the server says of it.

    Those are the INT inputs to which the editor adds "control after generate": where the server asks for it, and those
    named ``seed`` or ``noise_seed`` of which it says nothing. A node that gives out numbers (PrimitiveInt) holds a
    seed under another name only where a seed takes it: its number may as well be a width. Linked ones are left out:
    they hold no seed of their own. Of a class without a definition it is the name that decides.
    """
    seeding: set[str] | None = None
    for node_id, node in nodes.items():
        inputs, class_type = node["inputs"], node["class_type"]
        if definitions is None or class_type not in definitions:
            for name, value in inputs.items():
                if _is_named_seed(name) and type(value) is int:
                    yield node_id, name, None
            continue
        definition = definitions[class_type]
        for name, declared in definition.inputs_for(inputs).items():
            if name not in inputs or is_link(inputs[name]) or not _is_seed(declared):
                continue
            if "INT" in definition.output_types and not _is_named_seed(name):
                seeding = _seeding(nodes, definitions) if seeding is None else seeding
                if node_id not in seeding:
                    continue
            yield node_id, name, declared


def _seeding(nodes: Nodes, definitions: Definitions) -> set[str]:
    """Give the nodes whose outputs are taken as seeds."""
    return {link.source for link in links(nodes) if _takes_seed(nodes[link.target], link.input_name, definitions)}


def _takes_seed(node: Mapping[str, Any], name: str, definitions: Definitions) -> bool:
    if node["class_type"] not in definitions:
        return _is_named_seed(name)
    declared = definitions[node["class_type"]].inputs_for(node["inputs"]).get(name)
    return declared is not None and _is_seed(declared)


def _is_named_seed(name: str) -> bool:
    return name.rpartition(".")[2] in _NAMES


def _is_seed(declared: InputDefinition) -> bool:
    if declared.type != "INT" or declared.force_input:
        return False
    control = declared.control_after_generate
    return _is_named_seed(declared.name) if control is None else bool(control)


def randomized(nodes: Nodes, rng: random.Random, definitions: Definitions) -> dict[str | tuple[str, str], Any]:
    """Draw a value for every seed, within the range that the server takes and the editor would draw from."""
    return {(node_id, name): rng.randint(*_range(declared)) for node_id, name, declared in seeds(nodes, definitions)}


def _range(declared: InputDefinition | None) -> tuple[int, int]:
    """Give the least and the greatest seed to draw: not negative where that can be had, for few samplers take those."""
    low = declared.minimum if declared is not None else None
    high = declared.maximum if declared is not None else None
    least, most = int(low or 0), _GREATEST if high is None else int(high)
    least = 0 if least < 0 <= most else least
    return least, max(least, min(most, _GREATEST))
