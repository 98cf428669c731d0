"""Prompts of anybody's that wait, run or have ended, as plain typed values: history entries and jobs.

Rules (ComfyUI server.py, execution.py, comfy_execution/jobs.py, 0.3.40 to 0.38; Comfy Cloud where it differs):

* Keys come and go with versions: what is missing, or not of its type, reads as None (or 0, or empty), and all that was
  sent stays in ``raw``. Only what makes no sense at all is a `ProtocolError`.
* Times are milliseconds since 1970, some are seconds: told apart by their size, and given in seconds.
* The jobs API (since 0.6.0) lists the queue and the history as one; for a server without it the same list is made of
  those two. There, how a prompt ended is read off its history's messages, which also know a cycle for a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import JobError, ProtocolError
from .look import QueueItem, QueueSnapshot, history_prompt, history_targets
from .loose import count_of, items_of, member, number_of, seconds_of
from .verdict import JobState, from_history

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A prompt that has ended (``GET /history``).

    Attributes:
        state: How: ``completed``, ``failed`` or ``cancelled``.
        error: What awaiting it would have raised; None when it completed.
        number: Its place in the order of the queue; None when the entry does not tell.
        prompt: The graph that was run, in API format; empty when the entry does not tell.
        extra_data: As posted, with ``client_id`` in it.
        targets: The output nodes that it was to run.
        outputs: What nodes made, by node id, as the server wrote it.
        started_at, ended_at: Seconds since 1970, by the server's clock; None when the entry does not tell.
    """

    prompt_id: str
    state: JobState
    error: JobError | None
    number: float | None
    prompt: Raw = field(repr=False)
    extra_data: Raw = field(repr=False)
    targets: tuple[str, ...]
    outputs: Mapping[str, Raw] = field(repr=False)
    started_at: float | None
    ended_at: float | None
    raw: Raw = field(repr=False)

    @property
    def duration(self) -> float | None:
        """Seconds from its start to its end; None when the entry does not tell."""
        return None if self.started_at is None or self.ended_at is None else self.ended_at - self.started_at


def read_history(body: Any) -> tuple[HistoryEntry, ...]:
    """Read the answer to ``GET /history``, in its order: that in which the prompts ended.

    Raises:
        ProtocolError: It is not what ComfyUI answers.
    """
    if not isinstance(body, Mapping) or not all(isinstance(entry, Mapping) for entry in body.values()):
        raise ProtocolError("the answer to GET /history is not a history: entries by prompt_id")
    return tuple(read_history_entry(prompt_id, entry) for prompt_id, entry in body.items())


def read_history_entry(prompt_id: str, entry: Raw) -> HistoryEntry:
    """Read one entry of a history."""
    graph = history_prompt(entry) or {}
    number, extra_data = _number_and_extra_data(entry.get("prompt"))
    verdict = from_history(prompt_id, entry, _titles(graph))
    outputs = entry.get("outputs")
    times = dict(_message_times(entry))
    return HistoryEntry(
        prompt_id=prompt_id,
        state=verdict.state,
        error=verdict.error,
        number=number,
        prompt=graph,
        extra_data=extra_data,
        targets=tuple(history_targets(entry) or ()),
        outputs={node: ui for node, ui in outputs.items() if isinstance(ui, Mapping)}
        if isinstance(outputs, Mapping)
        else {},
        started_at=times.get("execution_start"),
        ended_at=max((times[name] for name in times if name in _ENDS), default=None),
        raw=entry,
    )


_ENDS = ("execution_success", "execution_error", "execution_interrupted")


def _number_and_extra_data(prompt: Any) -> tuple[float | None, Raw]:
    if isinstance(prompt, Mapping):
        number, extra_data = prompt.get("priority", prompt.get("number")), prompt.get("extra_data")
    else:
        parts = [*items_of(prompt), None, None, None, None][:4]
        number, extra_data = parts[0], parts[3]
    return number_of(number), extra_data if isinstance(extra_data, Mapping) else {}


