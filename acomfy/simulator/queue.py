"""The server's waiting line and its memory of what is over (ComfyUI execution.py PromptQueue).

Waiting prompts are a heap of ``(number, prompt_id, prompt, extra_data, outputs)`` tuples, and ``GET /queue`` shows the
heap as it lies. Equal numbers are ordered by prompt_id; an equal prompt_id as well makes Python compare the graphs,
which raises after the tuple has been added: the prompt is queued although the POST fails.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any, TypeAlias

Item: TypeAlias = tuple[float, str, dict[str, Any], dict[str, Any], list[str]]


class PromptQueue:
    """Waiting, running and finished prompts."""

    def __init__(self, changed: Callable[[], None], max_history: int = 10_000) -> None:
        self.pending: list[Item] = []
        self.running: dict[int, Item] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self.max_history = max_history
        self._changed = changed
        self._wake = asyncio.Event()
        self._taken = 0

    def __len__(self) -> int:
        return len(self.pending) + len(self.running)

    def put(self, item: Item) -> None:
        """Queue a prompt and tell everybody."""
        heapq.heappush(self.pending, item)
        self._changed()
        self._wake.set()

    def wake(self) -> None:
        """Wake the worker, although there may be nothing to run."""
        self._wake.set()

    async def wait(self, *, held: bool = False) -> None:
        """Wait until there is something to run and it is not held, or `wake` was called."""
        if held or not self.pending:
            self._wake.clear()
            await self._wake.wait()

    def take(self) -> tuple[int, Item] | None:
        """Take the first waiting prompt as running; None when none waits."""
        if not self.pending:
            return None
        item = heapq.heappop(self.pending)
        self._taken += 1
        self.running[self._taken] = item
        self._changed()
        return self._taken, item

    def finish(self, key: int, entry: dict[str, Any], prompt: list[Any]) -> None:
        """Write a running prompt's history entry and take it from the queue."""
        if len(self.history) > self.max_history:
            self.history.pop(next(iter(self.history)))
        _, prompt_id, *_ = self.running.pop(key)
        self.history[prompt_id] = {"prompt": prompt, **entry}
        self._changed()

    def delete(self, prompt_id: Any) -> bool:
        """Take one waiting prompt with this id from the queue; False when none waits."""
        for index, item in enumerate(self.pending):
            if item[1] == prompt_id:
                self.pending.pop(index)
                heapq.heapify(self.pending)
                self._changed()
                return True
        return False

    def clear(self) -> None:
        """Take all waiting prompts from the queue."""
        self.pending.clear()
        self._changed()

    def is_running(self, prompt_id: Any) -> bool:
        """Tell whether a prompt with this id runs."""
        return any(item[1] == prompt_id for item in self.running.values())

    def read_history(self, max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
        """Give ``GET /history``: the newest ``max_items``, or as many from ``offset`` on, oldest first."""
        if offset < 0 and max_items is not None:
            offset = len(self.history) - max_items
        found: dict[str, Any] = {}
        for index, (prompt_id, entry) in enumerate(self.history.items()):
            if index >= offset:
                found[prompt_id] = entry
                if max_items is not None and len(found) >= max_items:
                    break
        return found

    def reset(self) -> None:
        """Forget everything, as a process does that ends; nobody is told."""
        self.pending.clear()
        self.running.clear()
        self.history.clear()

    def forget(self, prompt_id: str) -> None:
        """Take a finished prompt from the history."""
        self.history.pop(prompt_id, None)
