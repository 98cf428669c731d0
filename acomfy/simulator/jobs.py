"""The jobs API: the queue and the history as one list (ComfyUI since 0.6.0, cancel routes since 0.26.0).

A prompt is called a job here, and looked for in the history first, then among what runs, then among what waits.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from .server import SimulatedServer

_STATUSES = ("pending", "in_progress", "completed", "failed", "cancelled")
_SHOWN_FIRST = ("images", "video", "audio")


class JobRoutes:
    """The handlers of ``/api/jobs`` and what is below it."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server

    def add_to(self, app: web.Application) -> None:
        """Add the routes that the server's version has; they exist under ``/api`` only."""
        if self._server.can.jobs_api:
            app.router.add_get("/api/jobs", self._list)
            app.router.add_get("/api/jobs/{job_id}", self._detail)
        if self._server.can.cancel_routes:
            app.router.add_post("/api/jobs/cancel", self._cancel_many)
            app.router.add_post("/api/jobs/{job_id}/cancel", self._cancel)

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            statuses = _statuses(query.get("status"), self._server.can.jobs_know_cancelled)
            sort = _sorting(query.get("sort_by", "created_at"))
            descending = _descending(query.get("sort_order", "desc"))
            limit = None if "limit" not in query else _whole(query["limit"], "limit")
            offset = max(0, int(query.get("offset", 0)))
        except _BadQuery as exc:
            return web.json_response({"error": str(exc)}, status=400)
        jobs = [job for job in self._jobs() if job["status"] in statuses]
        if workflow_id := query.get("workflow_id"):
            jobs = [job for job in jobs if job.get("workflow_id") == workflow_id]
        jobs.sort(key=sort, reverse=descending)
        total, jobs = len(jobs), jobs[offset:]
        jobs = jobs if limit is None else jobs[:limit]
        pagination = {"offset": offset, "limit": limit, "total": total, "has_more": offset + len(jobs) < total}
        return web.json_response({"jobs": jobs, "pagination": pagination})

    async def _detail(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        queue = self._server.queue
        if (entry := queue.history.get(job_id)) is not None:
            return web.json_response(self._finished(job_id, entry) | _details(entry))
        for item, status in self._queued():
            if item[1] == job_id:
                return web.json_response(_waiting(item, status))
        return web.json_response({"error": "Job not found"}, status=404)

    async def _cancel(self, request: web.Request) -> web.Response:
        return web.json_response({"cancelled": self._server.cancel_prompt(request.match_info["job_id"])})

    async def _cancel_many(self, request: web.Request) -> web.Response:
        try:
            job_ids = (await request.json())["job_ids"]
        except (json.JSONDecodeError, KeyError, TypeError):
            job_ids = None
        if not isinstance(job_ids, list) or not job_ids:
            return web.json_response({"error": "job_ids must be a non-empty list"}, status=400)
        invalid = [job_id for job_id in job_ids if not is_canonical_uuid(job_id)]
        if invalid:
            return web.json_response({"error": "Invalid job ids", "invalid_ids": invalid}, status=400)
        cancelled = [self._server.cancel_prompt(job_id) for job_id in job_ids]
        return web.json_response({"cancelled": any(cancelled)})

    def _jobs(self) -> list[dict[str, Any]]:
        waiting = [_waiting(item, status) for item, status in self._queued()]
        return waiting + [self._finished(job_id, entry) for job_id, entry in self._server.queue.history.items()]

    def _queued(self) -> list[tuple[Any, str]]:
        queue = self._server.queue
        running = [(item, "in_progress") for item in queue.running.values()]
        return running + [(item, "pending") for item in queue.pending]

    def _finished(self, job_id: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        ends = dict(entry["status"]["messages"])
        started, ended = ends.get("execution_start", {}), entry["status"]["messages"][-1][1]
        status = "completed" if entry["status"]["status_str"] == "success" else "failed"
        if status == "failed" and "execution_interrupted" in ends and self._server.can.jobs_know_cancelled:
            status = "cancelled"
        shown = [
            {**item, "nodeId": node_id, "mediaType": kind}
            for node_id, output in entry["outputs"].items()
            for kind, items in output.items()
            for item in items
            if isinstance(item, dict)
        ]
        previews = [item for item in shown if item["mediaType"] in _SHOWN_FIRST]
        saved = [item for item in previews if item.get("type") == "output"]
        return _pruned(
            {
                **_common(entry["prompt"], status),
                "outputs_count": len(shown),
                "execution_start_time": started.get("timestamp"),
                "execution_end_time": ended.get("timestamp"),
                "execution_error": ends.get("execution_error"),
                "preview_output": next(iter(saved or previews), None),
            }
        )


class _BadQuery(ValueError):
    """A query parameter that the server refuses."""


def is_canonical_uuid(value: Any) -> bool:
    """Tell whether a value is a UUID as ``str(uuid.UUID(...))`` writes it, the only form that newer servers take."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _common(item: Any, status: str) -> dict[str, Any]:
    extra_data = item[3]
    # A workflow that is null makes this raise, and the list is a 500 for everybody, as in ComfyUI.
    workflow_id = extra_data.get("extra_pnginfo", {}).get("workflow", {}).get("id")
    return {
        "id": item[1],
        "status": status,
        "priority": item[0],
        "create_time": extra_data.get("create_time"),
        "workflow_id": workflow_id,
    }


def _waiting(item: Any, status: str) -> dict[str, Any]:
    return _pruned({**_common(item, status), "outputs_count": 0})


def _details(entry: Mapping[str, Any]) -> dict[str, Any]:
    _, _, prompt, extra_data, _ = entry["prompt"]
    return {
        "outputs": entry["outputs"],
        "execution_status": entry["status"],
        "workflow": {"prompt": prompt, "extra_data": extra_data},
    }


def _pruned(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in job.items() if value is not None}


def _statuses(wish: str | None, with_cancelled: bool) -> tuple[str, ...]:
    known = _STATUSES if with_cancelled else _STATUSES[:-1]
    if not wish:
        return known
    wanted = tuple(item.strip() for item in wish.split(",") if item.strip())
    if unknown := [item for item in wanted if item not in known]:
        valid = ", ".join(known)
        raise _BadQuery(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {valid}")
    return wanted


def _sorting(wish: str) -> Callable[[dict[str, Any]], float]:
    if wish == "created_at":
        return lambda job: float(job.get("create_time", 0))
    if wish == "execution_duration":
        return lambda job: float(job.get("execution_end_time", 0) - job.get("execution_start_time", 0))
    raise _BadQuery("sort_by must be 'created_at' or 'execution_duration'")


def _descending(wish: str) -> bool:
    if wish not in ("asc", "desc"):
        raise _BadQuery("sort_order must be 'asc' or 'desc'")
    return wish == "desc"


def _whole(text: str, name: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise _BadQuery(f"{name} must be an integer") from None
    if number <= 0:
        raise _BadQuery(f"{name} must be a positive integer")
    return number
