"""One node against its class: all its inputs, and the class's own check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..definitions import AUTOGROW, DYNAMIC_COMBO, DYNAMIC_SLOT, Definitions, InputDefinition, NodeDefinition
from ..errors import ProtocolError, nearest_match
from .findings import Broken, Finding, write_error
from .inputs import Strictness, check_link, convert, known, missing, out_of_bounds, unwrapped
from .own import OwnCheck, ask, is_core, listed_files, may_check_links, may_check_value, own_check
from .rules import Rules

_DYNAMIC = (AUTOGROW, DYNAMIC_COMBO, DYNAMIC_SLOT)
# Types that no editor has a widget for: a constant passes the server's check, and the node fails when it runs.
_ONLY_LINKED = frozenset(
    ("AUDIO", "CLIP", "CLIP_VISION", "CLIP_VISION_OUTPUT", "CONDITIONING", "CONTROL_NET", "GUIDER", "IMAGE", "LATENT")
    + ("MASK", "MODEL", "NOISE", "SAMPLER", "SIGMAS", "STYLE_MODEL", "UPSCALE_MODEL", "VAE", "VIDEO")
)
_PLAIN = (str, bool, int, float, list, tuple, Mapping)


@dataclass(frozen=True, slots=True)
class Link:
    """An input that takes another node's output, and was found right in itself."""

    input_name: str
    source: str
    slot: Any
    declared: InputDefinition


@dataclass(slots=True)
class Examined:
    """What was found at one node.

    Attributes:
        findings: Its errors and doubts.
        links: The nodes behind it, which the server looks at next.
        broken: The exception that takes the place of the errors; None when there was none.
        remarks: What the server lets pass.
    """

    findings: list[Finding] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    broken: Broken | None = None
    remarks: list[Finding] = field(default_factory=list)


class Examiner:
    """Looks at the nodes of one prompt, each by itself."""

    def __init__(self, nodes: Mapping[str, Any], definitions: Definitions, rules: Rules) -> None:
        self._nodes = nodes
        self._definitions = definitions
        self._rules = rules
        self._listed: frozenset[str] | None = None

    def examine(self, node_id: str) -> Examined:
        """Check a node's inputs as the server does, without the nodes behind them."""
        node = self._nodes[node_id]
        if "inputs" not in node:
            return Examined(broken=Broken("KeyError", "'inputs'", "the node has no 'inputs': give it at least {}"))
        inputs = node["inputs"]
        if isinstance(inputs, list | str):
            inputs = {}  # where Python looks for names in vain (before 0.14.0, which refuses the prompt)
        if not isinstance(inputs, Mapping):
            kind = type(inputs).__name__
            text = f"argument of type '{kind}' is not iterable"
            return Examined(broken=Broken("TypeError", text, f"its 'inputs' are {kind}, not an object"))
        definition = known(self._definitions, node["class_type"])
        try:
            declared = definition.inputs_for(inputs) if definition is not None else None
        except ProtocolError:
            declared = None
        if definition is None or declared is None:
            return Examined()
        return self._examine(definition, declared, inputs)

    def _examine(
        self, definition: NodeDefinition, declared: Mapping[str, InputDefinition], inputs: Mapping[str, Any]
    ) -> Examined:
        examined = Examined(remarks=_unknown_inputs(definition, declared, inputs))
        examined.remarks += _selecting_nothing(definition, declared, inputs)
        own, unsure_links = own_check(definition), may_check_links(definition)
        dynamic = any(item.type in _DYNAMIC for item in definition.inputs.values())
        values: dict[str, Any] = {}
        for name, item in declared.items():
            if name not in inputs:
                if item.required and item.type not in _DYNAMIC:
                    examined.findings.append(missing(name, dynamic=dynamic))
                continue
            unsure = may_check_value(definition, item)
            strictness = Strictness(not own.covers(name), not own.any_link, unsure, unsure_links)
            found = self._input(item, inputs[name], strictness, examined, values)
            if isinstance(found, Broken):
                examined.broken = examined.broken or found
            elif found is not None:
                examined.findings.append(found)
        self._ask(definition, own, declared, values, examined)
        return examined

    def _input(
        self,
        declared: InputDefinition,
        value: Any,
        strictness: Strictness,
        examined: Examined,
        values: dict[str, Any],
    ) -> Finding | Broken | None:
        if isinstance(value, list | tuple):
            values[declared.name] = None if _is_link(value) else value
            found = check_link(declared, value, self._nodes, self._definitions, self._rules, strictness)
            if found is None or (isinstance(found, Finding) and found.doubtful):
                examined.links.append(Link(declared.name, value[0], value[1], declared))
            return found
        if value is not None and not isinstance(value, _PLAIN):
            # A path, a picture, ...: it is uploaded first, and the name of a file in a subfolder stands in its place.
            values[declared.name] = "uploaded/file"
            return None
        values[declared.name], failed = convert(declared, value)
        if failed is not None:
            return failed
        if value is not None and declared.type in _ONLY_LINKED:
            examined.remarks.append(_constant_for_link(declared, value))
        if not strictness.bounds:
            return None
        try:
            return out_of_bounds(declared, values[declared.name], self._rules, strictness)
        except TypeError as exc:
            return Broken.by(exc, f"input {declared.name!r}: {unwrapped(value)!r} cannot be compared with its limits")

    def _ask(
        self,
        definition: NodeDefinition,
        own: OwnCheck,
        declared: Mapping[str, InputDefinition],
        values: Mapping[str, Any],
        examined: Examined,
    ) -> None:
        if examined.broken is not None or not (own.takes or own.everything):
            return
        if self._listed is None:
            self._listed = listed_files(self._definitions)
        answer = ask(definition, declared, values, self._listed)
        if isinstance(answer, Broken):
            examined.broken = answer
        else:
            examined.findings += answer


