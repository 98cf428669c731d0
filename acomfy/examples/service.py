"""Serve ComfyUI to browsers: a FastAPI application that submits prompts and shows how they go.

python -m acomfy.examples.service [--server http://127.0.0.1:8188 | --simulate] [--port 8000]

It needs ``pip install "acomfy[service]"``. Then open http://127.0.0.1:8000. One `acomfy.Client` serves all browsers for
the life of the application:

    POST /run                       the picture itself; a browser that leaves takes its prompt from the server
    POST /prompts                   {"text": ..., "page": ...} gives {"prompt_id": ...} at once
    GET  /events?page=...           progress and previews of all prompts of a page, as server-sent events
    GET  /prompts/{id}/images/{n}   a finished picture
    WS   /socket                    the same by WebSocket: send {"text": ..., "tag": ...}, as many as you like

A handler is not cancelled when its browser goes away: it must look for that itself, which `until_gone` does. An
EventSource comes back after a hiccup, so a page's prompts are taken from the server once it was away for `GRACE`
seconds. One stream tells of all prompts of a page, since a browser opens no more than six connections to a server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from typing import Any, TypeVar

import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.requests import HTTPConnection

import acomfy
from acomfy import examples

T = TypeVar("T")

GRACE = 3.0
KEPT = 1000  # finished prompts whose pictures can still be asked for
SEEDS = 2**50


class Wish(BaseModel):
    """What a browser asks for.

    Attributes:
        page: Whose events tell of it.
        tag: Comes back with the prompt_id, for those who ask for several over one socket.
    """

    text: str
    seed: int | None = None
    page: str = ""
    tag: str | None = None


class News:
    """The jobs that a stream has not told of yet: of each the newest, so that a slow browser holds nobody up."""

    def __init__(self) -> None:
        self._jobs: dict[str, acomfy.Job] = {}
        self._wake = asyncio.Event()

    def note(self, job: acomfy.Job) -> None:
        self._jobs[job.prompt_id] = job
        self._wake.set()

    async def next(self) -> acomfy.Job:
        while not self._jobs:
            self._wake.clear()
            await self._wake.wait()
        return self._jobs.pop(next(iter(self._jobs)))


class Page:
    """A browser's page: its prompts, and the streams that tell it of them: two, while an old one is thought alive."""

    def __init__(self) -> None:
        self.jobs: dict[str, acomfy.Job] = {}
        self.streams: list[News] = []

    async def follow(self, job: acomfy.Job) -> None:
        """Note what changes about a job, until it is done."""
        self.jobs[job.prompt_id] = job
        async for _ in job.updates(interval=0.1):
            for stream in self.streams:
                stream.note(job)

    async def news(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what a page shows of its jobs, first of all of them as they are, then whenever one changes."""
        stream = News()
        for job in self.jobs.values():
            stream.note(job)
        self.streams.append(stream)
        try:
            while True:
                yield tell(await stream.next())
        finally:
            self.streams.remove(stream)


class Prompts:
    """The prompts of all browsers, by page."""

    def __init__(self, client: acomfy.Client) -> None:
        self.client = client
        self.jobs: dict[str, acomfy.Job] = {}
        self.pages: dict[str, Page] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def workflow(self, wish: Wish) -> acomfy.Workflow:
        seed = random.randrange(SEEDS) if wish.seed is None else wish.seed
        return examples.load("text_to_image").replace({"Positive.text": wish.text, "3.seed": seed})

    def page(self, name: str) -> Page:
        """Give a page; a new one has `GRACE` seconds to come and listen."""
        if name not in self.pages:
            self.pages[name] = Page()
            self.left(name)
        return self.pages[name]

    async def submit(self, wish: Wish, page: Page) -> acomfy.Job:
        job = await self.client.submit(self.workflow(wish))
        self.jobs[job.prompt_id] = job
        for jobs in (self.jobs, page.jobs):
            for prompt_id in [prompt_id for prompt_id, old in jobs.items() if old.done()][:-KEPT]:
                del jobs[prompt_id]
        self._spawn(page.follow(job))
        return job

    def left(self, name: str) -> None:
        """Give up a page's prompts if it does not come back."""
        self._spawn(self._give_up(name))

    async def _give_up(self, name: str) -> None:
        await asyncio.sleep(GRACE)
        if name in self.pages and not self.pages[name].streams:
            await cancel_all(self.pages.pop(name))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def cancel_all(page: Page) -> None:
    """Take a page's prompts from the server; one that is not there has none of them."""
    cancelling = (job.cancel() for job in page.jobs.values() if not job.done())
    await asyncio.gather(*cancelling, return_exceptions=True)


def tell(job: acomfy.Job) -> dict[str, Any]:
    """Say what a page shows of a job: how far it is; in the end its pictures' addresses, or what went wrong."""
    news: dict[str, Any] = {"prompt_id": job.prompt_id, "state": job.state, "progress": round(job.progress, 3)}
    if not job.done():
        if (preview := job.preview) is not None:
            news["preview"] = f"data:{preview.mime};base64,{base64.b64encode(preview.image).decode()}"
    elif (error := job.exception()) is not None:
        news["error"] = str(error)
    else:
        news["images"] = [f"/prompts/{job.prompt_id}/images/{number}" for number in range(len(pictures(job)))]
    return news


def pictures(job: acomfy.Job) -> list[acomfy.Output]:
    return [output for output in job.outputs if output.kind == "image" and output.type == "output"]


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work for a request, and cancel it when the browser goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "the browser went away")
        return await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


