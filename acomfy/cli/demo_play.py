"""The demonstration itself: a broker, simulators and workers in processes, prompts, and a worker that is killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import examples
from ..concurrency import together
from ..errors import AcomfyError, ServerError
from ..fleet import Fleet, WorkerInfo
from ..fleet.local import LocalBroker
from ..simulator import Ledger, read_ledgers
from ..verdict import JobState
from ..workflow import Workflow
from .demo_books import Books, End, Kill
from .demo_processes import Child, temporary_directory
from .ends import counted

_MODELS = ("v1-5-pruned-emaonly.safetensors", "sd_xl_base_1.0.safetensors")
_STEPS, _STEP_TIME = 8, 0.02
_SIZE = 64

_KILL_AFTER = 1 / 3  # of the prompts
_LOOK = 0.02
_ASK = 0.4
_RATE_OVER = 5.0  # seconds
_PATIENCE, _MOST_SECONDS = 60.0, 2.0  # for all, and more for each prompt: a machine may have other things to do


@dataclass(slots=True)
class Post:
    """A worker of the demonstration, and the simulator beside it.

    Attributes:
        worker: Its id in the fleet; "" before it was started.
        state: As `WorkerInfo.state`, or ``starting`` or ``killed``.
        done: How many prompts it brought to their ends.
    """

    name: str
    server: str = ""
    worker: str = ""
    state: str = "starting"
    done: int = 0
    warm: str = ""
    process: Child | None = None

    def told(self, info: WorkerInfo) -> None:
        """Take notice of what the worker says."""
        if self.state != "killed":
            self.state, self.warm = info.state, info.warm


@dataclass(slots=True)
class Scene:
    """What is to be seen at one moment.

    Attributes:
        in_queue: What waits or runs, as the broker says.
    """

    prompts: int
    posts: list[Post]
    broker: str = ""
    in_queue: int = 0
    ends: deque[float] = field(default_factory=deque)
    finished: int = 0
    begun: float | None = None

    @property
    def seconds(self) -> float:
        """Since the first submit."""
        return 0.0 if self.begun is None else time.monotonic() - self.begun

    def ended(self, worker: str) -> None:
        """Note that a worker brought a prompt to its end."""
        self.finished += 1
        self.ends.append(time.monotonic())
        for post in self.posts:
            post.done += post.worker == worker

    @property
    def rate(self) -> float:
        """Prompts that end in a second, over the last few."""
        now = time.monotonic()
        while self.ends and now - self.ends[0] > _RATE_OVER:
            self.ends.popleft()
        return len(self.ends) / max(min(self.seconds, _RATE_OVER), 1.0)


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happens on the way.

    Attributes:
        kind: ``started``, ``ready``, ``killed`` or ``taken_over``.
        text: The same for people.
        about: Its particulars.
    """

    kind: str
    text: str
    about: dict[str, object]


