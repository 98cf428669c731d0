"""Whether a server would take a prompt, known before it is sent: its validation, offline, from ``/object_info``.

Theory of operation. ``POST /prompt`` checks in two steps. First the prompt as a whole: every node must have a class
that the server knows, and one of them must be an output node; otherwise all of it is refused. Then every output node
with all that is behind it: inputs, limits, lists, links and their types. An output with an error behind it is dropped,
the others run; only when none is left is the prompt refused. `check` says the same, in the same words, and more: it
names all unknown classes, the node that a link misses, the name that was meant.

Some things cannot be known offline: what the checks of other packs' classes say (``VALIDATE_INPUTS``), and what changed
on the server since the definitions were read. A doubtful finding is a warning, never a problem: the server itself
answers within milliseconds, while a false alarm would stop a prompt that runs.

`findings` is what errors look like, `rules` how versions differ, `inputs` one input, `own` the classes with checks of
their own, `node` one node, `walk` all of them, `report` the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..definitions import Definitions
from ..errors import NodeProblem, PromptRejected, WorkflowError, WorkflowFormatError, nearest_match, node_problem
from .findings import Error, Finding, write_error
from .inputs import known
from .node import Examiner
from .report import CheckReport
from .rules import Rules, rules_for
from .walk import Walked, walk

__all__ = ["CheckReport", "check", "explained"]

_RENAMED = {  # comfy_extras/nodes_replacements.py, 0.33.0
    "ConditioningAverage ": "ConditioningAverage",
    "ImageBatch": "BatchImagesNode",
    "ImageScaleBy": "ResizeImageMaskNode",
    "Load3DAnimation": "Load3D",
    "Preview3DAnimation": "Preview3D",
    "ResizeImagesByLongerEdge": "ImageScaleToMaxDimension",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
    "T2IAdapterLoader": "ControlNetLoader",
}


def check(
    graph: Mapping[str, Any],
    object_info: Mapping[str, Any] | Definitions,
    *,
    targets: Collection[str] | None = None,
    version: str | None = None,
) -> CheckReport:
    """Find what ``POST /prompt`` would refuse, without sending anything.

    Args:
        graph: The prompt in API format; it is not changed. Values that are no JSON (a path, a picture) count as files
            that will be uploaded.
        object_info: What ``GET /object_info`` of the server answered, or `Definitions` of it.
        targets: The output nodes to run (``partial_execution_targets``); None means all.
        version: The server's version (``system_stats``), for example "0.3.64". None: what the definitions tell of it;
            rules that other versions lack then only give warnings.

    Raises:
        WorkflowFormatError: The graph is not in API format but in the editor's, or no mapping.
        WorkflowError: An id of a node is no text.
        ProtocolError: `object_info` is something else.
        ValueError: `version` is no version.
    """
    definitions = Definitions.of(object_info)
    rules = rules_for(version, definitions)
    nodes = _nodes(graph)
    whole = list(_wrong_as_a_whole(nodes, definitions, rules))
    outputs = _outputs(nodes, definitions, targets if rules.takes_targets else None)
    walked = walk(outputs, nodes, Examiner(nodes, definitions, rules), names_cycles=rules.names_cycles)
    if not outputs and not any(not finding.doubtful for _, finding in whole):
        whole.append(("", _no_outputs(targets)))
    return _report(nodes, whole, walked)


def explained(rejection: PromptRejected, object_info: Mapping[str, Any] | Definitions) -> PromptRejected:
    """Add to a server's refusal the choices that it left out: it lists 20 at most, and a misspelt model has more.

    Args:
        rejection: What submitting raised.
        object_info: What ``GET /object_info`` answered, or ``GET /object_info/{class}`` for the classes concerned.

    Raises:
        ProtocolError: `object_info` is something else.
    """
    definitions = Definitions.of(object_info)
    error = {"type": rejection.error_type, "message": rejection.message, "details": rejection.details}
    problems = [_with_choices(problem, definitions) for problem in rejection.problems]
    return PromptRejected(error, rejection.node_errors, partial=rejection.partial, problems=problems)


def _with_choices(problem: NodeProblem, definitions: Definitions) -> NodeProblem:
    definition = known(definitions, problem.class_type)
    declared = None if definition is None else definition.inputs.get(problem.input_name or "")
    if problem.type != "value_not_in_list" or problem.allowed is not None or declared is None or not declared.choices:
        return problem
    return replace(problem, allowed=list(declared.choices))


def _nodes(graph: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(graph, Mapping):
        raise WorkflowFormatError(f"a workflow is a JSON object of nodes, not {type(graph).__name__}")
    if isinstance(graph.get("nodes"), list):
        raise WorkflowFormatError("this is the editor's own workflow format, not API format: convert it first")
    for node_id in graph:
        if not isinstance(node_id, str):
            raise WorkflowError(f"node id {node_id!r} is {type(node_id).__name__}, not a string")
    return dict(graph.items())


def _outputs(nodes: Mapping[str, Any], definitions: Definitions, targets: Collection[str] | None) -> list[str]:
    """Name the output nodes that are to run, in the order of the prompt."""
    found = []
    for node_id, node in nodes.items():
        definition = known(definitions, node.get("class_type")) if isinstance(node, Mapping) else None
        if definition is not None and definition.output_node and (targets is None or node_id in targets):
            found.append(node_id)
    return found


# --- The prompt as a whole -------------------------------------------------------------------------------------------


def _wrong_as_a_whole(
    nodes: Mapping[str, Any], definitions: Definitions, rules: Rules
) -> Iterator[tuple[str, Finding]]:
    """Yield what makes the server refuse the prompt at first sight; it names the first only, and ends there."""
    for node_id, node in nodes.items():
        if isinstance(node, list | str) and not rules.renames:  # where a key is looked for in vain, says Python
            yield node_id, Finding(_no_class(node_id, {}, rules))
        elif not isinstance(node, Mapping):
            yield node_id, _malformed(node_id, f"the node is {type(node).__name__}, not an object")
        elif "class_type" not in node:
            yield node_id, Finding(_no_class(node_id, node, rules))
        elif isinstance(class_type := node["class_type"], list | Mapping):
            yield node_id, _malformed(node_id, f"its class_type is {type(class_type).__name__}, not a text")
        elif rules.renames and "inputs" in node and not isinstance(node["inputs"], Mapping):
            yield node_id, _malformed(node_id, f"its inputs are {type(node['inputs']).__name__}, not an object")
        elif class_type not in definitions:
            yield node_id, _unknown_class(node_id, node, definitions, rules)


def _malformed(node_id: str, what: str) -> Finding:
    """Write an error for what the server answers with 500, without a word about the reason."""
    return Finding(write_error("malformed_node", f"{what[0].upper()}{what[1:]}", f"Node ID '#{node_id}'"))


def _no_class(node_id: str, node: Mapping[str, Any], rules: Rules) -> Error:
    details = f"Node ID '#{node_id}'"
    if not rules.names_missing_class:
        message = "Cannot execute because a node is missing the class_type property."
        return write_error("invalid_prompt", message, details)
    title = _title(node)
    shown = title or f"ID #{node_id}"
    message = f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
    return write_error("missing_node_type", message, details, node_id=node_id, class_type=None, node_title=title)


def _unknown_class(node_id: str, node: Mapping[str, Any], definitions: Definitions, rules: Rules) -> Finding:
    class_type, details = node["class_type"], f"Node ID '#{node_id}'"
    renamed = _RENAMED.get(class_type) if rules.renames and isinstance(class_type, str) else None
    if rules.names_missing_class:
        title = _title(node) or class_type
        message = f"Node '{title}' not found. The custom node may not be installed."
        extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
        error = write_error("missing_node_type", message, details, **extra)
    else:
        error = write_error("invalid_prompt", f"Cannot execute because node {class_type} does not exist.", details)
    if renamed is not None and renamed in definitions:
        return Finding(error, f"the server takes {renamed!r} for it", doubtful=True)
    nearest = nearest_match(class_type, [name for name in definitions if name != class_type])
    return Finding(error, "" if nearest is None else f"did you mean {nearest!r}?")


def _no_outputs(targets: Collection[str] | None) -> Finding:
    error = write_error("prompt_no_outputs", "Prompt has no outputs", "")
    if targets is None:
        return Finding(error, "add a node that shows or saves something, such as SaveImage or PreviewImage")
    return Finding(error, "none of the targets is an output node of it")


# --- The answer ------------------------------------------------------------------------------------------------------


def _report(nodes: Mapping[str, Any], whole: list[tuple[str, Finding]], walked: Walked) -> CheckReport:
    found = [*whole, *((node_id, finding) for node_id, all_of in walked.findings.items() for finding in all_of)]
    warnings = [one for one in found if one[1].doubtful]
    warnings += [(node_id, remark) for node_id, all_of in walked.remarks.items() for remark in all_of]
    refusal = next((finding.error for _, finding in whole if not finding.doubtful), None)
    error = refusal
    if refusal is None and not walked.valid:
        error = _none_is_left(walked)
    return CheckReport(
        problems=tuple(_problem(nodes, *one) for one in found if not one[1].doubtful),
        warnings=tuple(_problem(nodes, *one) for one in warnings),
        valid_outputs=() if refusal else tuple(walked.valid),
        dropped_outputs=tuple(walked.valid + walked.invalid) if refusal else tuple(walked.invalid),
        error=error,
        node_errors={} if refusal else _node_errors(nodes, walked),
    )


def _none_is_left(walked: Walked) -> Error:
    failed = [finding.error for output in walked.invalid for finding in _errors(walked, output)]
    details = "\n".join(f"{error['message']}: {error['details']}" for error in failed)
    return write_error("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)


def _errors(walked: Walked, node_id: str) -> list[Finding]:
    return [finding for finding in walked.findings.get(node_id, ()) if not finding.doubtful]


def _node_errors(nodes: Mapping[str, Any], walked: Walked) -> dict[str, Any]:
    return {
        node_id: {
            "errors": [finding.error for finding in _errors(walked, node_id)],
            "dependent_outputs": outputs,
            "class_type": nodes[node_id]["class_type"],
        }
        for node_id, outputs in walked.needed_by.items()
    }


def _problem(nodes: Mapping[str, Any], node_id: str, finding: Finding) -> NodeProblem:
    node = nodes.get(node_id)
    node = node if isinstance(node, Mapping) else {}
    class_type = node.get("class_type")
    problem = node_problem(node_id, class_type if isinstance(class_type, str) else None, _title(node), finding.error)
    return replace(
        problem,
        received=problem.received if finding.received is None else finding.received,
        allowed=problem.allowed if finding.choices is None else list(finding.choices),
        hint=finding.hint,
    )


def _title(node: Mapping[str, Any]) -> str | None:
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) else None
