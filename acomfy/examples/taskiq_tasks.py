"""Run workflows as taskiq tasks, whatever the broker: each once, however often its message is delivered.

It needs ``pip install "acomfy[taskiq]"``. In a module of yours, say tasks.py::

    broker = ...  # of taskiq-redis, taskiq-nats, taskiq-aio-pika; one that acknowledges late
    broker.add_middlewares(SmartRetryMiddleware())
    generate = taskiq_tasks.add_to(broker, lambda: acomfy.Client("http://127.0.0.1:8188"), "/shared/out")

then ``taskiq worker tasks:broker``, and anywhere ``await generate.kiq(workflow.to_dict())``.

taskiq acknowledges a message once the result is stored. When a worker dies before, or takes longer than the broker
waits for that, the message is delivered again; so each task writes its prompt_id beside its files before the prompt is
posted, and a later delivery attaches to that prompt. Workers on several machines must share the directory. A task that
times out (``generate.kicker().with_labels(timeout=600)``) takes its prompt from the server. A worker that is stopped
leaves it there: its task is tried again, as after every error that may pass.

On servers before 0.3.45, which choose the prompt_id themselves, a worker that dies while it posts may run it twice.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import anyio
from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, Context, TaskiqDepends, TaskiqEvents, TaskiqState

import acomfy


class Failed(Exception):
    """The task failed, and would again.

    taskiq's result backends keep the arguments of an exception, as JSON, and make it anew of them; so these are texts.

    Attributes:
        kind: The name of acomfy's error, for example ``JobFailed``.
        message: What it says.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(kind, message)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class MayPass(Failed):
    """The task failed, but may succeed at another time: what taskiq's retry middlewares try again."""


def may_pass(error: acomfy.AcomfyError) -> bool:
    """Tell whether the server or the way to it failed, and neither the workflow nor a node."""
    if isinstance(error, acomfy.HTTPError):
        return error.status in (429, 502, 503, 504)
    return isinstance(error, acomfy.ServerUnreachable | acomfy.JobLost | acomfy.ClientClosed)


def unknown(error: BaseException) -> bool:
    """Tell whether a prompt may yet run: the server went away, and did not come back while we waited."""
    return isinstance(error, acomfy.JobLost) and error.reason == "unreachable"


class Note:
    """What is known of a task, in a file of its own: its prompt_id, and in the end its files."""

    def __init__(self, out: Path, task_id: str) -> None:
        name = quote(task_id, safe="").replace(".", "%2E")  # whoever sends a task may choose its id
        self.folder = out / name
        self._path = out / f"{name}.json"

    def read(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        return known

    def write(self, **known: Any) -> dict[str, Any]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(f".{os.getpid()}.part")  # what stands under its name is whole
        with part.open("w", encoding="utf-8") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)
        return known

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


async def generate(workflow: dict[str, Any], context: Annotated[Context, TaskiqDepends()]) -> dict[str, Any]:
    """Run a workflow, and save its files: ``{"prompt_id": ..., "files": [path, ...]}``.

    Raises:
        MayPass: The server could not be reached, or lost the prompt.
        Failed: Anything else went wrong.
    """
    client: acomfy.Client = context.state.comfy
    note = Note(context.state.comfy_out, context.message.task_id)
    known = note.read()
    if "files" in known:
        return known
    try:
        result = await run_once(client, workflow, note)
        files = await result.save(note.folder, overwrite=True)
    except acomfy.AcomfyError as error:
        raise (MayPass if may_pass(error) else Failed)(type(error).__name__, str(error)) from error
    return note.write(prompt_id=result.prompt_id, files=[str(path) for path in files])


async def run_once(client: acomfy.Client, workflow: dict[str, Any], note: Note) -> acomfy.Result:
    """Attach to the prompt of an earlier delivery; run one if there was none, or if it is gone for good."""
    try:
        if (prompt_id := note.read().get("prompt_id")) is not None:
            try:
                return await (await client.attach(prompt_id))
            except (acomfy.JobLost, acomfy.OutputMissing) as error:
                if unknown(error):
                    raise
        return await (await submit(client, workflow, lambda prompt_id: note.write(prompt_id=prompt_id)))
    except acomfy.JobError as error:
        if not unknown(error):
            note.forget()  # whoever tries it again wants another run
        raise
    except asyncio.CancelledError:
        await take_off(client, note.read().get("prompt_id"))
        note.forget()
        raise


async def submit(client: acomfy.Client, workflow: dict[str, Any], note: Callable[[str], object]) -> acomfy.Job:
    """Submit a workflow; tell its prompt_id before anything is sent."""
    task = asyncio.current_task()

    def observe(job: acomfy.Job) -> None:
        if asyncio.current_task() is task:  # the client's other jobs come by here, too
            note(job.prompt_id)

    stop = client.on_job(observe)
    try:
        job = await client.submit(workflow)
    finally:
        stop()
    note(job.prompt_id)  # which a server before 0.3.45 chose
    return job


async def take_off(client: acomfy.Client, prompt_id: str | None) -> None:
    """Take a prompt from the server, for which it gets the client's ``cancel_timeout``, although we are cancelled."""
    if prompt_id is not None:
        with anyio.move_on_after(5, shield=True):  # taskiq's timeout would cancel every further await, too
            with suppress(acomfy.AcomfyError):  # it does not answer
                await (await client.attach(prompt_id)).cancel()


def add_to(
    broker: AsyncBroker, make_client: Callable[[], acomfy.Client], out: str | os.PathLike[str], **labels: Any
) -> AsyncTaskiqDecoratedTask[..., Any]:
    """Give a broker the task, and each of its workers one client.

    Args:
        make_client: Called in each worker process as it starts; the client is closed when it stops.
        out: Where the files go, and what is known of each task; the same for all workers.
        labels: Of the task, for example ``max_retries=5`` or ``timeout=600``.
    """

    async def start(state: TaskiqState) -> None:
        state.comfy = make_client()
        state.comfy_out = Path(out)

    async def stop(state: TaskiqState) -> None:
        await state.comfy.aclose()

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, start)
    broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, stop)
    rule = {"retry_on_error": True, "types_of_exceptions": (MayPass,)}
    return broker.register_task(generate, task_name="acomfy.generate", **{**rule, **labels})
