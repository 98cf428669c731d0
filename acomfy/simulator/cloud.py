"""Comfy Cloud's ways on top of the simulated server: ``SimulatedServer(cloud=Cloud())``.

From its documentation of August 2026, not from a recording: routes below ``/api`` only; an API key for every request, a
``token`` for the WebSocket; every socket hears all messages of the user; prompt ids and the order are the server's;
the history under ``/api/history_v2``; files by a redirect to a signed address at another host, which must be fetched
without the key; uploads named by their content; other shapes of the queue and of cancels.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web

from .files import FILE

if TYPE_CHECKING:
    from .queue import Item
    from .server import SimulatedServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CREDENTIALS = ("X-API-Key", "Authorization", "Cookie", "Proxy-Authorization")
_CHOSEN_BY_CLIENT = ("prompt_id", "number", "front")
_NOT_THERE = ("/api/history",)


class Cloud:
    """What is different from a ComfyUI of one's own.

    Args:
        api_key: The key that lets in.
        queue_limit: Prompts that may wait or run; one more is a 429. None: any number.
        paid: Whether the account pays; else every prompt is a 402.

    Attributes:
        fetched: What was fetched from where the files are: path and headers.
        leaks: The names of credentials that came with it; to be empty.
    """

    def __init__(
        self, api_key: str = "comfyui-simulated", *, queue_limit: int | None = None, paid: bool = True
    ) -> None:
        self.api_key = api_key
        self.queue_limit = queue_limit
        self.paid = paid
        self.fetched: list[tuple[str, dict[str, str]]] = []
        self.leaks: list[str] = []
        self._server: SimulatedServer | None = None
        self._signed: dict[str, Path] = {}
        self._storage: web.AppRunner | None = None
        self._origin = ""

    @property
    def server(self) -> SimulatedServer:
        """The server that it is put upon."""
        if self._server is None:
            raise RuntimeError("give it to a SimulatedServer first")
        return self._server

    def put_upon(self, server: SimulatedServer) -> None:
        """Make a server behave so."""
        self._server = server
        server.sockets.user_wide = True

    async def start(self) -> None:
        """Listen where the files are: an origin of its own."""
        app = web.Application()
        app.router.add_get("/bucket/{name}", self._stored)
        self._storage = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._storage.setup()
        await web.TCPSite(self._storage, self.server.host, 0).start()
        self._origin = f"http://{self.server.host}:{self._storage.addresses[0][1]}"

    async def stop(self) -> None:
        """Listen no more."""
        if self._storage is not None:
            await self._storage.cleanup()
            self._storage = None

    # --- Every request ---------------------------------------------------------------------------------------------

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who has the key, to what is below ``/api``."""
        if request.path == "/ws":
            return await handler(request) if request.query.get("token") == self.api_key else _unauthorized()
        if not request.path.startswith("/api/") or request.path in _NOT_THERE:
            return web.Response(status=404)
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.api_key not in (request.headers.get("X-API-Key"), bearer):
            return _unauthorized()
        if request.path == "/api/view":
            return await self._view(request, handler)
        if request.path == "/api/upload/image":
            return await self._upload(request, handler)
        if request.path == "/api/prompt" and request.method == "POST" and (refusal := self._refusal()) is not None:
            return refusal
        return await handler(request)

    def _refusal(self) -> web.Response | None:
        if not self.paid:
            return _error(402, "CLOUD_SUBSCRIPTION_REQUIRED", "A subscription is required")
        if self.queue_limit is not None and len(self.server.queue) >= self.queue_limit:
            return _error(429, "QUEUE_LIMIT", "Too many prompts wait", {"Retry-After": "1"})
        return None

    def accepted(self, body: dict[str, Any]) -> dict[str, Any]:
        """Leave out of a prompt's request what only a server of one's own lets the client choose."""
        return {key: value for key, value in body.items() if key not in _CHOSEN_BY_CLIENT}

    # --- Files -----------------------------------------------------------------------------------------------------

    async def _view(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if FILE not in response:
            return response  # a channel, a refusal: it comes directly
        signature, path = secrets.token_urlsafe(16), response[FILE]
        self._signed[signature] = path
        query = urlencode({"X-Goog-Signature": signature, "response-content-disposition": 'inline; filename="a b"'})
        return web.Response(status=302, headers={"Location": f"{self._origin}/bucket/{path.name}?{query}"})

    async def _stored(self, request: web.Request) -> web.StreamResponse:
        self.fetched.append((request.path, dict(request.headers)))
        self.leaks += [name for name in _CREDENTIALS if name in request.headers]
        self.leaks += ["the key in the address"] if self.api_key in str(request.url) else []
        path = self._signed.get(request.query.get("X-Goog-Signature", ""))
        if path is None or self.leaks:
            return web.Response(status=403, text="<Error><Code>SignatureDoesNotMatch</Code></Error>")
        return web.FileResponse(path)

    async def _upload(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if response.status != 200 or not isinstance(response, web.Response) or response.text is None:
            return response
        upload = json.loads(response.text)
        folder = self.server.folders.paths[upload["type"]]
        path = folder / upload["subfolder"] / upload["name"]
        name = hashlib.sha256(path.read_bytes()).hexdigest() + path.suffix
        path.replace(folder / name)
        return web.json_response({"name": name, "subfolder": "", "type": upload["type"]})

    # --- Other shapes ----------------------------------------------------------------------------------------------

    def add_to(self, app: web.Application) -> None:
        """Add the routes that are different, before those of a server of one's own."""
        app.router.add_get("/api/queue", self._get_queue)
        app.router.add_post("/api/queue", self._post_queue)
        app.router.add_post("/api/interrupt", self._interrupt)
        app.router.add_get("/api/history_v2", self._histories)
        app.router.add_get("/api/history_v2/{prompt_id}", self._history)
        app.router.add_get("/api/jobs", self._jobs)
        app.router.add_post("/api/jobs/cancel", self._cancel_many)
        app.router.add_post("/api/jobs/{prompt_id}/cancel", self._cancel)

    async def _get_queue(self, request: web.Request) -> web.Response:
        queue = self.server.queue
        running, pending = map(_item, queue.running.values()), map(_item, queue.pending)
        return web.json_response({"queue_running": list(running), "queue_pending": list(pending)})

    async def _post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        deleted = [prompt_id for prompt_id in body.get("delete", ()) if self.server.cancel_prompt(prompt_id)]
        if body.get("clear"):
            self.server.clear_queue()
        return web.json_response({"deleted": deleted, "cleared": bool(body.get("clear"))})

    async def _interrupt(self, request: web.Request) -> web.Response:
        prompt_id = (await request.json()).get("prompt_id")
        if prompt_id is not None and not self.server.queue.is_running(prompt_id):
            return _not_found()
        self.server.interrupt()
        return web.Response()

    async def _histories(self, request: web.Request) -> web.Response:
        history = self.server.queue.history
        entries = [{"prompt_id": prompt_id, **_entry(entry)} for prompt_id, entry in reversed(history.items())]
        return web.json_response({"history": entries[: int(request.query.get("max_items", len(entries)))]})

    async def _history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        entry = self.server.queue.history.get(prompt_id)
        return _not_found() if entry is None else web.json_response({prompt_id: _entry(entry)})

    async def _jobs(self, request: web.Request) -> web.Response:
        """List the newest jobs; of the sorting only its own names are known."""
        sort_by = request.query.get("sort_by", "create_time")
        if sort_by not in ("create_time", "execution_time"):
            return web.json_response({"code": "bad_request", "message": f"no sort_by {sort_by}"}, status=400)
        history = self.server.queue.history
        jobs = [{"id": prompt_id, "status": "completed", "outputs_count": 1} for prompt_id in reversed(history)]
        pagination = {"offset": 0, "limit": 100, "total": len(jobs), "has_more": False}
        return web.json_response({"jobs": jobs, "pagination": pagination})

    async def _cancel(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        if prompt_id not in self.server.ledger:
            return _not_found()
        return web.json_response({"cancelled": self.server.cancel_prompt(prompt_id)})

    async def _cancel_many(self, request: web.Request) -> web.Response:
        prompt_ids = (await request.json())["job_ids"]
        if any(prompt_id not in self.server.ledger for prompt_id in prompt_ids):
            return _not_found()
        return web.json_response({"cancelled": [each for each in prompt_ids if self.server.cancel_prompt(each)]})


def _item(item: Item) -> list[Any]:
    number, prompt_id, prompt, extra_data, outputs = item
    return [number, prompt_id, prompt, outputs, {"create_time": extra_data.get("create_time")}]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    number, prompt_id, prompt, extra_data, outputs = entry["prompt"]
    shown = {
        "priority": number,
        "prompt_id": prompt_id,
        "prompt": prompt,
        "extra_data": extra_data,
        "outputs_to_execute": outputs,
    }
    return {**entry, "prompt": shown}


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    refusal = {"type": kind, "message": message, "details": "", "extra_info": {}}
    return web.json_response({"error": refusal, "node_errors": {}}, status=status, headers=headers)


def _unauthorized() -> web.Response:
    return web.json_response({"code": "unauthorized", "message": "Authentication is required"}, status=401)


def _not_found() -> web.Response:
    return web.json_response({"code": "not_found", "message": "Not found"}, status=404)
