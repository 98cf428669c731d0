"""The client of one server of a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import AcomfyError
from ..job import Job, PromptOptions
from ..look import read_queue
from ..pool_server import Member
from ..prompting import tracked
from ..workflow import EncodedGraph


class FleetMember(Member):
    """The client of one server of a worker.

    Args:
        on_open: Called when the WebSocket was opened.
    """

    def __init__(self, url: str, options: dict[str, Any], on_open: Callable[[], None] = lambda: None) -> None:
        super().__init__(url, lambda job, error: False, on_open, options)

    def begin(self, prompt_id: str, graph: EncodedGraph, options: PromptOptions) -> Job:
        """Have a prompt posted under this id (that of the server before 0.3.45), and follow it. Never waits."""
        self._open()
        job = Job(tracked(graph.json, frozenset(graph.streams), options, prompt_id), options, self, None)
        job.encoded = graph if graph.files else None
        self._start(job)
        return job

    async def follow(self, prompt_id: str, graph: EncodedGraph, options: PromptOptions) -> Job:
        """Follow a prompt that another worker posted, or this one before, as if it had been posted here.

        Raises:
            ServerError: The server did not answer.
            ClientClosed: The client is closed.
        """
        self._open()
        known = self._live.get(prompt_id)
        if known is not None:
            return known
        item = read_queue(await self._once.get_queue()).find(prompt_id)
        entry = None if item is not None else await self._once.get_history(prompt_id)
        self._open()
        prompt = tracked(graph.json, frozenset(graph.streams), options, prompt_id)
        return self._attached(Job(prompt, options, self, None), item, entry)

    async def knows(self, prompt_id: str) -> bool | None:
        """Tell whether the server knows a prompt; None when it does not answer."""
        try:
            if read_queue(await self._once.get_queue()).find(prompt_id) is not None:
                return True
            return await self._once.get_history(prompt_id) is not None
        except AcomfyError:
            return None
