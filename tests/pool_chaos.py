"""Jobs on a pool of which every other server dies, freezes, boots and is drained: ``python -m tests.pool_chaos``.

Every job must end once and right: with the picture of its own colour, which the ledgers know. A server that dies takes
what it ran with it; one that is merely frozen may have finished a prompt that was given up meanwhile, which is counted
apart: such a server was not healthy.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import acomfy
from acomfy.simulator import SimulatedServer

from .graphs import color_of, saved
from .shell import quick_delays


class Chaos:
    """One run."""

    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)
        self.servers = [SimulatedServer(cache="none") for _ in range(count)]
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.ill: set[str] = set()
        self.faults: Counter[str] = Counter()
        self.attempts: Counter[int] = Counter()

    async def run(self, jobs: int) -> None:
        """Run so many jobs, while servers have trouble."""
        async with AsyncExitStack() as stack:
            for server in self.servers:
                server.on("EmptyImage").takes(0.05)
                await stack.enter_async_context(server)
            pool = acomfy.Pool(
                [server.url for server in self.servers],
                check_interval=0.5,
                unreachable_timeout=3.0,
                unavailable_timeout=None,
                max_attempts=50,
                silence=0.5,
                connect_timeout=2.0,
                reconnect_delays=quick_delays,
            )
            async with pool:
                trouble = [asyncio.create_task(self._trouble(pool, server)) for server in self.servers[::2]]
                await asyncio.gather(*(self._job(pool, color) for color in range(jobs)))
                for task in trouble:
                    task.cancel()
                await asyncio.gather(*trouble, return_exceptions=True)
        self._compare()

    async def _job(self, pool: acomfy.Pool, color: int) -> None:
        if self.random.random() < 0.05:
            return await self._cancelled(pool, color)
        job = await pool.submit(saved(color, node=self.random.choice(("SaveImage", "SaveImageWebsocket"))))
        try:
            result = await job
        except acomfy.AcomfyError as exc:
            self.violations.append(f"{color}: {exc!r}")
            return
        self.attempts[job.attempt] += 1
        try:
            data = await result.images[0].read()
        except (acomfy.OutputMissing, acomfy.ServerError):
            self.outcomes["picture not readable: its server was down"] += 1
            return
        known = {sha for server in self.servers for sha in _hashes(server, job.prompt_id)}
        if color_of(data) != color or hashlib.sha256(data).hexdigest() not in known:
            self.violations.append(f"{color}: the picture of another")
        self.outcomes["success"] += 1

    async def _cancelled(self, pool: acomfy.Pool, color: int) -> None:
        run = asyncio.create_task(pool.run(saved(color)))
        await asyncio.sleep(self.random.uniform(0.0, 10.0))
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        self.outcomes["cancelled"] += 1

    async def _trouble(self, pool: acomfy.Pool, server: SimulatedServer) -> None:
        kinds: list[Callable[[acomfy.Pool, SimulatedServer], Awaitable[None]]] = [
            self._kill,
            self._kill,
            self._freeze,
            self._boot,
            self._drain,
            self._drop,
        ]
        self.ill.add(server.url)
        while True:
            await asyncio.sleep(self.random.uniform(0.5, 4.0))
            kind = self.random.choice(kinds)
            self.faults[kind.__name__] += 1
            await kind(pool, server)

    async def _kill(self, pool: acomfy.Pool, server: SimulatedServer) -> None:
        async with server.faults.down():
            await asyncio.sleep(self.random.uniform(0.0, 4.0))

    async def _freeze(self, pool: acomfy.Pool, server: SimulatedServer) -> None:
        with server.faults.freeze():
            await asyncio.sleep(self.random.uniform(0.1, 5.0))

    async def _boot(self, pool: acomfy.Pool, server: SimulatedServer) -> None:
        with server.faults.answer_as_booting():
            await asyncio.sleep(self.random.uniform(0.1, 2.0))

    async def _drain(self, pool: acomfy.Pool, server: SimulatedServer) -> None:
        await pool.drain(server.url)
        await asyncio.sleep(self.random.uniform(0.0, 1.0))
        pool.resume(server.url)

    async def _drop(self, pool: acomfy.Pool, server: SimulatedServer) -> None:
        server.faults.drop_connections()

    def _compare(self) -> None:
        finished: dict[int, list[SimulatedServer]] = {}
        for server in self.servers:
            for body in server.prompts:
                entry = server.ledger[body["prompt_id"]]
                if entry.executions > entry.accepted:
                    self.violations.append(f"{body['prompt_id']} was started {entry.executions} times")
                if entry.state == "completed":
                    finished.setdefault(body["prompt"]["1"]["inputs"]["color"], []).append(server)
        for color, where in finished.items():
            if len(where) > 1:
                ill = any(server.url in self.ill for server in where[:-1])
                self.outcomes["finished twice, first on a server that died or froze"] += ill
                if not ill:
                    self.violations.append(f"{color}: finished on {where}, which were well")

    def lines(self) -> list[str]:
        """Tell what happened."""
        found: list[tuple[str, Any]] = [("outcomes", dict(self.outcomes)), ("faults", dict(self.faults))]
        found += [("attempts", dict(sorted(self.attempts.items()))), ("violations", len(self.violations))]
        return [f"{name}: {value}" for name, value in found] + self.violations[:20]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pool_chaos", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chaos, start = Chaos(args.seed, args.servers), time.monotonic()
    asyncio.run(chaos.run(args.jobs))
    print(f"{args.jobs} jobs on {args.servers} servers in {time.monotonic() - start:.0f} s")  # noqa: T201
    print("\n".join(chaos.lines()))  # noqa: T201
    return 1 if chaos.violations else 0


def _hashes(server: SimulatedServer, prompt_id: str) -> list[str]:
    return server.ledger[prompt_id].sha256s if prompt_id in server.ledger else []


if __name__ == "__main__":
    sys.exit(main())
