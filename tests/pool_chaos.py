"""Jobs on a pool of which every other server dies, freezes and boots now and then: ``python -m tests.pool_chaos``.

All are drained, their connections break, and their answers get lost.

Every job must end once and right: with the picture of its own colour, which the servers' books know; see
`tests.pool_books`. With ``--strangers`` other clients use the servers too, and must not be disturbed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp

import acomfy

from .graphs import color_of, saved
from .pool_books import STRANGERS, BookedServer, Books
from .shell import quick_delays

_SOON = 2.0
_SLACK = 0.5


class Load:
    """Jobs on a pool, some of them cancelled, and their outcomes."""

    def __init__(self, seed: int, *, strangers: bool) -> None:
        self.random = random.Random(seed)
        self.books = Books()
        self._strangers = strangers
        self._span = 0.0

    async def run(self, urls: list[str], jobs: int, trouble: list[Callable[[acomfy.Pool], Awaitable[None]]]) -> None:
        """Run so many jobs, while servers have trouble."""
        self._span = jobs / 100
        pool = acomfy.Pool(
            urls,
            check_interval=0.5,
            unreachable_timeout=3.0,
            unavailable_timeout=None,
            max_attempts=50,
            silence=0.5,
            connect_timeout=2.0,
            reconnect_delays=quick_delays,
        )
        async with AsyncExitStack() as stack:
            stack.enter_context(self.books.moves())
            await stack.enter_async_context(pool)
            beside = [one(pool) for one in trouble]
            if self._strangers:
                beside += [self._stranger(url, number) for number, url in enumerate(urls)]
            tasks = [await stack.enter_async_context(_running(each)) for each in beside]
            await asyncio.gather(*(self._job(pool, color) for color in range(jobs)))
            for task in tasks:
                if task.done():
                    await task

    async def _job(self, pool: acomfy.Pool, color: int) -> None:
        graph = saved(color, node=self.random.choice(("SaveImage", "SaveImageWebsocket")))
        kind = self.random.random()
        if kind < 0.03:
            return await self._cancelled_run(pool, graph)
        job = await pool.submit(graph)
        self.books.begun(color, job)
        if kind < 0.1:
            return await self._cancelled(job, color)
        try:
            result = await job
        except acomfy.AcomfyError as exc:
            self.books.violations.append(f"{color}: {exc!r}")
            return
        try:
            data = await result.images[0].read()
        except (acomfy.OutputMissing, acomfy.ServerError):
            self.books.outcomes["picture not readable: its server was down"] += 1
            return
        if color_of(data) != color:
            self.books.violations.append(f"{color}: the picture of another")
        self.books.succeeded(job, hashlib.sha256(data).hexdigest())

    async def _cancelled_run(self, pool: acomfy.Pool, graph: dict[str, object]) -> None:
        run = asyncio.create_task(pool.run(graph))
        await asyncio.sleep(self.random.uniform(0.0, self._span))
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        self.books.outcomes["run cancelled"] += 1

    async def _cancelled(self, job: acomfy.PoolJob, color: int) -> None:
        """Cancel a job in the line, in a server's queue or while it runs."""
        if self.random.random() < 0.8:
            async for _ in job.updates(0.0):
                if job.placement is not None:
                    break
        await asyncio.sleep(self.random.uniform(0.0, 0.2))
        where, start = job.placement.server if job.placement else None, time.time()
        reached = await job.cancel()
        end = time.time()
        self.books.slowest_cancel = max(self.books.slowest_cancel, end - start)
        if end - start > _SOON + _SLACK:
            self.books.violations.append(f"{color}: cancelled only after {end - start:.2f} s")
        if reached:
            self.books.cancelled(job)
        elif not job.done() and not self.books.was_ill(where or "", start - 1.0, end):
            self.books.violations.append(f"{color}: not cancelled on {where}, which was well: {job.cancel_note}")
        await job.settled()
        self.books.outcomes[f"cancelled: {reached}, {job.state.value}"] += 1

    async def _stranger(self, url: str, number: int) -> None:
        """Use a server as somebody who knows nothing of the pool, and cancels nothing."""
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(5.0)) as session:
            for count in range(sys.maxsize):
                with suppress(aiohttp.ClientError, TimeoutError):
                    graph = saved(STRANGERS * (number + 1) + count)
                    async with session.post("/prompt", json={"prompt": graph, "client_id": "stranger"}) as answer:
                        self.books.outcomes["strangers' prompts"] += answer.ok
                await asyncio.sleep(self.random.uniform(0.0, 0.8))


