"""The routes that tell what the server is and has (ComfyUI server.py, app/model_manager.py and its neighbours)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from .server import SimulatedServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NOT_SHOWN = ("configs", "custom_nodes")


class IntrospectionRoutes:
    """The handlers; all of them read only."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server

    def table(self) -> list[tuple[str, Handler]]:
        """Give paths and handlers of the routes that the server's version has; each is bare and under ``/api``."""
        routes: list[tuple[str, Handler]] = [
            ("/object_info", self._object_info),
            ("/object_info/{class_type}", self._object_info_of),
            ("/system_stats", self._system_stats),
            ("/embeddings", self._embeddings),
            ("/models", self._models),
            ("/models/{folder}", self._models_in),
            ("/view_metadata/{folder}", self._view_metadata),
            ("/experiment/models", self._model_folders),
            ("/experiment/models/{folder}", self._model_files),
            ("/experiment/models/preview/{folder}/{path_index}/{filename:.*}", self._model_preview),
            ("/extensions", self._extensions),
            ("/workflow_templates", self._nothing),
            ("/i18n", self._nothing),
        ]
        if self._server.can.feature_flags:
            routes.append(("/features", self._features))
        if self._server.can.global_subgraphs:
            routes += [("/global_subgraphs", self._subgraphs), ("/global_subgraphs/{id}", self._subgraph)]
        if self._server.can.node_replacements:
            routes.append(("/node_replacements", self._node_replacements))
        return routes

    # --- Nodes -----------------------------------------------------------------------------------------------------

    async def _object_info(self, request: web.Request) -> web.Response:
        return web.json_response({name: node.object_info() for name, node in self._server.classes.items()})

    async def _object_info_of(self, request: web.Request) -> web.Response:
        node = self._server.classes.get(request.match_info["class_type"])
        return web.json_response({} if node is None else {node.class_type: node.object_info()})

    async def _node_replacements(self, request: web.Request) -> web.Response:
        return web.json_response(self._server.node_replacements)

    async def _subgraphs(self, request: web.Request) -> web.Response:
        shown = {
            _subgraph_id(name): {"source": "templates", "name": name, "info": {"node_pack": "comfyui"}}
            for name in self._server.subgraphs
        }
        return web.json_response(shown)

    async def _subgraph(self, request: web.Request) -> web.Response:
        for name, data in self._server.subgraphs.items():
            if _subgraph_id(name) == request.match_info["id"]:
                entry = {"source": "templates", "name": name, "info": {"node_pack": "comfyui"}, "data": data}
                return web.json_response(entry)
        return web.json_response(None)

    async def _extensions(self, request: web.Request) -> web.Response:
        return web.json_response([])

    async def _nothing(self, request: web.Request) -> web.Response:
        return web.json_response({})

    # --- The machine -----------------------------------------------------------------------------------------------

    async def _features(self, request: web.Request) -> web.Response:
        return web.json_response(self._server.features())

    async def _system_stats(self, request: web.Request) -> web.Response:
        memory = 16 * 2**30
        system = {
            "os": "posix",
            "ram_total": memory,
            "ram_free": memory,
            "comfyui_version": self._server.version,
            "required_frontend_version": "1.27.10",
            "installed_templates_version": None,
            "required_templates_version": "0.1.95",
            "python_version": sys.version,
            "pytorch_version": "simulated",
            "embedded_python": False,
            "argv": ["main.py"],
        }
        device = {"name": "cpu", "type": "cpu", "index": None, "vram_total": memory, "vram_free": memory}
        device |= {"torch_vram_total": memory, "torch_vram_free": memory}
        return web.json_response({"system": system, "devices": [device]})

    # --- Models ----------------------------------------------------------------------------------------------------

    async def _embeddings(self, request: web.Request) -> web.Response:
        return web.json_response([name.rpartition(".")[0] or name for name in self._server.models["embeddings"]])

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._server.models))

    async def _models_in(self, request: web.Request) -> web.Response:
        models = self._server.models.get(request.match_info["folder"])
        return web.Response(status=404) if models is None else web.json_response(models)

    async def _view_metadata(self, request: web.Request) -> web.Response:
        key = request.match_info["folder"], request.query.get("filename", "")
        metadata = self._server.model_metadata.get(key)
        return web.Response(status=404) if metadata is None else web.json_response(metadata)

    async def _model_folders(self, request: web.Request) -> web.Response:
        folders: list[dict[str, Any]] = [
            {"name": folder, "folders": [f"/comfyui/models/{folder}"]}
            for folder in self._server.models
            if folder not in _NOT_SHOWN
        ]
        if self._server.can.model_extensions:
            folders = [{**folder, "extensions": [".ckpt", ".pt", ".safetensors"]} for folder in folders]
        return web.json_response(folders)

    async def _model_files(self, request: web.Request) -> web.Response:
        models = self._server.models.get(request.match_info["folder"])
        if models is None:
            return web.Response(status=404)
        about = {"pathIndex": 0, "modified": 1.7e9, "created": 1.7e9, "size": 0}
        return web.json_response([{"name": name, **about} for name in models])

    async def _model_preview(self, request: web.Request) -> web.Response:
        folder, filename = request.match_info["folder"], request.match_info["filename"]
        if folder not in self._server.models or int(request.match_info["path_index"]) != 0:
            return web.Response(status=404)
        preview = self._server.model_previews.get((folder, filename))
        return web.Response(status=404) if preview is None else web.Response(body=preview, content_type="image/webp")


def _subgraph_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
