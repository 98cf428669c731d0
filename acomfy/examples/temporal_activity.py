"""Run workflows as Temporal activities: with heartbeats, off the server when cancelled, and each once for all attempts.

python -m acomfy.examples.temporal_activity [--server http://127.0.0.1:8188] [--temporal localhost:7233] [--out out]

It needs ``pip install "acomfy[temporal]"`` and a Temporal server (``temporal server start-dev``). That starts a worker;
a program of yours, or ``temporal workflow execute``, then starts `Generate` with a ComfyUI workflow as its argument::

    made = await temporal.execute_workflow(Generate.run, graph.to_dict(), id="fox-1", task_queue=TASK_QUEUE)

Every second the activity tells Temporal its prompt_id, state and progress, for the first time before the prompt is
posted; the next attempt, on whatever worker, attaches to that prompt. So a worker that is stopped or dies, a timeout, a
pause or a reset leave the prompt running; it is taken from the server when the activity is cancelled or its workflow is
gone. Only errors that may pass (the server is away, or lost the prompt) are tried again.

A worker that is killed in the very moment before Temporal has the first heartbeat may leave a prompt that is run again;
and a workflow that is cancelled while no worker lives leaves its prompt.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import anyio

    import acomfy

TASK_QUEUE = "comfyui"
BEAT = 1.0  # seconds; Temporal answers a heartbeat with the wish to cancel


class Comfy:
    """The activities of a worker: one client serves them all."""

    def __init__(self, client: acomfy.Client, out: Path) -> None:
        self.client = client
        self.out = out

    @activity.defn
    async def generate(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Run a ComfyUI workflow, and save its files: ``{"prompt_id": ..., "files": [path, ...]}``."""
        attempt = Attempt(self.client)
        beating = asyncio.create_task(attempt.beat())
        try:
            result = await attempt.result(graph)
            files = await result.save(self.out / result.prompt_id, overwrite=True)
            return {"prompt_id": result.prompt_id, "files": [str(path) for path in files]}
        except acomfy.AcomfyError as error:
            kind = type(error).__name__
            raise ApplicationError(str(error), type=kind, non_retryable=not may_pass(error)) from error
        except asyncio.CancelledError:
            if unwanted():
                await attempt.take_off()
            elif activity.is_worker_shutdown():
                raise ApplicationError("the worker was stopped", type="WorkerShutdown") from None
            raise
        finally:
            beating.cancel()


class Attempt:
    """One attempt of the activity, at the prompt of the attempt before it or at its own."""

    def __init__(self, client: acomfy.Client) -> None:
        self.client = client
        self.job: acomfy.Job | None = None
        self.prompt_id: str | None = next(iter(activity.info().heartbeat_details), None)

    async def result(self, graph: dict[str, Any]) -> acomfy.Result:
        if self.prompt_id is not None:
            try:
                self.job = job = await self.client.attach(self.prompt_id)
                return await job
            except (acomfy.JobLost, acomfy.OutputMissing) as error:
                if isinstance(error, acomfy.JobLost) and error.reason == "unreachable":
                    raise  # it may yet run
                self.job = None
        return await (await asyncio.shield(self._submit(graph)))  # the next attempt finds it also if we leave meanwhile

    async def _submit(self, graph: dict[str, Any]) -> acomfy.Job:
        task = asyncio.current_task()

        def observe(job: acomfy.Job) -> None:  # before anything is sent
            if asyncio.current_task() is task:  # the client's other jobs come by here, too
                self.job = job
                self.tell()

        stop = self.client.on_job(observe)
        try:
            return await self.client.submit(graph)
        finally:
            stop()

    def tell(self) -> None:
        """Tell Temporal how it goes; of all this the next attempt needs the prompt_id."""
        if self.job is not None:
            self.prompt_id = self.job.prompt_id  # a server before 0.3.45 chooses another when it is posted
            activity.heartbeat(self.prompt_id, self.job.state.value, round(self.job.progress, 3))
        elif self.prompt_id is not None:
            activity.heartbeat(self.prompt_id)

    async def beat(self) -> NoReturn:
        while True:
            self.tell()
            await asyncio.sleep(BEAT)

    async def take_off(self) -> None:
        """Take the prompt from the server, for which it gets the client's ``cancel_timeout``."""
        if self.prompt_id is not None:
            with anyio.move_on_after(5, shield=True):
                with suppress(acomfy.AcomfyError):  # it does not answer
                    await (self.job or await self.client.attach(self.prompt_id)).cancel()


def may_pass(error: acomfy.AcomfyError) -> bool:
    """Tell whether the server or the way to it failed, and neither the workflow nor a node."""
    if isinstance(error, acomfy.HTTPError):
        return error.status in (429, 502, 503, 504)
    return isinstance(error, acomfy.ServerUnreachable | acomfy.JobLost | acomfy.ClientClosed)


def unwanted() -> bool:
    """Tell whether nobody wants the prompt any more; otherwise another attempt follows."""
    why = activity.cancellation_details()
    return why is None or why.cancel_requested or why.not_found


@workflow.defn
class Generate:
    """Generate something; a workflow of yours would go on with its files."""

    @workflow.run
    async def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        return await workflow.execute_activity_method(
            Comfy.generate,
            graph,
            start_to_close_timeout=timedelta(hours=1),
            heartbeat_timeout=timedelta(seconds=30),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


def worker(temporal: Client, comfy: Comfy) -> Worker:
    """Make a worker that hears of a wish to cancel within about two seconds."""
    return Worker(
        temporal,
        task_queue=TASK_QUEUE,
        workflows=[Generate],
        activities=[comfy.generate],
        max_heartbeat_throttle_interval=timedelta(seconds=BEAT),
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--temporal", default="localhost:7233")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    async with acomfy.Client(args.server) as client:
        await worker(await Client.connect(args.temporal), Comfy(client, args.out)).run()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
