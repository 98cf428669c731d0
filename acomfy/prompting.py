"""What a prompt is made of before anything is sent: its workflow as it is now, its options, its id."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Collection, Mapping
from typing import Any, Literal

from . import workflow
from .errors import WorkflowError
from .job import Job, JobOwner, PromptOptions
from .router import TrackedPrompt
from .snapshots import Snapshots
from .uploads import check_all
from .verdict import JobState
from .workflow import EncodedGraph, Graph

OnLost = Literal["raise", "resubmit"]


def encoded(graph: Graph, stream_classes: frozenset[str], snapshots: Snapshots) -> EncodedGraph:
    """Freeze a workflow as it is now; see that the files in it are there.

    Raises:
        WorkflowError: It is no workflow that can be sent, or a file is not there.
    """
    found = workflow.encode(graph, stream_classes, snapshots.copy_picture)
    if found.files:
        check_all(found.files)
    return found


def unsendable(error: WorkflowError, options: PromptOptions, owner: JobOwner, index: int) -> Job:
    """Make the job of an item of a map that is no workflow: it ended with that."""
    job = Job(TrackedPrompt(str(uuid.uuid4()), b"{}"), options, owner, index)
    job.settle(error, JobState.FAILED)
    return job


# Ten thousand live jobs share one of each, which the garbage collector need not visit for each of them.
_USUAL = PromptOptions()


def prompt_options(
    strict: bool,
    on_lost: OnLost,
    front: bool,
    number: float | None,
    targets: Collection[str] | None,
    extra_data: Mapping[str, Any] | None,
    stall_timeout: float | None,
) -> PromptOptions:
    """Check what was said of a prompt, and freeze it."""
    if on_lost not in ("raise", "resubmit"):
        raise ValueError(f"on_lost is 'raise' or 'resubmit', not {on_lost!r}")
    if number is not None and not math.isfinite(number := float(number)):
        raise ValueError(f"number is a place in the queue's order, not {number}")
    if isinstance(targets, str):
        raise TypeError(f"targets is a collection of node ids, for example [{targets!r}]")
    outputs = None if targets is None else tuple(str(target) for target in targets)
    options = PromptOptions(strict, on_lost, bool(front), number, outputs, _extra_json(extra_data), stall_timeout)
    return _USUAL if options == _USUAL else options


def _extra_json(extra_data: Mapping[str, Any] | None) -> bytes | None:
    if extra_data is None:
        return None
    if not isinstance(extra_data, Mapping):
        raise WorkflowError(f"extra_data is an object, not {type(extra_data).__name__}")
    try:
        return json.dumps(dict(extra_data), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise WorkflowError(f"extra_data cannot be written as JSON: {exc}") from None


def tracked(
    graph: bytes, stream_nodes: frozenset[str], options: PromptOptions, prompt_id: str | None = None
) -> TrackedPrompt:
    """Give a prompt an id of its own, under which it is followed; None: a new one."""
    targets = options.targets
    wanted = stream_nodes if targets is None else stream_nodes & set(targets)
    return TrackedPrompt(prompt_id or str(uuid.uuid4()), graph, wanted, targets)
