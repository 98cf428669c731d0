"""The server's check of a prompt before it is queued (ComfyUI execution.py validate_prompt, 0.3.64).

An error is a plain dict of ``type``, ``message``, ``details`` and ``extra_info``, as the server writes it. A prompt is
accepted when at least one of its output nodes is valid; the others are dropped, and their errors come with the 200.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .nodes import Graph, Node
from .versions import Capabilities

Error: TypeAlias = dict[str, Any]

_LONG_LIST = 20
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass
class Validation:
    """The outcome: which output nodes will run, or the error that refuses the prompt."""

    outputs: list[str] = field(default_factory=list)
    error: Error | None = None
    node_errors: dict[str, Any] = field(default_factory=dict)


def validate(
    prompt: Graph, classes: Mapping[str, Node], targets: Iterable[str] | None = None, *, can: Capabilities
) -> Validation:
    """Check a prompt; ``targets`` are the output nodes to run, all when None.

    Raises:
        TypeError: The prompt, or a node of it, is no object; ComfyUI answers that with 500.
    """
    outputs = []
    wanted = None if targets is None else set(targets)
    for node_id in prompt:
        class_type = prompt[node_id].get("class_type")
        node_class = classes.get(class_type) if class_type is not None else None
        if node_class is None:
            return Validation(error=_unknown_class(node_id, prompt[node_id], class_type, can.missing_node_type))
        if node_class.output_node and (wanted is None or node_id in wanted):
            outputs.append(node_id)
    if not outputs:
        return Validation(error=error("prompt_no_outputs", "Prompt has no outputs", ""))
    return _Validator(prompt, classes, names_cycles=can.dependency_cycle_error).run(outputs)


def error(kind: str, message: str, details: str, **extra_info: Any) -> Error:
    """Write an error as the server does."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _unknown_class(node_id: str, node: dict[str, Any], class_type: Any, named: bool) -> Error:
    if class_type is None:
        message = "Cannot execute because a node is missing the class_type property."
    else:
        message = f"Cannot execute because node {class_type} does not exist."
    if not named:
        return error("invalid_prompt", message, f"Node ID '#{node_id}'")
    title = node.get("_meta", {}).get("title", class_type or "Unknown Node")
    if class_type is None:
        message = f"Node '{title}' has no class_type. The workflow may be corrupted or a custom node is missing."
    else:
        message = f"Node '{title}' not found. The custom node may not be installed."
    return error(
        "missing_node_type",
        message,
        f"Node ID '#{node_id}'",
        node_id=node_id,
        class_type=class_type,
        node_title=title,
    )


class _Validator:
    """The walk from the output nodes up: each node is checked once."""

    def __init__(self, prompt: Graph, classes: Mapping[str, Node], *, names_cycles: bool) -> None:
        self._prompt = prompt
        self._classes = classes
        self._verdicts: dict[str, tuple[bool, list[Error]]] = {}
        self._under_way: dict[str, None] = {}
        self._names_cycles = names_cycles
        self._cycles: dict[str, list[Error]] = {}

    def run(self, outputs: list[str]) -> Validation:
        good, failed = [], []
        node_errors: dict[str, Any] = {}
        for node_id in outputs:
            valid, errors = self._output(node_id)
            if valid:
                good.append(node_id)
                continue
            failed += errors
            # Whatever was found so far is blamed on this output too, also what it does not depend on.
            for other, (other_valid, found) in self._verdicts.items():
                if not other_valid and found:
                    entry = {"errors": found, "dependent_outputs": [], "class_type": self._prompt[other]["class_type"]}
                    node_errors.setdefault(other, entry)["dependent_outputs"].append(node_id)
        if good:
            return Validation(good, None, node_errors)
        details = "\n".join(f"{item['message']}: {item['details']}" for item in failed)
        message = "Prompt outputs failed validation"
        return Validation([], error("prompt_outputs_failed_validation", message, details), node_errors)

    def _output(self, node_id: str) -> tuple[bool, list[Error]]:
        try:
            return self._node(node_id)
        except Exception as exc:
            found = error(
                "exception_during_validation", "Exception when validating node", str(exc), **_exception_info(exc)
            )
            self._verdicts[node_id] = (False, [found])
            return self._verdicts[node_id]

    def _node(self, node_id: str) -> tuple[bool, list[Error]]:
        if node_id in self._verdicts:
            return self._verdicts[node_id]
        if node_id in self._under_way:
            return False, self._cycle(node_id)
        self._under_way[node_id] = None
        inputs = self._prompt[node_id]["inputs"]
        node_class = self._classes[self._prompt[node_id]["class_type"]]
        own_checks, checks_all = _checked_by_node(node_class)
        valid, errors = True, []
        for name, (category, kind, options) in node_class.specs.items():
            info = _Input(name, kind, options)
            if name not in inputs:
                if category == "required":
                    missing = error("required_input_missing", "Required input is missing", name, input_name=name)
                    errors.append(missing)
            elif isinstance(inputs[name], list):
                found = self._link(info, inputs[name])
                if found is False:
                    valid = False
                elif isinstance(found, dict):
                    errors.append(found)
            elif refusal := _constant(info, inputs, check=not checks_all and name not in own_checks):
                errors.append(refusal)
        errors += _custom(node_class, own_checks, checks_all, inputs)
        self._under_way.pop(node_id)
        errors += self._cycles.pop(node_id, [])
        self._verdicts[node_id] = (valid and not errors, errors)
        return self._verdicts[node_id]

    def _cycle(self, node_id: str) -> list[Error]:
        """Note a cycle at the node where it closes, if the version does.

        Older ones recurse until Python stops them, and lose the error on the way back: a cycle has no node_errors.
        """
        if self._names_cycles:
            way = list(self._under_way)
            nodes = [*way[way.index(node_id) :], node_id]
            message = "Dependency cycle detected"
            found = error("dependency_cycle", message, " -> ".join(nodes), node_id=node_id, cycle_nodes=nodes)
            self._cycles[node_id] = [found]
        return []

    def _link(self, info: _Input, link: list[Any]) -> Error | bool:
        """Check a link: an error, False when what is behind it is invalid, True when all is well."""
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return error("bad_linked_input", message, info.name, **info.extra(received_value=link))
        source, slot = link
        received = self._classes[self._prompt[source]["class_type"]].outputs[slot]
        if not _types_match(received, info.kind):
            details = f"{info.name}, received_type({received}) mismatch input_type({info.kind})"
            message = "Return type mismatch between linked nodes"
            extra = info.extra(received_type=received, linked_node=link)
            return error("return_type_mismatch", message, details, **extra)
        try:
            return self._node(source)[0]
        except Exception as exc:
            extra = info.extra(exception_message=str(exc), **_exception_info(exc), linked_node=link)
            found = error(
                "exception_during_inner_validation", "Exception when validating inner node", str(exc), **extra
            )
            self._verdicts[source] = (False, [found])
            return False


