"""``acomfy check``: what the server would refuse, without sending anything."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..checking import CheckReport
from ..errors import NodeProblem
from .arguments import load_workflow
from .classes import Classes, ObjectInfoFile, Server, Simulate
from .ends import FAILED, OTHER_CODES, SUCCEEDED, accept_any_text, in_words, printable

EXIT_CODES = f"Exit codes: 0 the server would take it; 1 it would refuse it, or drop a part; {OTHER_CODES}."


def check(
    workflow: Annotated[
        str, typer.Argument(metavar="WORKFLOW", help="A workflow, in whatever file it is; - is stdin.")
    ],
    server: Server = None,
    object_info: ObjectInfoFile = None,
    simulate: Simulate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Check a workflow as the server does before it queues a prompt; nothing is sent.

    Unknown node classes, missing inputs, values out of their range or list (a model that the server has not), links
    between types that do not fit, cycles: each with the node, its title, and what would be right.
    """
    with in_words():
        classes = Classes(server, simulate, object_info)
        definitions = classes()
        report = load_workflow(workflow, definitions, keep_unknown=True).check(definitions, version=classes.version)
    accept_any_text()
    print(_as_json(report) if as_json else printable(f"{workflow}: {report}"))
    raise typer.Exit(SUCCEEDED if report.ok else FAILED)


def _as_json(report: CheckReport) -> str:
    return json.dumps(
        {
            "ok": report.ok,
            "problems": [_plain(problem) for problem in report.problems],
            "warnings": [_plain(warning) for warning in report.warnings],
            "valid_outputs": report.valid_outputs,
            "dropped_outputs": report.dropped_outputs,
        }
    )


def _plain(problem: NodeProblem) -> dict[str, Any]:
    return {
        "node_id": problem.node_id,
        "class_type": problem.class_type,
        "title": problem.title,
        "input_name": problem.input_name,
        "type": problem.type,
        "message": str(problem),
    }