def _is_link(value: list[Any] | tuple[Any, ...]) -> bool:
    """Tell whether the server hands this to a node as a link (comfy_execution/graph_utils.py is_link)."""
    return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)


def _unknown_inputs(
    definition: NodeDefinition, declared: Mapping[str, InputDefinition], inputs: Mapping[str, Any]
) -> list[Finding]:
    """Remark inputs that the server ignores; other packs' classes may take more than they tell."""
    if not is_core(definition) or own_check(definition).everything:
        return []
    known_names = {*declared, *definition.inputs, *definition.hidden}
    unknown = [name for name in inputs if name not in known_names]
    return [_unknown_input(name, list(declared)) for name in unknown]


def _unknown_input(name: str, names: list[str]) -> Finding:
    nearest = nearest_match(name, names)
    hint = "the server ignores it" if nearest is None else f"the server ignores it; did you mean {nearest!r}?"
    return Finding(write_error("unknown_input", "Its class has no such input", name, input_name=name), hint)


def _selecting_nothing(
    definition: NodeDefinition, declared: Mapping[str, InputDefinition], inputs: Mapping[str, Any]
) -> list[Finding]:
    """Remark dynamic combos that are not given, or given none of their keys: 0.33 ignores them, the node then fails."""
    found = []
    for name, item in definition.inputs.items():
        if item.type == DYNAMIC_COMBO and name not in declared and (item.required or name in inputs):
            message = f"{name!r} selects none of its keys"
            error = write_error("invalid_dynamic_input", message, name, input_name=name)
            found.append(Finding(error, choices=item.choices, received=inputs.get(name), doubtful=True))
    return found


def _constant_for_link(declared: InputDefinition, value: Any) -> Finding:
    message = f"A constant where only a link to {declared.type} can be used"
    error = write_error("link_expected", message, declared.name, input_name=declared.name, received_value=value)
    return Finding(error, "the server takes it, and the node fails when it runs")
