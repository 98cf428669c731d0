"""One input of a node against its definition: a constant, or a link (execution.py validate_inputs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..definitions import COMBO, MATCH_TYPE, Definitions, InputDefinition, NodeDefinition
from ..errors import ProtocolError
from .findings import Broken, Finding, write_error
from .own import is_core, is_v3
from .rules import Rules

_LONG_LIST = 20  # the server does not send the definition of a longer one back
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass(frozen=True, slots=True)
class Strictness:
    """How far the server's own checks of an input go.

    Attributes:
        bounds: Limits and lists are looked at; False when the class's own check takes the input.
        links: The types of links are looked at.
        doubtful_bounds: The class may have a check of the value that nobody knows.
        doubtful_links: The class may have a check of its links that nobody knows.
    """

    bounds: bool = True
    links: bool = True
    doubtful_bounds: bool = False
    doubtful_links: bool = False


def missing(name: str, *, dynamic: bool) -> Finding:
    """Write the error for a required input that is not given."""
    shown = name.rpartition(".")[2] if dynamic else name
    return Finding(write_error("required_input_missing", "Required input is missing", shown, input_name=name))


# --- Constants -------------------------------------------------------------------------------------------------------


def unwrapped(value: Any) -> Any:
    """Take a list out of ``{"__value__": [...]}``, by which it is told from a link."""
    return value["__value__"] if isinstance(value, Mapping) and "__value__" in value else value


def convert(declared: InputDefinition, value: Any) -> tuple[Any, Finding | None]:
    """Convert a constant as the server does (``int("5")``), or say why it cannot."""
    value = unwrapped(value)
    conversion = _CONVERSIONS.get(declared.type)
    try:
        return (value if conversion is None else conversion(value)), None
    except Exception as exc:
        name, kind = declared.name, declared.type
        message = f"Failed to convert an input value to a {kind} value"
        extra = {**_extra(declared), "received_value": value, "exception_message": str(exc)}
        return value, Finding(write_error("invalid_input_type", message, f"{name}, {value}, {exc}", **extra))


def out_of_bounds(declared: InputDefinition, value: Any, rules: Rules, strictness: Strictness) -> Finding | None:
    """Compare a converted constant with its limits and its list.

    Raises:
        TypeError: It cannot be compared with the limits; the server's check breaks there too.
    """
    settings = declared.settings
    extra = {**_extra(declared), "received_value": value}
    try:
        if "min" in settings and value < settings["min"]:
            message = f"Value {value} smaller than min of {settings['min']}"
            error = write_error("value_smaller_than_min", message, declared.name, **extra)
            return Finding(error, doubtful=strictness.doubtful_bounds)
        if "max" in settings and value > settings["max"]:
            message = f"Value {value} bigger than max of {settings['max']}"
            error = write_error("value_bigger_than_max", message, declared.name, **extra)
            return Finding(error, doubtful=strictness.doubtful_bounds)
    except TypeError:
        if strictness.doubtful_bounds:
            return None
        raise
    return _not_in_list(declared, value, rules, doubtful=strictness.doubtful_bounds)


def _not_in_list(declared: InputDefinition, value: Any, rules: Rules, *, doubtful: bool) -> Finding | None:
    if declared.type != COMBO:
        return None
    choices = declared.choices or ()
    if declared.multiselect and isinstance(value, list) and rules.several_choices:
        wrong = [item for item in value if item not in choices]
    else:
        wrong = [] if value in choices else [value]
    if not wrong:
        return None
    extra = {**_extra(declared), "received_value": value}
    shown = str(list(choices))
    if len(choices) > _LONG_LIST:
        shown, extra["input_config"] = f"(list of length {len(choices)})", None
    said = ", ".join(map(repr, wrong)) if rules.several_choices else f"'{value}'"
    error = write_error("value_not_in_list", "Value not in list", f"{declared.name}: {said} not in {shown}", **extra)
    unchecked = declared.remote or not (_is_old_form(declared) or rules.checks_options)
    hint = "" if choices else "the server has nothing to choose from here (no such file is installed)"
    return Finding(error, hint, choices=choices, doubtful=doubtful or unchecked)


def _is_old_form(declared: InputDefinition) -> bool:
    return isinstance(declared.raw, list | tuple) and isinstance(declared.raw[0], list | tuple)


def _extra(declared: InputDefinition) -> dict[str, Any]:
    return {"input_name": declared.name, "input_config": [_written_type(declared), declared.settings]}


def _written_type(declared: InputDefinition) -> Any:
    """Give the type as the server wrote it: the list itself for a combo of the old form."""
    return list(declared.raw[0]) if _is_old_form(declared) else declared.type


# --- Links -----------------------------------------------------------------------------------------------------------


def check_link(
    declared: InputDefinition,
    link: list[Any] | tuple[Any, ...],
    nodes: Mapping[str, Any],
    definitions: Definitions,
    rules: Rules,
    strictness: Strictness,
) -> Finding | Broken | None:
    """Check a link; None when it is right (as far as the classes on both sides are known)."""
    if len(link) != 2:
        return bad_link(declared, link)
    source, slot = link
    try:
        class_type = nodes[source]["class_type"]
    except (KeyError, TypeError) as exc:
        return Broken.by(exc, _no_such_node(declared.name, source, nodes))
    definition = known(definitions, class_type)
    if definition is None:
        return None
    types = _types_as_in_python(definition)
    try:
        received = types[slot]
    except (IndexError, TypeError) as exc:
        hint = f"input {declared.name!r} links to output {slot!r} of node {source} ({class_type}), {_slots(types)}"
        return _open_ended(declared, link, definition, hint) or Broken.by(exc, hint)
    if not strictness.links:
        return None
    return mismatch(declared, received, link, rules, doubtful=strictness.doubtful_links)


def bad_link(declared: InputDefinition, link: list[Any] | tuple[Any, ...]) -> Finding:
    """Write the error for a list that is no ``[node_id, slot]``."""
    message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
    extra = {**_extra(declared), "received_value": list(link)}
    hint = "a list that is a value is written {'__value__': [...]}"
    return Finding(write_error("bad_linked_input", message, declared.name, **extra), hint)


def mismatch(
    declared: InputDefinition,
    received: Any,
    link: list[Any] | tuple[Any, ...],
    rules: Rules,
    *,
    doubtful: bool = False,
) -> Finding | None:
    """Compare the type of a linked output with the input's; None when they fit."""
    received = list(received) if isinstance(received, tuple) else received
    wanted = _written_type(declared)
    if types_fit(received, wanted, rules):
        return None
    extra = {**_extra(declared), "received_type": received, "linked_node": list(link)}
    details = f"{declared.name}, received_type({received}) mismatch input_type({wanted})"
    error = write_error("return_type_mismatch", "Return type mismatch between linked nodes", details, **extra)
    return Finding(error, doubtful=doubtful)


