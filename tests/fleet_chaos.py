"""Jobs on a fleet of which everything is killed now and then: ``python -m tests.fleet_chaos``.

The broker, the ComfyUI servers, the workers and the submitters are processes. Each gets a SIGKILL at random moments and
is started again; workers are also stopped (SIGSTOP) for longer than their lease. A submitter that comes back attaches
to all jobs of which it does not know the outcome. What they wrote down must agree in the end; see `tests.fleet_books`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import acomfy
from acomfy.fleet import Fleet, FleetJob
from acomfy.fleet.local import LocalBroker

from .fleet_books import FleetBooks, Journal
from .graphs import color_of, saved
from .pool_books import Event, read_line

_LEASE = 2.0
_WINDOW = 24
_QUIET_END = 120.0
_COLOR: ContextVar[int] = ContextVar("color")
_KINDS = ("workers", "stops", "servers", "broker", "submitters")


def is_streamed(seed: int, color: int, part: float) -> bool:
    """Tell whether the picture of a colour is streamed."""
    return random.Random(f"{seed}.{color}.stream").random() < part


# --- The submitter -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What one submitter does."""

    url: str
    journal: Path
    colors: range
    seed: int
    streams: float
    cancels: float


class Submitter:
    """Submits what was not submitted, and attaches to what was."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._journal = Journal(plan.journal)
        self._random = random.Random(f"{plan.seed}.{time.time()}")

    async def run(self) -> None:
        """See all jobs to their end."""
        ids: dict[int, str] = {}
        queued: set[str] = set()
        done: set[int] = set()
        asked: set[int] = set()
        for line in self._journal.lines():
            color = line["color"]
            if line["what"] == "begun":
                ids[color] = line["job_id"]
            elif line["what"] == "queued":
                queued.add(line["job_id"])
            elif line["what"] == "cancelling":
                asked.add(color)
            elif line["what"] == "outcome":
                done.add(color)
        window = asyncio.Semaphore(_WINDOW)
        async with Fleet(self._plan.url, lease=_LEASE, unreachable_timeout=120.0) as fleet:
            fleet.on_job(self._begun)
            await fleet.wait_ready()
            async with asyncio.TaskGroup() as group:
                for color in self._plan.colors:
                    if color in done:
                        continue
                    await window.acquire()
                    job_id = ids.get(color)
                    work = self._one(fleet, color, job_id, job_id in queued, again=color in asked)
                    group.create_task(work).add_done_callback(lambda _: window.release())

    def _begun(self, job: acomfy.Job) -> None:
        if isinstance(job, FleetJob) and job.graph is not None:
            self._journal.write("begun", _COLOR.get(), job_id=job.job_id)

    async def _one(self, fleet: Fleet, color: int, job_id: str | None, was_queued: bool, *, again: bool) -> None:
        _COLOR.set(color)
        job = None
        if job_id is not None:
            job = await fleet.attach(job_id)
            if isinstance(job.exception(), acomfy.JobLost) and not was_queued:
                job = None  # it never came into the queue
        if job is None:
            streamed = is_streamed(self._plan.seed, color, self._plan.streams)
            job = await fleet.submit(saved(color, node="SaveImageWebsocket" if streamed else "SaveImage"))
            self._journal.write("queued", color, job_id=job.job_id)
        if again or random.Random(f"{self._plan.seed}.{color}.cancel").random() < self._plan.cancels:
            await self._cancel(job, color)
        await job.settled()
        await self._note_outcome(job, color)

    async def _cancel(self, job: FleetJob, color: int) -> None:
        await asyncio.sleep(self._random.choice((0.0, self._random.uniform(0.0, 3.0))))
        if self._random.random() < 0.7:
            async for _ in job.updates(0.05):
                if job.server:
                    break
        if job.done():
            return
        self._journal.write("cancelling", color, job_id=job.job_id, server=job.server)
        reached = await job.cancel()
        self._journal.write("cancelled", color, reached=reached, note=job.cancel_note)

    async def _note_outcome(self, job: FleetJob, color: int) -> None:
        told: dict[str, Any] = {"job_id": job.job_id, "prompt_id": job.prompt_id, "attempt": job.attempt}
        told |= {"state": job.state.value, "server": job.server, "worker": job.worker, "error": None}
        error = job.exception()
        if error is None:
            data = await (await job).images[0].read()
            told |= {"picture": color_of(data), "sha256": hashlib.sha256(data).hexdigest()}
        else:
            told["error"] = f"{type(error).__name__}: {error}"
        self._journal.write("outcome", color, **told)


# --- The processes -----------------------------------------------------------------------------------------------


class Process:
    """A process that is killed and started again.

    Attributes:
        name: What the books call it.
    """

    def __init__(self, name: str, directory: Path, *arguments: str) -> None:
        self.name = name
        self._log = directory / "log"
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._arguments, stdout=log, stderr=log
            )

    async def kill(self) -> None:
        """Kill it as a lack of memory does."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int:
        """Wait for its end; give its exit code."""
        return 0 if self._process is None else await self._process.wait()

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


