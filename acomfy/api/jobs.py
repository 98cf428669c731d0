"""The jobs API: queue and history as one list (ComfyUI server.py and comfy_execution/jobs.py, since 0.6.0).

These routes exist under ``/api`` only. A server without them answers 404 to a GET and 405 to a POST.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, cast

from ..errors import ProtocolError
from ..transport import segment
from .base import Routes, query

if TYPE_CHECKING:
    from . import shapes


class JobRoutes(Routes):
    """The jobs API."""

    async def get_jobs(
        self,
        *,
        status: Collection[str] | None = None,
        workflow_id: str | None = None,
        sort_by: Literal["created_at", "execution_duration"] | None = None,
        sort_order: Literal["asc", "desc"] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> shapes.Jobs:
        """List what waits, runs and has ended (``GET /api/jobs``, since 0.6.0).

        The server goes through its whole history for it: nothing to ask for again and again. A prompt that ends at this
        moment may be listed twice.

        Args:
            status: Of ``pending``, ``in_progress``, ``completed``, ``failed``, ``cancelled`` (since 0.9); None: all.
            workflow_id: The ``id`` in the ``extra_pnginfo`` that was posted with the prompt.
            sort_by: None: ``created_at``.
            sort_order: None: ``desc``.
            limit: At most so many, 1 or more; None: all.
            offset: So many are left out.

        Raises:
            HTTPError: 404 when the server has no jobs API, 400 for a parameter that it does not take.
        """
        statuses = None if status is None else ([status] if isinstance(status, str) else list(status))
        params = query(
            status=statuses or None,
            workflow_id=workflow_id,
            sort_by=sort_by and self._transport.profile.sorting.get(sort_by, sort_by),
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        answer = await self._transport.get_object("/api/jobs", params)
        if not isinstance(answer.get("jobs"), list) or not isinstance(answer.get("pagination"), dict):
            raise ProtocolError(f"GET {self.url}/api/jobs was answered without jobs and their pagination")
        return cast("shapes.Jobs", answer)

    async def get_job(self, prompt_id: str) -> shapes.JobDetail:
        """Give all about one prompt (``GET /api/jobs/{id}``, since 0.6.0).

        Raises:
            HTTPError: 404 when the server does not know the prompt (it says so in JSON), or has no jobs API.
        """
        return cast("shapes.JobDetail", await self._transport.get_object(f"/api/jobs/{segment(prompt_id)}"))

    async def post_job_cancel(self, prompt_id: str) -> bool:
        """Take a prompt from the server, waiting or running (``POST /api/jobs/{id}/cancel``, since 0.26.0).

        True when the server did something; False when it does not know the prompt or it had ended.
        """
        path = f"/api/jobs/{segment(prompt_id)}/cancel"
        answer = await self._transport.send_json("POST", path)
        return bool(answer.get("cancelled")) if isinstance(answer, dict) else False

    async def post_jobs_cancel(self, prompt_ids: Collection[str]) -> bool:
        """Take several prompts from the server (``POST /api/jobs/cancel``, since 0.26.0).

        True when the server did something for at least one of them.

        Raises:
            HTTPError: 400 when an id is no UUID: none is cancelled then.
        """
        answer = await self._transport.send_json("POST", "/api/jobs/cancel", {"job_ids": list(prompt_ids)})
        return bool(answer.get("cancelled")) if isinstance(answer, dict) else False
