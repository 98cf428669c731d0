"""The server's HTTP routes, with ComfyUI's answers (server.py, 0.3.64).

A handler raises where ComfyUI's would; the middleware turns that into the 500 that ComfyUI gives. Every route exists
bare and under ``/api``.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from . import files
from .assets import AssetRoutes
from .internal import InternalRoutes
from .introspection import IntrospectionRoutes
from .jobs import JobRoutes, is_canonical_uuid
from .queue import Item
from .users import UserRoutes
from .validation import error, validate

if TYPE_CHECKING:
    from .server import SimulatedServer

logger = logging.getLogger("acomfy.simulator")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SENSITIVE = ("api_key_comfy_org", "auth_token_comfy_org")


class Routes:
    """The handlers of one server."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._assets = AssetRoutes(server)

    def application(self) -> web.Application:
        """Build the web application."""
        server = self._server
        cloudy = [] if server.cloud is None else [server.cloud.middleware]
        app = web.Application(
            client_max_size=server.max_upload_size,
            middlewares=[*cloudy, self._count, server.faults.middleware, self._trouble, self._guard],
        )
        if server.cloud is not None:
            server.cloud.add_to(app)
        app.router.add_get("/ws", server.sockets.handle)
        app.router.add_get("/api/ws", server.sockets.handle)
        for method, path, handler in self._table():
            app.router.add_route(method, path, handler)
            app.router.add_route(method, f"/api{path}", handler)
        JobRoutes(server).add_to(app)
        self._assets.add_to(app)
        InternalRoutes(server).add_to(app)
        app.router.add_get("/", self._front_page)
        app.router.add_get("/{path:.*}", self._not_found)
        return app

    def _table(self) -> list[tuple[str, str, Handler]]:
        get: list[tuple[str, Handler]] = [
            ("/prompt", self._get_prompt),
            ("/queue", self._get_queue),
            ("/history", self._get_history),
            ("/history/{prompt_id}", self._get_history_of),
            ("/view", self._view),
            *IntrospectionRoutes(self._server).table(),
        ]
        post: list[tuple[str, Handler]] = [
            ("/prompt", self._post_prompt),
            ("/queue", self._post_queue),
            ("/history", self._post_history),
            ("/interrupt", self._interrupt),
            ("/free", self._free),
            ("/upload/image", self._upload_image),
            ("/upload/mask", self._upload_mask),
        ]
        return [
            *((method, path, handler) for path, handler in get for method in ("GET", "HEAD")),
            *(("POST", path, handler) for path, handler in post),
            *UserRoutes(self._server).table(),
        ]

    # --- Around every request --------------------------------------------------------------------------------------

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        path = self._server.own_path(request.path if resource is None else resource.canonical)
        self._server.count(request.method, path)
        response = await handler(request)
        self._server.count_bytes(request.method, path, response)
        return response

    @web.middleware
    async def _trouble(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception:
            logger.info("%s %s failed, as it does in ComfyUI", request.method, request.path, exc_info=True)
            text = "500 Internal Server Error\n\nServer got itself in trouble"
            response = web.Response(status=500, text=text)
            response.force_close()
            return response

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return web.Response()
        if self._server.can.refuses_cross_site and request.headers.get("Sec-Fetch-Site") == "cross-site":
            return web.Response(status=403)
        if _foreign(request.headers.get("Host"), request.headers.get("Origin")):
            return web.Response(status=403)
        return await handler(request)

    async def _front_page(self, request: web.Request) -> web.Response:
        text = f"<!doctype html><title>acomfy simulator</title><p>A simulated ComfyUI {self._server.version}."
        return web.Response(text=text, content_type="text/html")

    async def _not_found(self, request: web.Request) -> web.Response:
        return web.Response(status=404, content_type="application/octet-stream")

    # --- Prompts ---------------------------------------------------------------------------------------------------

    async def _post_prompt(self, request: web.Request) -> web.Response:
        server = self._server
        server.sockets.log("got prompt\n")
        body = await request.json()
        if server.cloud is not None:
            body = server.cloud.accepted(body)
        number = self._number(body)
        if "prompt" not in body:
            refusal = error("no_prompt", "No prompt provided", "No prompt provided")
            return web.json_response({"error": refusal, "node_errors": {}}, status=400)
        prompt = body["prompt"]
        prompt_id = self._prompt_id(body)
        if server.can.prompt_id_is_uuid and not is_canonical_uuid(prompt_id):
            refusal = error("invalid_prompt_id", "Invalid prompt_id", f"{prompt_id!r} is not a canonical UUID")
            return web.json_response({"error": refusal, "node_errors": {}}, status=400)
        targets = body.get("partial_execution_targets") if server.can.partial_targets else None
        checked = validate(prompt, server.classes, targets, can=server.can)
        extra_data = body.get("extra_data", {})
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        if checked.error is not None:
            return web.json_response({"error": checked.error, "node_errors": checked.node_errors}, status=400)
        if server.can.create_time:
            extra_data["create_time"] = int(time.time() * 1000)
        server.accept(body, (number, prompt_id, prompt, extra_data, checked.outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": checked.node_errors})

    def _prompt_id(self, body: Any) -> str:
        if not self._server.can.chosen_prompt_id or "prompt_id" not in body:
            return str(uuid.uuid4())
        if self._server.can.prompt_id_is_uuid and body["prompt_id"] is None:
            return str(uuid.uuid4())
        return str(body["prompt_id"])

    def _number(self, body: Any) -> float:
        if "number" in body:
            return float(body["number"])
        number = self._server.number
        if "front" in body and body["front"]:
            number = -number
        self._server.number += 1
        return number

    async def _get_prompt(self, request: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": len(self._server.queue)}})

    async def _get_queue(self, request: web.Request) -> web.Response:
        queue = self._server.queue
        running, pending = list(map(self._shown, queue.running.values())), list(map(self._shown, queue.pending))
        return web.json_response({"queue_running": running, "queue_pending": pending})

    def _shown(self, item: Item) -> list[Any]:
        number, prompt_id, prompt, extra_data, outputs = item
        if self._server.can.tokens_hidden_in_queue:
            extra_data = without_tokens(extra_data)
        return [number, prompt_id, prompt, extra_data, outputs]

    async def _post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self._server.clear_queue()
        for prompt_id in body.get("delete", ()):
            self._server.delete_prompt(prompt_id)
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        prompt_id = body.get("prompt_id") if self._server.can.targeted_interrupt else None
        if not prompt_id or self._server.queue.is_running(prompt_id):
            self._server.interrupt()
        return web.Response()

    async def _free(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._server.free(bool(body.get("free_memory", False)))
        return web.Response()

    # --- History ---------------------------------------------------------------------------------------------------

    async def _get_history(self, request: web.Request) -> web.Response:
        max_items = int(request.query["max_items"]) if "max_items" in request.query else None
        offset = -1
        if self._server.can.history_offset and "offset" in request.query:
            offset = int(request.query["offset"])
        return web.json_response(self._server.queue.read_history(max_items, offset))

    async def _get_history_of(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        history = self._server.queue.history
        return web.json_response({prompt_id: history[prompt_id]} if prompt_id in history else {})

    async def _post_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self._server.queue.history.clear()
        for prompt_id in body.get("delete", ()):
            self._server.queue.forget(prompt_id)
        return web.Response()

    # --- Files -----------------------------------------------------------------------------------------------------

    async def _view(self, request: web.Request) -> web.StreamResponse:
        return await files.view(self._server.folders, request, guarded=self._server.can.guarded_view)

    async def _upload_image(self, request: web.Request) -> web.Response:
        response, upload = await files.upload_image(self._server.folders, request)
        return self._uploaded(response, upload)

    async def _upload_mask(self, request: web.Request) -> web.Response:
        response, upload = await files.upload_mask(self._server.folders, request)
        return self._uploaded(response, upload)

    def _uploaded(self, response: web.Response, upload: dict[str, Any]) -> web.Response:
        if not upload:
            return response
        self._server.uploads.append(upload)
        folder, name = upload["type"], upload["name"]
        path = self._server.folders.paths[folder] / upload["subfolder"] / name
        if not self._server.assets or not path.is_file():
            return response
        asset = self._assets.add(path, name, [folder, "uploaded"]).shown()
        shown = {key: asset[key] for key in ("id", "name", "asset_hash", "size", "mime_type", "tags")}
        answer = {key: upload[key] for key in ("name", "subfolder", "type")}
        return web.json_response({**answer, "asset": shown})


def _foreign(host: str | None, origin: str | None) -> bool:
    """Tell whether a browser page of another origin asks a server on loopback (server.py origin_only_middleware)."""
    if not host or not origin:
        return False
    ours, theirs = urlsplit(f"//{host}"), urlsplit(origin)
    if ours.hostname not in _LOOPBACK or not theirs.netloc:
        return False
    if ours.port is None or theirs.port is None:
        return ours.hostname != theirs.hostname
    return (ours.hostname, ours.port) != (theirs.hostname, theirs.port)


def without_tokens(extra_data: dict[str, Any]) -> dict[str, Any]:
    """Copy extra_data without the account tokens."""
    return {key: value for key, value in extra_data.items() if key not in _SENSITIVE}