routes = APIRouter()


def prompts_of(connection: HTTPConnection) -> Prompts:
    """Give the prompts of the application that a request or a socket came to."""
    found: Prompts = connection.app.state.prompts
    return found


@routes.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(resources.files(examples).joinpath("service.html").read_text("utf-8"))


@routes.post("/run")
async def run(wish: Wish, request: Request) -> Response:
    prompts = prompts_of(request)
    result = await until_gone(request, prompts.client.run(prompts.workflow(wish)))
    image = result.images[0]
    return Response(await image.read(), media_type=image.media_type)


@routes.post("/prompts", status_code=202)
async def submit(wish: Wish, request: Request) -> dict[str, str]:
    prompts = prompts_of(request)
    job = await prompts.submit(wish, prompts.page(wish.page))
    return {"prompt_id": job.prompt_id}


@routes.get("/events")
async def events(page: str, request: Request) -> StreamingResponse:
    prompts = prompts_of(request)

    async def lines() -> AsyncIterator[str]:
        try:
            async for news in prompts.page(page).news():
                yield f"data: {json.dumps(news)}\n\n"
        finally:
            prompts.left(page)

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@routes.get("/prompts/{prompt_id}/images/{number}")
async def image(prompt_id: str, number: int, request: Request) -> Response:
    job = prompts_of(request).jobs.get(prompt_id)
    images = pictures(job) if job is not None and job.done() else []
    if not 0 <= number < len(images):
        raise HTTPException(404, "there is no such picture, or not any more")
    output = images[number]
    return Response(await output.read(), media_type=output.media_type)


@routes.websocket("/socket")
async def socket(socket: WebSocket) -> None:
    await socket.accept()
    prompts, page, tasks = prompts_of(socket), Page(), set[asyncio.Task[None]]()

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def send() -> None:
        async for news in page.news():
            await socket.send_json(news)

    async def submit(wish: Wish) -> None:
        try:
            job = await prompts.submit(wish, page)
            await socket.send_json({"tag": wish.tag, "prompt_id": job.prompt_id})
        except acomfy.AcomfyError as error:
            await socket.send_json({"tag": wish.tag, "error": str(error)})

    try:
        spawn(send())
        while True:
            spawn(submit(Wish.model_validate(await socket.receive_json())))
    except WebSocketDisconnect:
        pass
    except (ValueError, KeyError):  # no JSON, or bytes
        await socket.close(1003, "send objects with a text")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await cancel_all(page)


async def told(request: Request, error: Exception) -> Response:
    """Say what is wrong: with ComfyUI, or with what was asked of it."""
    return JSONResponse({"detail": str(error)}, 503 if isinstance(error, acomfy.ServerError) else 422)


def application(server: str | None) -> FastAPI:
    """Make the application for a ComfyUI server; None is a simulated one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            url = server or await simulated(stack)
            client = await stack.enter_async_context(acomfy.Client(url))
            app.state.prompts = Prompts(client)
            stack.push_async_callback(app.state.prompts.aclose)
            yield

    app = FastAPI(lifespan=lifespan, exception_handlers={acomfy.AcomfyError: told})
    app.include_router(routes)
    return app


async def simulated(stack: AsyncExitStack) -> str:
    from acomfy.simulator import SimulatedServer

    return (await stack.enter_async_context(SimulatedServer(step_time=0.1))).url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    uvicorn.run(application(None if args.simulate else args.server), port=args.port, timeout_graceful_shutdown=3)


if __name__ == "__main__":
    main()
