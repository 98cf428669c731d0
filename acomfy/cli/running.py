"""Send the prompts of a run, save what they give, and stop cleanly when asked to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

from ..client import Client
from ..errors import AcomfyError, JobLost, ServerError
from ..job import Job
from ..result import Output, Result
from .arguments import Variants
from .reports import Finished, Picture, Stopped

_CONFIRM_TIMEOUT = 4.0  # the client repeats a cancel that failed; longer than that nobody waits after Ctrl-C


async def run_prompts(
    client: Client, variants: Variants, *, limit: int, out: Path, stop: asyncio.Event, tell: Callable[[Finished], None]
) -> Stopped | None:
    """Run all prompts, at most `limit` at once, and tell of each when its files are saved.

    When `stop` is set, the prompts under way are cancelled on the server, no others, and what became of them is
    returned after at most a few seconds.

    Raises:
        ServerError: The server cannot be reached, or refuses us.
    """
    async with aclosing(client.map(variants, limit=limit)) as jobs:
        while (job := await _next(jobs, stop)) is not None:
            index = job.index or 0
            tell(await _finished(job, index, variants.seeds[index], out))
        under_way = [job for job in client.jobs if not job.done()]
    return await _stopped(under_way) if stop.is_set() else None


async def _next(jobs: AsyncGenerator[Job, None], stop: asyncio.Event) -> Job | None:
    """Give the next job that is done; None when there is none, or when `stop` is set first."""
    if stop.is_set():
        return None
    taking = asyncio.ensure_future(anext(jobs, None))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({taking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return taking.result() if taking.done() else None
    finally:
        for task in (taking, stopping):
            task.cancel()
        await asyncio.wait({taking, stopping})


async def _finished(job: Job, index: int, seed: int | None, out: Path) -> Finished:
    """Take a job's result and save its files."""
    try:
        result = await job
    except AcomfyError as exc:
        if isinstance(exc, ServerError):
            raise
        unreachable = isinstance(exc, JobLost) and exc.reason == "unreachable"
        return Finished(index, job.prompt_id, seed, job.state, error=str(exc), unreachable=unreachable)
    try:
        paths = await result.save(out)
    except (AcomfyError, OSError) as exc:
        return Finished(index, job.prompt_id, seed, job.state, error=f"cannot save its files: {exc}")
    pictures = tuple(_pictures(result, paths))
    return Finished(index, job.prompt_id, seed, job.state, tuple(paths), pictures)


def _pictures(result: Result, paths: list[Path]) -> Iterator[Picture]:
    """Pair the saved pictures with titles, where a prompt has several."""
    saved = [output for output in result.outputs if output.type == "output" and output.text is None]
    images = [(output, path) for output, path in zip(saved, paths, strict=True) if output.kind == "image"]
    several = len(images) > 1
    for output, path in images:
        yield Picture(path, _title(output, [other for other, _ in images]) if several else None)


def _title(output: Output, images: list[Output]) -> str:
    siblings = [other for other in images if other.node_id == output.node_id]
    place = next(index for index, other in enumerate(siblings, 1) if other is output)
    nodes = {other.node_id for other in images}
    name = output.title or output.class_type or output.node_id
    if len(siblings) == 1:
        return name
    return f"{name} {place}" if len(nodes) > 1 else f"{place} of {len(siblings)}"


async def _stopped(jobs: list[Job]) -> Stopped:
    """Wait until cancelled prompts are confirmed off the server, but not for long."""
    if jobs:
        waits = {asyncio.ensure_future(job.settled()) for job in jobs}
        _, pending = await asyncio.wait(waits, timeout=_CONFIRM_TIMEOUT)
        for wait in pending:
            wait.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    cancelled = sum(job.state == "cancelled" for job in jobs)
    unconfirmed = sum(not job.done() for job in jobs)
    return Stopped(cancelled, len(jobs) - cancelled - unconfirmed, unconfirmed)
