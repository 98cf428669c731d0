"""Hundreds of jobs through a proxy that breaks connections and a server that breaks everything else.

``python -m tests.chaos --jobs N --seed S --minutes M`` runs until its time is over and prints the ledger: what every
job came to, held against what the server itself did. Anything that must not happen is a line under "violations", and
the exit code is then 1. A short run with a fixed seed is part of the tests.

What must hold: every job ends, in bounded time, in one outcome; a success has its own images and all of them; no
prompt runs twice; what was lost was truly lost; in the end nothing is left, on the server or in the client.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import acomfy
from acomfy.simulator import SimulatedServer
from acomfy.simulator.ledger import Entry

from .graphs import color_of, sampled, saved, streamed
from .shell import quick_delays, tasks_of_the_library
from .tcp_proxy import Link, TcpProxy

LONGEST = 60.0
"""Seconds after which a job counts as hanging."""


@dataclass
class Account:
    """What a run came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    images: int = 0
    executions: int = 0
    slowest: float = 0.0

    def lines(self) -> list[str]:
        jobs = sum(self.outcomes.values())
        lines = [
            f"jobs {jobs}, executions {self.executions}, images compared {self.images}, slowest {self.slowest:.1f} s"
        ]
        lines += [f"  {name:<28}{count:>6}" for name, count in sorted(self.outcomes.items())]
        lines += ["faults " + ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))]
        lines += [f"violations {len(self.violations)}", *(f"  {line}" for line in self.violations[:50])]
        return lines