class Server(Process):
    """A simulated server, as in `tests.pool_killing`; its name is its address. Its books and files outlive it."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        command = ("-m", "tests.pool_killing", "--serve", str(port), str(directory))
        super().__init__(f"http://127.0.0.1:{port}", directory, *command)
        self._books = directory / "books"

    def events(self) -> list[Event]:
        """Read its books, of all its lives."""
        return [read_line(line) for line in self._books.read_bytes().splitlines()]


class Chaos:
    """The fleet, and what happens to it."""

    def __init__(self, args: argparse.Namespace, root: Path) -> None:
        streams = frozenset(color for color in range(args.jobs) if is_streamed(args.seed, color, args.streams))
        self.books = FleetBooks(args.jobs, streams)
        self._args = args
        self._root = root
        self._random = random.Random(args.seed)
        self._broker = LocalBroker(config="" if not args.broker_config else args.broker_config)
        self._servers: list[Server] = []
        self._workers: list[Process] = []
        self._submitters: list[tuple[Process, Path]] = []

    async def go(self) -> None:
        """Run it all."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._broker)
            for number in range(self._args.servers):
                server = Server(self._directory(f"server-{number}"))
                self._servers.append(server)
                await server.start()
                stack.push_async_callback(server.kill)
                self._workers.append(await self._worker(number, server.name, stack))
                self.books.workers[server.name] = self._workers[-1].name
            for number in range(self._args.submitters):
                self._submitters.append(await self._submitter(number, stack))
            troubles = [asyncio.create_task(trouble) for trouble in self._troubles()]
            try:
                await self._all_submitted(troubles)
            finally:
                await _cancelled(troubles)
            for server in self._servers:
                self.books.events += server.events()
            for _, journal in self._submitters:
                self.books.lines += Journal(journal).lines()
            await self._look_at_the_queue()
        self.books.events.sort(key=lambda event: event.at)
        self.books.compare()

    def _directory(self, name: str) -> Path:
        directory = self._root / name
        directory.mkdir()
        return directory

    async def _worker(self, number: int, server: str, stack: AsyncExitStack) -> Process:
        options = [f"--nats={self._broker.url}", f"--server={server}", f"--lease={_LEASE}", "--max-attempts=50", "-v"]
        worker = Process(f"worker {number}", self._directory(f"worker-{number}"), "-m", "acomfy", "worker", *options)
        await worker.start()
        stack.push_async_callback(worker.kill)
        return worker

    async def _submitter(self, number: int, stack: AsyncExitStack) -> tuple[Process, Path]:
        args = self._args
        journal = self._root / f"submitter-{number}.jsonl"
        journal.touch()
        each = -(-args.jobs // args.submitters)
        colors = (str(number * each), str(min((number + 1) * each, args.jobs)))
        told = ["--submit", self._broker.url, str(journal), *colors, f"--seed={args.seed}"]
        told += [f"--streams={args.streams}", f"--cancels={args.cancels}"]
        submitter = Process(f"submitter {number}", self._directory(f"submitter-{number}"), "-m", __spec__.name, *told)
        await submitter.start()
        stack.push_async_callback(submitter.kill)
        return submitter, journal

    async def _all_submitted(self, troubles: list[asyncio.Task[None]]) -> None:
        """Wait until each submitter has ended by itself. Trouble ends before, when most is done: nothing may hang."""
        deadline = time.monotonic() + self._args.patience
        quiet_since: float | None = None
        while not all(self._has_all(journal) for _, journal in self._submitters):
            await asyncio.sleep(0.5)
            for task in troubles:
                if task.done() and quiet_since is None:
                    await task
            if quiet_since is None and time.monotonic() > deadline - _QUIET_END:
                quiet_since = time.monotonic()
                await _cancelled(troubles)
                await self._heal()
            if time.monotonic() > deadline:
                self.books.violations.append("not all had their outcome in time")
                return
        await _cancelled(troubles)
        await self._heal()

    def _has_all(self, journal: Path) -> bool:
        each = -(-self._args.jobs // self._args.submitters)
        number = int(journal.stem.rpartition("-")[2])
        wanted: int = max(min((number + 1) * each, self._args.jobs) - number * each, 0)
        return journal.read_bytes().count(b'"what": "outcome"') >= wanted

    async def _heal(self) -> None:
        """Let everything run that was killed or stopped when trouble ended."""
        if self._broker.pid is None:
            await self._broker.start()
        submitters = [submitter for submitter, journal in self._submitters if not self._has_all(journal)]
        for process in (*self._servers, *self._workers, *submitters):
            process.signal(signal.SIGCONT)
            if not process.runs:
                await process.start()

    async def _look_at_the_queue(self) -> None:
        async with Fleet(self._broker.url) as fleet:
            for _ in range(40):
                left = await fleet.waiting()
                if not left:
                    break
                await asyncio.sleep(0.25)
            letters = await fleet.dead_letters()
        if left:
            self.books.violations.append(f"{left} orders are left in the queue")
        self.books.violations += [f"a dead letter: {letter.job_id}: {letter.reason}" for letter in letters]

    # --- Trouble -------------------------------------------------------------------------------------------------

    def _troubles(self) -> list[Coroutine[Any, Any, None]]:
        kinds = self._args.faults
        troubles: list[Coroutine[Any, Any, None]] = []
        for worker in self._workers:
            if "workers" in kinds:
                troubles.append(self._now_and_then(3.0, 12.0, partial(self._kill, worker)))
            if "stops" in kinds:
                troubles.append(self._now_and_then(4.0, 16.0, partial(self._stop, worker)))
        if "servers" in kinds:
            ill = self._servers[: max(1, len(self._servers) // 2)]
            troubles += [self._now_and_then(4.0, 15.0, partial(self._kill_server, server)) for server in ill]
        if "broker" in kinds:
            troubles.append(self._now_and_then(6.0, 18.0, self._kill_broker))
        if "submitters" in kinds:
            for submitter, _ in self._submitters:
                troubles.append(self._now_and_then(5.0, 15.0, partial(self._kill, submitter)))
        return troubles

    async def _now_and_then(self, least: float, most: float, trouble: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(least, most))
            await trouble()

    async def _kill(self, process: Process) -> None:
        with self.books.illness(process.name, "killed"):
            await process.kill()
            await asyncio.sleep(self._random.choice((0.0, self._random.uniform(0.0, 4.0))))
            await process.start()
            await asyncio.sleep(2.0)  # until it works again

    async def _stop(self, process: Process) -> None:
        with self.books.illness(process.name, "stopped"):
            process.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(_LEASE * self._random.uniform(0.8, 3.0))
            finally:
                process.signal(signal.SIGCONT)

    async def _kill_server(self, server: Server) -> None:
        with self.books.illness(server.name, "killed"):
            await server.kill()
            await asyncio.sleep(self._random.uniform(0.0, 3.0))
            await server.start()
            await _answers(server.name)

    async def _kill_broker(self) -> None:
        with self.books.illness("broker", "killed"):
            await self._broker.kill()
            await asyncio.sleep(self._random.choice((0.0, self._random.uniform(0.0, 3.0), 3.0 * _LEASE)))
            await self._broker.start()


async def _answers(url: str) -> None:
    async with acomfy.Client(url) as client:
        await client.wait_ready()


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--submitters", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=lambda text: text.split(","), default=list(_KINDS), help=",".join(_KINDS))
    parser.add_argument("--streams", type=float, default=0.1, help="the part of the jobs whose pictures are streamed")
    parser.add_argument("--cancels", type=float, default=0.05, help="the part of the jobs that are cancelled")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds after which it is said that it hangs")
    parser.add_argument("--broker-config", default="", help="more configuration of nats-server")
    parser.add_argument("--keep", type=Path, help="where to leave what was written down")
    parser.add_argument("--submit", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.submit:
        url, journal, first, end = args.submit
        plan = Plan(url, Path(journal), range(int(first), int(end)), args.seed, args.streams, args.cancels)
        asyncio.run(Submitter(plan).run())
        return 0
    root, start = Path(tempfile.mkdtemp(prefix="acomfy-fleet-")), time.monotonic()
    try:
        chaos = Chaos(args, root)
        asyncio.run(chaos.go())
    finally:
        if args.keep is not None:
            shutil.copytree(root, args.keep, dirs_exist_ok=True)
        shutil.rmtree(root, ignore_errors=True)
    print(f"{args.jobs} jobs, seed {args.seed}, {','.join(args.faults)}: {time.monotonic() - start:.0f} s")  # noqa: T201
    print("\n".join(chaos.books.report()))  # noqa: T201
    return 1 if chaos.books.violations else 0


if __name__ == "__main__":
    sys.exit(main())