def known(definitions: Definitions, class_type: Any) -> NodeDefinition | None:
    """Give a class; None when the server has none of that name, or describes it so that it cannot be read."""
    if class_type not in definitions:
        return None
    try:
        return definitions[class_type]
    except ProtocolError:
        return None


def types_fit(received: Any, wanted: Any, rules: Rules) -> bool:
    """Tell whether an output of a type may be linked to an input (comfy_execution/validation.py).

    Comma lists fit when they share a type. Where a version leaves ``*`` to the Python class behind it, it fits.
    """
    if received == wanted:
        return True
    if isinstance(received, list) and wanted == COMBO:
        return rules.any_fits
    if not isinstance(received, str) or not isinstance(wanted, str):
        return "*" in (received, wanted)
    gives = {kind.strip() for kind in received.split(",")}
    takes = {kind.strip() for kind in wanted.split(",")}
    return "*" in gives | takes or MATCH_TYPE in (received, wanted) or not gives.isdisjoint(takes)


def _types_as_in_python(definition: NodeDefinition) -> list[Any] | tuple[Any, ...]:
    """Give the output types in what the class keeps them in, so that Python's complaint is the server's."""
    return list(definition.output_types) if is_v3(definition) else definition.output_types


def _open_ended(
    declared: InputDefinition, link: list[Any] | tuple[Any, ...], source: NodeDefinition, hint: str
) -> Finding | None:
    """Doubt that an output is not there: some packs have classes with as many outputs as are linked, of type ``*``."""
    if is_core(source) or "*" not in source.output_types or not isinstance(link[1], int):
        return None
    extra = {**_extra(declared), "linked_node": list(link)}
    return Finding(write_error("bad_linked_input", "No such output", declared.name, **extra), hint, doubtful=True)


def _no_such_node(name: str, source: Any, nodes: Mapping[str, Any]) -> str:
    if isinstance(source, int) and str(source) in nodes:
        return f"input {name!r} links to node {source}, but a link names its node as text: {str(source)!r}"
    return f"input {name!r} links to node {source!r}, which the prompt has not"


def _slots(types: list[Any] | tuple[Any, ...]) -> str:
    if not types:
        return "which has none"
    return "which has only output 0" if len(types) == 1 else f"which has outputs 0 to {len(types) - 1}"