class Play:
    """One demonstration.

    Args:
        lease: Seconds without a sign of life of a worker after which another takes over.
        tell: Is told of what happens on the way.

    Attributes:
        scene: What is to be seen at the moment.
    """

    def __init__(self, prompts: int, workers: int, lease: float, tell: Callable[[Happening], object]) -> None:
        self.scene = Scene(prompts, [Post(f"worker {number}") for number in range(1, workers + 1)])
        self._books = Books()
        self._lease = lease
        self._tell = tell
        self._broker = LocalBroker()
        self._children: list[Child] = []
        self._directory: Path | None = None

    async def run(self) -> Books:
        """Run it, and give the books. Whatever it started is gone then, also when it is cancelled.

        Raises:
            StageError, LocalBrokerError: A process did not start.
            ServerError: The broker failed.
        """
        async with AsyncExitStack() as stack:
            directory = self._directory = stack.enter_context(temporary_directory())
            stack.push_async_callback(self._end_processes)
            fleet = await self._set_up(directory, stack)
            async with _beside(self._ask(fleet)), _beside(self._kill_one(fleet)):
                await self._submit_all(fleet)
                await self._wait_for_empty_queue(fleet)
            await self._look(fleet)
            self._books.ledgers = self._read_ledgers(directory)
        return self._books

    def abandon(self) -> None:
        """End the processes and remove what they wrote, on the spot: this one ends now."""
        for child in self._children:
            child.kill()
        if self._broker.pid is not None:
            os.kill(self._broker.pid, signal.SIGKILL)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    # --- The stage ---------------------------------------------------------------------------------------------------

    async def _set_up(self, directory: Path, stack: AsyncExitStack) -> Fleet:
        posts, broker = self.scene.posts, await stack.enter_async_context(self._broker)
        self.scene.broker = broker.url
        await together(self._simulator(directory, post) for post in posts)
        text = f"nats-server at {broker.url} and {counted(len(posts), 'simulator')} are there"
        self._tell(Happening("started", text, {"broker": broker.url, "simulators": [post.server for post in posts]}))
        fleet = await stack.enter_async_context(Fleet(broker.url, lease=self._lease))
        await together(self._worker(directory, post, broker.url) for post in posts)
        await fleet.wait_ready(workers=len(posts))
        workers = [post.worker for post in posts]
        self._tell(Happening("ready", f"{counted(len(posts), 'worker')} are there", {"workers": workers}))
        return fleet

    async def _simulator(self, directory: Path, post: Post) -> None:
        options = ["--port", "0", "--step-time", str(_STEP_TIME), "--ledger", str(directory / f"{post.name}.ledger")]
        _, line = await self._start(directory / f"{post.name}.simulator.log", "serve", *options)
        post.server = next(word for word in line.split() if word.startswith("http://"))

    async def _worker(self, directory: Path, post: Post, broker: str) -> None:
        options = ["--server", post.server, "--nats", broker, "--lease", str(self._lease)]
        post.process, line = await self._start(directory / f"{post.name}.log", "worker", *options)
        post.worker = line.split()[0]
        self._books.names[post.worker] = post.name

    async def _start(self, log: Path, *arguments: str) -> tuple[Child, str]:
        child = Child(log, *arguments)
        self._children.append(child)
        return child, await child.start()

    async def _end_processes(self) -> None:
        await asyncio.gather(*(child.aclose() for child in self._children))

    def _read_ledgers(self, directory: Path) -> dict[str, Ledger]:
        """Read what each simulator noted; one that got no prompt noted nothing."""
        lines = [line for file in directory.glob("*.ledger") for line in file.read_text(encoding="utf-8").splitlines()]
        return {post.server: Ledger() for post in self.scene.posts} | read_ledgers(lines)

    # --- What is played ----------------------------------------------------------------------------------------------

    async def _submit_all(self, fleet: Fleet) -> None:
        """Submit the prompts, and wait for their outcomes, though not for ever."""
        workflow, self.scene.begun = examples.load("text_to_image"), time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE + self.scene.prompts * _MOST_SECONDS):
                await together(self._one(fleet, workflow, index) for index in range(self.scene.prompts))
        self._books.seconds = self.scene.seconds

    async def _one(self, fleet: Fleet, workflow: Workflow, index: int) -> None:
        model = _MODELS[index % len(_MODELS)]
        own: dict[str | tuple[str, str], Any] = {
            **{("4", "ckpt_name"): model, ("3", "seed"): index, ("3", "steps"): _STEPS},
            **{("5", "width"): _SIZE, ("5", "height"): _SIZE},
        }
        job = await fleet.submit(workflow.replace(own))
        self._books.models[job.job_id] = model
        error, sha256 = None, ""
        try:
            result = await job
            sha256 = hashlib.sha256(await result.images[0].read()).hexdigest()
        except AcomfyError as exc:
            error = str(exc)
        end = End(job.job_id, job.prompt_id, job.attempt, job.worker, error, sha256, self.scene.seconds)
        self._books.ends.append(end)
        self.scene.ended(job.worker)
        self._maybe_tell_of_end(end)

    def _maybe_tell_of_end(self, end: End) -> None:
        if end in self._books.taken_over:
            name = self._books.names.get(end.worker, end.worker)
            about: dict[str, object] = {"job_id": end.job_id, "worker": end.worker, "attempt": end.attempt}
            self._tell(Happening("taken_over", f"{name} brought prompt {end.job_id[:8]} to its end", about))

    async def _kill_one(self, fleet: Fleet) -> None:
        """Kill a worker whose prompt has just begun, once a part of the prompts has ended."""
        known: set[str] = set()
        while True:
            running = {job.job_id: job for job in fleet.jobs if job.worker and job.state is JobState.IN_PROGRESS}
            fresh = [job for job_id, job in running.items() if job_id not in known]
            if known and fresh and self.scene.finished >= self.scene.prompts * _KILL_AFTER:
                return self._kill(fleet, fresh[0].worker)
            known = set(running)
            await asyncio.sleep(_LOOK)

    def _kill(self, fleet: Fleet, worker: str) -> None:
        post = next(post for post in self.scene.posts if post.worker == worker)
        if post.process is None:
            raise AssertionError("a worker that has a prompt was started")
        post.process.kill()
        post.state = "killed"
        jobs = tuple(job.job_id for job in fleet.jobs if job.worker == worker)
        self._books.kill = Kill(post.name, post.process.pid, worker, jobs, self.scene.seconds)
        what = ", ".join(job_id[:8] for job_id in jobs)
        text = f"{post.name} (pid {post.process.pid}) is killed while it has prompt {what}"
        self._tell(Happening("killed", text, {"worker": worker, "pid": post.process.pid, "jobs": list(jobs)}))

    async def _ask(self, fleet: Fleet) -> None:
        """Keep the scene as the workers and the broker tell it."""
        while True:
            with suppress(ServerError):
                await self._look(fleet)

    async def _look(self, fleet: Fleet) -> None:
        self.scene.in_queue, infos = await asyncio.gather(fleet.waiting(), fleet.workers(wait=_ASK))
        posts = {post.worker: post for post in self.scene.posts}
        for info in infos:
            posts[info.worker].told(info)

    async def _wait_for_empty_queue(self, fleet: Fleet) -> None:
        """Wait a while until the broker has nothing left: an order leaves the queue right after its outcome came."""
        deadline = time.monotonic() + 2 * self._lease
        while True:
            self._books.left = self.scene.in_queue = await fleet.waiting()
            if not self._books.left or time.monotonic() > deadline:
                return
            await asyncio.sleep(_LOOK)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncGenerator[None, None]:
    """Do something while the block runs; what goes wrong there is raised at its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
