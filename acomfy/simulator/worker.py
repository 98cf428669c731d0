"""The worker: takes prompts from the queue, one at a time, and writes what became of them (ComfyUI main.py, 0.3.64)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .. import events
from .execution import Executor, Outcome
from .faults import Faults
from .ledger import State
from .queue import Item, PromptQueue
from .routes import without_tokens

logger = logging.getLogger("acomfy.simulator")


class Worker:
    """Runs what is queued, until an exception from outside a node ends it for good.

    Attributes:
        alive: Whether it still takes prompts.
        may_take: How many prompts more it may take; None is as many as there are.
        free_memory: Whether to empty the cache when the running prompt is over.
    """

    def __init__(self, queue: PromptQueue, executor: Executor, faults: Faults, changed: Callable[[], None]) -> None:
        self.alive = True
        self.may_take: int | None = None
        self.free_memory = False
        self._queue = queue
        self._executor = executor
        self._services = executor.services
        self._faults = faults
        self._changed = changed
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work."""
        self.alive = True
        self._task = asyncio.create_task(self._work())

    def kill(self) -> None:
        """End in the middle of it: what runs stays in the queue as running."""
        self.alive = False
        if self._task is not None:
            self._task.cancel()
        self._changed()

    async def stop(self) -> None:
        """End, and wait for the end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _work(self) -> None:
        try:
            while True:
                await self._queue.wait(held=self.may_take == 0)
                if self.may_take != 0 and (taken := self._queue.take()) is not None:
                    if self.may_take is not None:
                        self.may_take -= 1
                    await self._run(*taken)
                if self.free_memory:
                    self.free_memory = False
                    self._executor.cache.clear()
                await asyncio.sleep(0)
        except Exception:
            # ComfyUI's worker thread dies the same way, and the server goes on accepting (issue #16312).
            logger.info("the worker died; no prompt will run any more", exc_info=True)
            self.alive = False
            self._changed()

    async def _run(self, key: int, item: Item) -> None:
        number, prompt_id, prompt, extra_data, outputs = item
        begin = self._services.clock.now()
        self._services.ledger.start(prompt_id)
        # It counts as running already, but the executor has not begun: an interrupt that comes now is lost.
        await self._services.clock.sleep(self._faults.start_delay)
        outcome = await self._executor.execute(item)
        self._services.ledger.settle(prompt_id, _final_state(outcome))
        await self._services.clock.sleep(self._faults.history_delay)
        await self._faults.thawed()
        shown = without_tokens(extra_data) if self._services.can.tokens_hidden_in_history else extra_data
        self._queue.finish(key, outcome.history_entry(), [number, prompt_id, prompt, shown, outputs])
        if self._faults.loses_history:
            self._queue.forget(prompt_id)
        sockets, client_id = self._services.sockets, extra_data.get("client_id")
        if client_id is not None:
            sockets.send(events.Executing(None, None, prompt_id), client_id)
        sockets.log(f"Prompt executed in {self._services.clock.now() - begin:.2f} seconds\n")


def _final_state(outcome: Outcome) -> State:
    last = outcome.messages[-1][0]
    if last == "execution_interrupted":
        return "cancelled"
    return "failed" if last == "execution_error" else "completed"
