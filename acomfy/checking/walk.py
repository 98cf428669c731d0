"""From the output nodes up the links: each node once, cycles seen (execution.py validate_prompt, validate_inputs).

The server walks by recursion, in an order that differs from run to run, and stops at a node whose check breaks. Here
the order is that of the prompt, nothing recurses, and what is behind a broken node is looked at too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .findings import Broken, Error, Finding, write_error
from .node import Examiner, Link


@dataclass
class Walked:
    """What the walk found.

    Attributes:
        findings: Errors and doubts by node, in the order in which the nodes were reached.
        remarks: What the server lets pass, by node.
        valid: The output nodes that would run.
        invalid: Those that would not.
        needed_by: For each node with errors, the invalid outputs that depend on it.
    """

    findings: dict[str, list[Finding]] = field(default_factory=dict)
    remarks: dict[str, list[Finding]] = field(default_factory=dict)
    valid: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    needed_by: dict[str, list[str]] = field(default_factory=dict)


def walk(outputs: Iterable[str], nodes: Mapping[str, Any], examiner: Examiner, *, names_cycles: bool) -> Walked:
    """Check the output nodes and all that is behind them; ``names_cycles`` as in `Rules`."""
    return _Walk(nodes, examiner).run(list(outputs), names_cycles=names_cycles)


class _Walk:
    def __init__(self, nodes: Mapping[str, Any], examiner: Examiner) -> None:
        self._nodes = nodes
        self._examiner = examiner
        self._walked = Walked()
        self._valid: dict[str, bool] = {}
        self._links: dict[str, list[Link]] = {}
        self._under_way: dict[str, Iterator[Link]] = {}

    def run(self, outputs: list[str], *, names_cycles: bool) -> Walked:
        for output in outputs:
            self._visit(output)
        self._walked.valid = [output for output in outputs if self._valid[output]]
        self._walked.invalid = [output for output in outputs if not self._valid[output]]
        if not names_cycles and self._walked.valid:
            self._silence_cycles()
        self._blame()
        return self._walked

    def _visit(self, output: str) -> None:
        if output not in self._valid:
            self._enter(output, None)
        while self._under_way:
            node_id, links = next(reversed(self._under_way.items()))
            link = next(links, None)
            if link is None:
                del self._under_way[node_id]
                self._valid[node_id] = self._judge(node_id)
            elif link.source in self._under_way:
                self._close_cycle(link.source)
            elif link.source not in self._valid:
                self._enter(link.source, link)

    def _enter(self, node_id: str, via: Link | None) -> None:
        examined = self._examiner.examine(node_id)
        found = examined.findings
        if examined.broken is not None:
            error = _broken(examined.broken, via)
            found = [Finding(error, examined.broken.hint), *(finding for finding in found if finding.doubtful)]
        if found:
            self._walked.findings.setdefault(node_id, []).extend(found)
        if examined.remarks:
            self._walked.remarks[node_id] = examined.remarks
        self._links[node_id] = examined.links
        self._under_way[node_id] = iter(examined.links)

    def _judge(self, node_id: str) -> bool:
        wrong = any(not finding.doubtful for finding in self._walked.findings.get(node_id, ()))
        return not wrong and all(self._valid.get(link.source, False) for link in self._links[node_id])

    def _close_cycle(self, node_id: str) -> None:
        """Note a cycle at each of its nodes, as 0.20.0 and newer do; older ones refuse without naming any."""
        way = list(self._under_way)
        cycle = [*way[way.index(node_id) :], node_id]
        shown = " -> ".join(f"{one} ({self._nodes[one]['class_type']})" for one in cycle)
        for one in cycle[:-1]:
            extra = {"node_id": one, "cycle_nodes": cycle[:-1]}
            found = Finding(write_error("dependency_cycle", "Dependency cycle detected", shown, **extra))
            self._walked.findings.setdefault(one, []).append(found)

    def _silence_cycles(self) -> None:
        """Make cycles warnings where the server takes the prompt and says nothing of the outputs that it drops."""
        for node_id, found in self._walked.findings.items():
            self._walked.findings[node_id] = [_silenced(finding) for finding in found]

    def _blame(self) -> None:
        """Say which invalid outputs depend on each node with errors."""
        users: dict[str, list[str]] = {}
        for node_id, links in self._links.items():
            for link in links:
                users.setdefault(link.source, []).append(node_id)
        invalid = set(self._walked.invalid)
        for node_id, found in self._walked.findings.items():
            if all(finding.doubtful for finding in found):
                continue
            reached, waiting = {node_id}, [node_id]
            while waiting:
                new = [user for user in users.get(waiting.pop(), ()) if user not in reached]
                reached.update(new)
                waiting += new
            self._walked.needed_by[node_id] = [output for output in self._walked.invalid if output in reached & invalid]


def _silenced(finding: Finding) -> Finding:
    if finding.error["type"] != "dependency_cycle":
        return finding
    return replace(finding, hint="the server drops the outputs behind it without saying so", doubtful=True)


def _broken(broken: Broken, via: Link | None) -> Error:
    extra: dict[str, Any] = {"exception_type": broken.exception_type, "traceback": []}
    if via is None:
        return write_error("exception_during_validation", "Exception when validating node", broken.text, **extra)
    extra = {
        "input_name": via.input_name,
        "input_config": [via.declared.raw[0], via.declared.settings],
        "exception_message": broken.text,
        **extra,
        "linked_node": [via.source, via.slot],
    }
    return write_error(
        "exception_during_inner_validation", "Exception when validating inner node", broken.text, **extra
    )