class Chaos(Load):
    """Servers in this process, and what happens to them."""

    def __init__(self, seed: int, count: int, *, strangers: bool = False) -> None:
        super().__init__(seed, strangers=strangers)
        self.servers = [BookedServer(self.books.events.append, cache="none") for _ in range(count)]
        self.faults: Counter[str] = Counter()

    async def go(self, jobs: int) -> None:
        """Run so many jobs, while every other server has trouble."""
        async with AsyncExitStack() as stack:
            for server in self.servers:
                server.on("EmptyImage").takes(0.05)
                await stack.enter_async_context(server)
            troubles = [self._troubled(server, ill=True) for server in self.servers[::2]]
            troubles += [self._troubled(server, ill=False) for server in self.servers[1::2]]
            await self.run([server.url for server in self.servers], jobs, troubles)
        self.books.compare()

    def _troubled(self, server: BookedServer, *, ill: bool) -> Callable[[acomfy.Pool], Awaitable[None]]:
        kinds = [self._drain, self._drop, self._lose_answer, self._fail_after_queueing]
        if ill:
            kinds += [self._kill, self._kill, self._kill, self._freeze, self._freeze, self._boot]

        async def trouble(pool: acomfy.Pool) -> None:
            while True:
                await asyncio.sleep(self.random.uniform(0.5, 4.0))
                kind = self.random.choice(kinds)
                self.faults[kind.__name__] += 1
                await kind(pool, server)

        return trouble

    async def _kill(self, pool: acomfy.Pool, server: BookedServer) -> None:
        with self.books.illness(server.url):
            async with server.faults.down():
                await asyncio.sleep(self.random.uniform(0.0, 4.0))

    async def _freeze(self, pool: acomfy.Pool, server: BookedServer) -> None:
        with self.books.illness(server.url), server.faults.freeze():
            await asyncio.sleep(self.random.uniform(0.1, 5.0))

    async def _boot(self, pool: acomfy.Pool, server: BookedServer) -> None:
        with self.books.illness(server.url), server.faults.answer_as_booting():
            await asyncio.sleep(self.random.uniform(0.1, 2.0))

    async def _drain(self, pool: acomfy.Pool, server: BookedServer) -> None:
        await pool.drain(server.url)
        await asyncio.sleep(self.random.uniform(0.0, 1.0))
        pool.resume(server.url)

    async def _drop(self, pool: acomfy.Pool, server: BookedServer) -> None:
        self.books.gaps[server.url].append(time.time())
        server.faults.drop_connections()

    async def _lose_answer(self, pool: acomfy.Pool, server: BookedServer) -> None:
        server.faults.lose_answer_to_next_prompt()

    async def _fail_after_queueing(self, pool: acomfy.Pool, server: BookedServer) -> None:
        server.faults.fail_next_prompt_after_queueing()


@asynccontextmanager
async def _running(coroutine: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def arguments(about: str) -> argparse.ArgumentParser:
    """Make the parser of what all such runs are told."""
    parser = argparse.ArgumentParser(description=about.split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strangers", action="store_true")
    return parser


def report(load: Load, faults: Counter[str], jobs: int, start: float) -> int:
    """Tell how it went; give the exit code."""
    print(f"{jobs} jobs in {time.monotonic() - start:.0f} s; faults: {dict(faults)}")  # noqa: T201
    print("\n".join(load.books.lines()))  # noqa: T201
    return 1 if load.books.violations else 0


def main() -> int:
    args = arguments(__doc__ or "").parse_args()
    chaos, start = Chaos(args.seed, args.servers, strangers=args.strangers), time.monotonic()
    asyncio.run(chaos.go(args.jobs))
    return report(chaos, chaos.faults, args.jobs, start)


if __name__ == "__main__":
    sys.exit(main())