class Chaos:
    """One run: a server, a proxy, a client, and a seed that decides everything that can be decided."""

    def __init__(self, seed: int, version: str) -> None:
        self.random = random.Random(seed)
        self.account = Account()
        self.server = SimulatedServer(version=version)
        self.restarts: list[float] = []
        self.evicted: set[str] = set()
        self.removed: set[str] = set()
        self.interrupts = 0
        self._ids: dict[int, set[str]] = defaultdict(set)
        self._indexed = 0

    async def run(self, jobs: int, until: float) -> Account:
        """Run jobs, so many at once, until the time is over; then look at what is left."""
        async with self.server, TcpProxy(self.server.port) as self.proxy:
            client = acomfy.Client(
                self.proxy.url,
                silence=0.3,
                connect_timeout=2.0,
                read_timeout=2.0,
                unreachable_timeout=8.0,
                heartbeat_interval=1.0,
                reconnect_delays=quick_delays,
            )
            async with client:
                trouble = asyncio.create_task(self._trouble())
                await asyncio.gather(*(self._worker(client, number, jobs, until) for number in range(jobs)))
                trouble.cancel()
                await asyncio.gather(trouble, return_exceptions=True)
                self._calm()
                await self._nothing_left(client)
            self.account.executions = self.server.ledger.executions
            self._compare_executions()
        if left := tasks_of_the_library():
            self.account.violations.append(f"tasks left: {left}")
        return self.account

    # --- The jobs -------------------------------------------------------------------------------------------------

    async def _worker(self, client: acomfy.Client, number: int, workers: int, until: float) -> None:
        color = number + 1
        while time.monotonic() < until:
            began = time.monotonic()
            kind = self.random.choice([self._run_saved, self._run_saved, self._run_streamed, self._cancel, self._stop])
            try:
                async with asyncio.timeout(LONGEST):
                    outcome = await kind(client, color)
            except TimeoutError:
                outcome = "HANGS"
                self.account.violations.append(f"{kind.__name__} of colour {color} hangs")
            self.account.outcomes[outcome] += 1
            self.account.slowest = max(self.account.slowest, time.monotonic() - began)
            color += workers

    async def _run_saved(self, client: acomfy.Client, color: int) -> str:
        batch = self.random.choice((1, 1, 2))
        return await self._judged(client, color, saved(color, batch=batch), batch)

    async def _run_streamed(self, client: acomfy.Client, color: int) -> str:
        batch = self.random.choice((1, 2, 3))
        return await self._judged(client, color, streamed(color, batch=batch), batch)

    async def _judged(self, client: acomfy.Client, color: int, graph: dict[str, Any], batch: int) -> str:
        """Run a prompt and judge its outcome by what the server did."""
        on_lost: Literal["raise", "resubmit"] = self.random.choice(("raise", "resubmit"))
        try:
            job = await client.submit(graph, on_lost=on_lost)
            result = await job
        except acomfy.AcomfyError as exc:
            self._judge_error(exc, color)
            return type(exc).__name__
        await self._judge_images(result, color, batch)
        return "success" if job.attempt == 1 else "success, anew"

    async def _judge_images(self, result: acomfy.Result, color: int, batch: int) -> None:
        if len(result.images) != batch:
            self.account.violations.append(f"colour {color}: {len(result.images)} images instead of {batch}")
        for output in result.images:
            try:
                data = await output.read()
            except (acomfy.ServerError, acomfy.OutputMissing) as exc:
                if isinstance(exc, acomfy.OutputMissing):
                    self.account.violations.append(f"colour {color}: {exc}")
                continue  # no answer within the retries: nothing to compare
            self.account.images += 1
            if color_of(data) != color:
                self.account.violations.append(f"colour {color} got the image of {color_of(data)}")

    def _judge_error(self, exc: acomfy.AcomfyError, color: int) -> None:
        entries = self._entries(color)
        if isinstance(exc, acomfy.JobInterrupted):
            if not self.interrupts:
                self.account.violations.append(f"colour {color}: interrupted by nobody")
        elif isinstance(exc, acomfy.JobLost):
            kept = [e for e in entries if e.state == "completed" and e.prompt_id not in self.evicted]
            if kept and not self.restarts and exc.reason != "unreachable":
                self.account.violations.append(f"colour {color}: {exc}, but it completed")
        elif not isinstance(exc, acomfy.OutputMissing | acomfy.ServerError):
            self.account.violations.append(f"colour {color}: {exc!r}")

    async def _cancel(self, client: acomfy.Client, color: int) -> str:
        """Submit, and cancel some time later."""
        try:
            job = await client.submit(sampled(color, steps=self.random.choice((1, 30))))
            await asyncio.wait([asyncio.ensure_future(job.settled())], timeout=self.random.uniform(0, 0.05))
            await job.cancel()
            await job
        except acomfy.AcomfyError as exc:
            return f"cancel: {type(exc).__name__}"
        return "cancel: too late"

    async def _stop(self, client: acomfy.Client, color: int) -> str:
        """Run under a timeout."""
        try:
            async with asyncio.timeout(self.random.uniform(0, 0.1)):
                await client.run(sampled(color, steps=10))
        except TimeoutError:
            return "stopped"
        except acomfy.AcomfyError as exc:
            return f"stop: {type(exc).__name__}"
        return "stop: too late"

    # --- The account ----------------------------------------------------------------------------------------------

    def _entries(self, color: int) -> list[Entry]:
        """Give what the server did for the prompts of one colour; a job sends each attempt under an id of its own."""
        for body in self.server.prompts[self._indexed :]:
            node = body["prompt"].get("1", {})
            if node.get("class_type") == "EmptyImage":
                self._ids[node["inputs"]["color"]].add(str(body.get("prompt_id")))
        self._indexed = len(self.server.prompts)
        return [self.server.ledger[prompt_id] for prompt_id in self._ids[color] if prompt_id in self.server.ledger]

    def _compare_executions(self) -> None:
        for prompt_id, entry in self.server.ledger.items():
            if entry.executions > 1:
                self.account.violations.append(f"prompt {prompt_id} ran {entry.executions} times: {entry}")

    async def _nothing_left(self, client: acomfy.Client) -> None:
        try:
            async with asyncio.timeout(30):
                while client.jobs or len(self.server.queue):  # noqa: ASYNC110  # no event tells of both
                    await asyncio.sleep(0.02)
        except TimeoutError:
            queued = [item[1] for item in [*self.server.queue.running.values(), *self.server.queue.pending]]
            self.account.violations.append(f"left in the client {client.jobs}, on the server {queued}")

    # --- The trouble ----------------------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (10, self.drop_connections),
            (6, self.go_deaf),
            (4, self.stall_delivery),
            (6, self.lose_answer),
            (6, self.fail_after_queueing),
            (1, self.restart),
            (2, self.freeze),
            (4, self.delay_history),
            (4, self.skip_success),
            (4, self.send_garbage),
            (3, self.evict),
            (4, self.delete_somebodys),
            (4, self.interrupt),
            (2, self.refuse_sockets),
            (2, self.boot),
            (4, self.delay_answers),
            (10, self.cut_links),
            (4, self.black_hole_links),
            (4, self.cut_within),
        ]
        weights = [weight for weight, _ in kinds]
        while True:
            await asyncio.sleep(self.random.uniform(0.02, 0.25))
            (kind,) = self.random.choices([kind for _, kind in kinds], weights)
            self.account.faults[kind.__name__] += 1
            with suppress(OSError):
                await kind()

    def _calm(self) -> None:
        self.server.faults.clear()
        self.proxy.on_link = lambda link: None
        self.proxy.resume()

    async def drop_connections(self) -> None:
        self.server.faults.drop_connections()

    async def go_deaf(self) -> None:
        self.server.faults.go_deaf()

    async def stall_delivery(self) -> None:
        with self.server.faults.stall_delivery():
            await asyncio.sleep(self.random.uniform(0.1, 1.0))

    async def lose_answer(self) -> None:
        self.server.faults.lose_answer_to_next_prompt()

    async def fail_after_queueing(self) -> None:
        self.server.faults.fail_next_prompt_after_queueing()

    async def restart(self) -> None:
        self.restarts.append(time.monotonic())
        await self.server.faults.restart(self.random.uniform(0.0, 1.0))

    async def freeze(self) -> None:
        with self.server.faults.freeze():
            await asyncio.sleep(self.random.uniform(0.1, 2.5))

    async def delay_history(self) -> None:
        with self.server.faults.delay_history(self.random.uniform(0.0, 0.2)):
            await asyncio.sleep(0.5)

    async def skip_success(self) -> None:
        with self.server.faults.skip_success():
            await asyncio.sleep(0.1)

    async def send_garbage(self) -> None:
        self.server.faults.send_garbage()

    async def evict(self) -> None:
        finished = list(self.server.queue.history)
        if finished:
            prompt_id = self.random.choice(finished)
            self.evicted.add(prompt_id)
            self.server.faults.evict(prompt_id)

    async def delete_somebodys(self) -> None:
        pending = [item[1] for item in self.server.queue.pending]
        if pending:
            self.server.delete_prompt(self.random.choice(pending))

    async def interrupt(self) -> None:
        self.interrupts += 1
        self.server.interrupt()

    async def refuse_sockets(self) -> None:
        with self.server.faults.refuse_sockets(self.random.choice((403, 404, 502))):
            self.server.faults.drop_connections()
            await asyncio.sleep(self.random.uniform(0.1, 1.0))

    async def boot(self) -> None:
        with self.server.faults.answer_as_booting():
            await asyncio.sleep(self.random.uniform(0.1, 0.6))

    async def delay_answers(self) -> None:
        with self.server.faults.delay_answers(self.random.uniform(0.0, 0.1)):
            await asyncio.sleep(0.5)

    def _some(self, link: Link) -> bool:
        return self.random.random() < 0.5

    async def cut_links(self) -> None:
        self.proxy.cut(self._some)

    async def black_hole_links(self) -> None:
        self.proxy.black_hole(self._some)
        await asyncio.sleep(self.random.uniform(0.1, 2.0))
        self.proxy.resume()

    async def cut_within(self) -> None:
        """Cut connections to come after some bytes of an answer."""
        self.proxy.on_link = lambda link: link.cut_after(self.random.randrange(2000)) if self._some(link) else None
        await asyncio.sleep(0.3)
        self.proxy.on_link = lambda link: None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=100, help="jobs at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--version", default="0.3.64", help="of the simulated server")
    args = parser.parse_args()
    until = time.monotonic() + args.minutes * 60
    account = asyncio.run(Chaos(args.seed, args.version).run(args.jobs, until))
    print(f"seed {args.seed}, version {args.version}, {args.minutes:g} min, {args.jobs} jobs at once")  # noqa: T201
    print("\n".join(account.lines()))  # noqa: T201
    return 1 if account.violations else 0


if __name__ == "__main__":
    sys.exit(main())
