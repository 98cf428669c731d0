"""The server's check of a prompt before it is queued (ComfyUI execution.py validate_prompt, 0.3.64 and 0.33.0).

What an input takes, and what a link fits, is known by `acomfy.checking`; the walk is the server's own here, with the
order, the recursion and the tracebacks that a client sees.

An error is a plain dict of ``type``, ``message``, ``details`` and ``extra_info``, as the server writes it. A prompt is
accepted when at least one of its output nodes is valid; the others are dropped, and their errors come with the 200.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checking.findings import Error, write_error
from ..checking.inputs import Strictness, bad_link, convert, mismatch, missing, out_of_bounds
from ..checking.rules import Rules
from ..definitions import InputDefinition, read_input
from .nodes import Graph, Node
from .versions import Capabilities


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
    return _Validator(prompt, classes, _rules(can)).run(outputs)


error = write_error


def _rules(can: Capabilities) -> Rules:
    return Rules(
        any_fits=can.any_type_fits,
        checks_options=can.options_checked,
        several_choices=can.several_choices,
        names_missing_class=can.missing_node_type,
        names_cycles=can.dependency_cycle_error,
        renames=can.node_replacements,
        takes_targets=can.partial_targets,
    )


def _unknown_class(node_id: str, node: dict[str, Any], class_type: Any, named: bool) -> Error:
    if class_type is None:
        message = "Cannot execute because a node is missing the class_type property."
    else:
        message = f"Cannot execute because node {class_type} does not exist."
    if not named:
        return error("invalid_prompt", message, f"Node ID '#{node_id}'")
    title = node.get("_meta", {}).get("title", class_type)
    if class_type is None:
        shown = title or f"ID #{node_id}"
        message = f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
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

    def __init__(self, prompt: Graph, classes: Mapping[str, Node], rules: Rules) -> None:
        self._prompt = prompt
        self._classes = classes
        self._verdicts: dict[str, tuple[bool, list[Error]]] = {}
        self._under_way: dict[str, None] = {}
        self._rules = rules
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
            declared = read_input(name, [kind, options], required=category == "required")
            if name not in inputs:
                if declared.required:
                    errors.append(missing(name, dynamic=False).error)
            elif isinstance(inputs[name], list):
                found = self._link(declared, inputs[name])
                if found is False:
                    valid = False
                elif isinstance(found, dict):
                    errors.append(found)
            elif refusal := self._constant(declared, inputs, check=not checks_all and name not in own_checks):
                errors.append(refusal)
        errors += _custom(node_class, own_checks, checks_all, inputs)
        self._under_way.pop(node_id)
        errors += self._cycles.pop(node_id, [])
        self._verdicts[node_id] = (valid and not errors, errors)
        return self._verdicts[node_id]

    def _cycle(self, node_id: str) -> list[Error]:
        """Note a cycle at each of its nodes, if the version does.

        Older ones recurse until Python stops them, and lose the error on the way back: a cycle has no node_errors.
        """
        if self._rules.names_cycles:
            way = list(self._under_way)
            nodes = way[way.index(node_id) :]
            shown = " -> ".join(f"{one} ({self._prompt[one]['class_type']})" for one in [*nodes, node_id])
            for one in nodes:
                extra = {"node_id": one, "cycle_nodes": nodes}
                self._cycles[one] = [error("dependency_cycle", "Dependency cycle detected", shown, **extra)]
        return []

    def _link(self, declared: InputDefinition, link: list[Any]) -> Error | bool:
        """Check a link: an error, False when what is behind it is invalid, True when all is well."""
        if len(link) != 2:
            return bad_link(declared, link).error
        source, slot = link
        received = self._classes[self._prompt[source]["class_type"]].outputs[slot]
        if found := mismatch(declared, received, link, self._rules):
            return found.error
        try:
            return self._node(source)[0]
        except Exception as exc:
            extra = {"input_name": declared.name, "input_config": declared.raw, "exception_message": str(exc)}
            extra |= {**_exception_info(exc), "linked_node": link}
            broken = error(
                "exception_during_inner_validation", "Exception when validating inner node", str(exc), **extra
            )
            self._verdicts[source] = (False, [broken])
            return False

    def _constant(self, declared: InputDefinition, inputs: dict[str, Any], *, check: bool) -> Error | None:
        """Convert a constant to the input's type, in the prompt itself, and check its range or its choice."""
        inputs[declared.name], failed = convert(declared, inputs[declared.name])
        if failed is not None or not check:
            return failed.error if failed is not None else None
        found = out_of_bounds(declared, inputs[declared.name], self._rules, Strictness())
        return found.error if found is not None and not found.doubtful else None


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


def _exception_info(exc: Exception) -> dict[str, Any]:
    return {"exception_type": exception_type(exc), "traceback": traceback.format_tb(exc.__traceback__)}


def exception_type(exc: BaseException) -> str:
    """Name an exception's class as ComfyUI does: with its module, unless it is a builtin one."""
    kind = type(exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