def _message_times(entry: Raw) -> Iterator[tuple[str, float]]:
    for message in items_of(member(entry.get("status"), "messages")):
        if isinstance(message, list) and len(message) == 2 and isinstance(message[0], str):
            at = seconds_of(member(message[1], "timestamp"))
            if at is not None:
                yield message[0], at


def _titles(graph: Raw) -> dict[str, str]:
    titles = {node_id: member(member(node, "_meta"), "title") for node_id, node in graph.items()}
    return {node_id: title for node_id, title in titles.items() if isinstance(title, str)}


# --- Jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A prompt of anybody's that waits, runs or has ended, as the jobs API tells of it.

    Attributes:
        state: Where it stands, a `JobState` unless the server has more of them; servers with a jobs API before 0.9 tell
            an interrupted prompt as failed.
        number: Its place in the order of the queue; None when the server does not tell.
        created_at: Seconds since 1970, by the server's clock (since 0.3.69).
        started_at, ended_at: Seconds since 1970; None before, and when the server does not tell.
        outputs_count: Files and the like that it made.
        preview_output: One of them to show, with ``nodeId`` and ``mediaType``; None when there is none.
        workflow_id: The ``id`` of the workflow in ``extra_pnginfo`` that was posted with it.
        execution_error: What its ``execution_error`` message said; None when it did not fail.
        raw: All that the server sent; from a server without the jobs API its queue item or history entry.
    """

    prompt_id: str
    state: str
    number: float | None = None
    created_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    outputs_count: int = 0
    preview_output: Raw | None = field(default=None, repr=False)
    workflow_id: str | None = None
    execution_error: Raw | None = field(default=None, repr=False)
    raw: Any = field(default=None, repr=False, compare=False)

    @property
    def duration(self) -> float | None:
        """Seconds from its start to its end; None before it ended, and when the server does not tell."""
        return None if self.started_at is None or self.ended_at is None else self.ended_at - self.started_at


@dataclass(frozen=True, slots=True)
class JobPage:
    """A part of the list of jobs.

    Attributes:
        total: How many there are in all, of those that were asked for.
        offset: How many come before this part.
        has_more: More come after it.
    """

    jobs: tuple[JobInfo, ...]
    total: int
    offset: int
    has_more: bool

    def __iter__(self) -> Iterator[JobInfo]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


def read_jobs(body: Any) -> JobPage:
    """Read the answer to ``GET /api/jobs``. A prompt that is listed twice, as it ended just then, is given once.

    Raises:
        ProtocolError: It is not what ComfyUI answers.
    """
    jobs, pagination = member(body, "jobs"), member(body, "pagination")
    if not isinstance(jobs, list) or not isinstance(pagination, Mapping):
        raise ProtocolError("the answer to GET /api/jobs has no jobs and pagination")
    found: dict[str, JobInfo] = {}
    for job in map(read_job, jobs):
        if job.prompt_id not in found or job.ended_at is not None:
            found[job.prompt_id] = job
    return JobPage(
        tuple(found.values()),
        count_of(pagination.get("total")),
        count_of(pagination.get("offset")),
        pagination.get("has_more") is True,
    )


def read_job(body: Any) -> JobInfo:
    """Read a job, of the list or the answer to ``GET /api/jobs/{id}``.

    Raises:
        ProtocolError: It is not what ComfyUI answers.
    """
    prompt_id, status = member(body, "id"), member(body, "status")
    if not isinstance(prompt_id, str) or not isinstance(status, str):
        raise ProtocolError(f"the server's jobs API tells of a job {prompt_id!r} in the state {status!r}")
    preview, error, workflow_id = body.get("preview_output"), body.get("execution_error"), body.get("workflow_id")
    return JobInfo(
        prompt_id=prompt_id,
        state=JobState(status) if status in tuple(JobState) else status,
        number=number_of(body.get("priority")),
        created_at=seconds_of(body.get("create_time")),
        started_at=seconds_of(body.get("execution_start_time")),
        ended_at=seconds_of(body.get("execution_end_time")),
        outputs_count=count_of(body.get("outputs_count")),
        preview_output=preview if isinstance(preview, Mapping) else None,
        workflow_id=workflow_id if isinstance(workflow_id, str) else None,
        execution_error=error if isinstance(error, Mapping) else None,
        raw=body,
    )


def queued_job(item: QueueItem, *, running: bool) -> JobInfo:
    """Tell of a prompt in the queue as the jobs API would."""
    return JobInfo(
        prompt_id=item.prompt_id,
        state=JobState.IN_PROGRESS if running else JobState.PENDING,
        number=item.number,
        created_at=seconds_of(item.extra_data.get("create_time")),
        workflow_id=_workflow_id(item.extra_data),
        raw=item,
    )


def ended_job(entry: HistoryEntry) -> JobInfo:
    """Tell of a prompt in the history as the jobs API would."""
    files = list(_files(entry.outputs))
    shown = [file for file in files if file["mediaType"] in ("images", "video", "audio", "gifs")]
    saved = [file for file in shown if file.get("type") == "output"]
    return JobInfo(
        prompt_id=entry.prompt_id,
        state=entry.state,
        number=entry.number,
        created_at=seconds_of(entry.extra_data.get("create_time")),
        started_at=entry.started_at,
        ended_at=entry.ended_at,
        outputs_count=len(files),
        preview_output=next(iter([*saved, *shown]), None),
        workflow_id=_workflow_id(entry.extra_data),
        execution_error=_error_message(entry.raw),
        raw=entry.raw,
    )


def list_jobs(
    queue: QueueSnapshot,
    history: Sequence[HistoryEntry],
    *,
    states: Collection[str] | None = None,
    workflow_id: str | None = None,
    sort_by: str = "created_at",
    descending: bool = True,
    limit: int | None = None,
    offset: int = 0,
) -> JobPage:
    """Make the list that the jobs API would give of a queue and a history, the queue read first."""
    found: dict[str, JobInfo] = {entry.prompt_id: ended_job(entry) for entry in history}
    for item in queue:
        found.setdefault(item.prompt_id, queued_job(item, running=item in queue.running))
    jobs = [job for job in found.values() if (states is None or job.state in states)]
    if workflow_id is not None:
        jobs = [job for job in jobs if job.workflow_id == workflow_id]
    jobs = _sorted(jobs, sort_by, descending)
    part = jobs[offset:] if limit is None else jobs[offset : offset + limit]
    return JobPage(tuple(part), len(jobs), offset, offset + len(part) < len(jobs))


def _sorted(jobs: list[JobInfo], sort_by: str, descending: bool) -> list[JobInfo]:
    """Sort jobs that come in the order in which they ended, will run, or were begun."""
    if sort_by == "execution_duration":
        jobs = sorted(jobs, key=lambda job: job.duration or 0.0)
    elif all(job.created_at is not None for job in jobs):
        jobs = sorted(jobs, key=lambda job: job.created_at or 0.0)
    return jobs[::-1] if descending else jobs


def _files(outputs: Mapping[str, Raw]) -> Iterator[dict[str, Any]]:
    for node_id, ui in outputs.items():
        for key, items in ui.items():
            for item in items_of(items):
                if isinstance(item, Mapping):
                    yield {**item, "nodeId": node_id, "mediaType": key}


def _error_message(entry: Raw) -> Raw | None:
    for message in items_of(member(entry.get("status"), "messages")):
        if isinstance(message, list) and len(message) == 2 and message[0] == "execution_error":
            return message[1] if isinstance(message[1], Mapping) else {}
    return None


def _workflow_id(extra_data: Raw) -> str | None:
    found = member(member(extra_data.get("extra_pnginfo"), "workflow"), "id")
    return found if isinstance(found, str) else None