@dataclass(frozen=True)
class _Input:
    """One input as its class declares it."""

    name: str
    kind: Any
    options: dict[str, Any]

    def extra(self, **more: Any) -> dict[str, Any]:
        return {"input_name": self.name, "input_config": [self.kind, self.options], **more}


def _constant(info: _Input, inputs: dict[str, Any], *, check: bool) -> Error | None:
    """Convert a constant to the input's type, in the prompt itself, and check its range or its choice."""
    value = inputs[info.name]
    try:
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[info.name] = value["__value__"]
        convert = _CONVERSIONS.get(info.kind) if isinstance(info.kind, str) else None
        if convert is not None:
            value = inputs[info.name] = convert(value)
    except Exception as exc:
        message = f"Failed to convert an input value to a {info.kind} value"
        extra = info.extra(received_value=value, exception_message=str(exc))
        return error("invalid_input_type", message, f"{info.name}, {value}, {exc}", **extra)
    if not check:
        return None
    options, extra = info.options, info.extra(received_value=value)
    if "min" in options and value < options["min"]:
        message = f"Value {value} smaller than min of {options['min']}"
        return error("value_smaller_than_min", message, info.name, **extra)
    if "max" in options and value > options["max"]:
        message = f"Value {value} bigger than max of {options['max']}"
        return error("value_bigger_than_max", message, info.name, **extra)
    choices = info.kind if isinstance(info.kind, list) else options.get("options") if info.kind == "COMBO" else None
    if choices is None or value in choices:
        return None
    if len(choices) > _LONG_LIST:
        extra["input_config"] = None
    shown = f"(list of length {len(choices)})" if len(choices) > _LONG_LIST else str(choices)
    return error("value_not_in_list", "Value not in list", f"{info.name}: '{value}' not in {shown}", **extra)


def _custom(node_class: Node, names: frozenset[str], takes_all: bool, inputs: Mapping[str, Any]) -> list[Error]:
    """Ask the node's own check; its complaint is repeated for every constant that it looked at."""
    if node_class.validate is None:
        return []
    specs = node_class.specs
    given = {
        name: value
        for name, value in inputs.items()
        if name in specs and (takes_all or name in names) and not isinstance(value, list)
    }
    if any(name not in given for name in names if specs.get(name, ("",))[0] == "required"):
        return []
    verdict = node_class.validate(**given)
    if verdict is True:
        return []
    complaint = "" if verdict is False else f" - {verdict}"
    message = "Custom validation failed for node"
    return [error("custom_validation_failed", message, f"{name}{complaint}", input_name=name) for name in given]


def _checked_by_node(node_class: Node) -> tuple[frozenset[str], bool]:
    if node_class.validate is None:
        return frozenset(), False
    parameters = inspect.signature(node_class.validate).parameters.values()
    names = frozenset(parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD)
    return names, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _types_match(received: Any, wanted: Any) -> bool:
    if not isinstance(received, str) or not isinstance(wanted, str):
        return bool(received == wanted) or (received == "COMBO" and isinstance(wanted, list))
    if "*" in (received, wanted):
        return True
    return not {kind.strip() for kind in received.split(",")}.isdisjoint(kind.strip() for kind in wanted.split(","))


def _exception_info(exc: Exception) -> dict[str, Any]:
    return {"exception_type": exception_type(exc), "traceback": traceback.format_tb(exc.__traceback__)}


def exception_type(exc: BaseException) -> str:
    """Name an exception's class as ComfyUI does: with its module, unless it is a builtin one."""
    kind = type(exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
