"""What the server is and has (ComfyUI server.py, app/model_manager.py, custom_node_manager.py, subgraph_manager.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ..transport import segment
from .base import Routes

if TYPE_CHECKING:
    from . import shapes


class IntrospectionRoutes(Routes):
    """What the server is and has."""

    async def get_system_stats(self) -> shapes.SystemStats:
        """Give versions, memory and devices (``GET /system_stats``)."""
        return cast("shapes.SystemStats", await self._transport.get_object("/system_stats"))

    async def get_features(self) -> dict[str, Any]:
        """Give the server's feature flags (``GET /features``, since 0.3.45; 404 before)."""
        return await self._transport.get_object("/features")

    async def get_object_info(self, class_type: str | None = None) -> dict[str, shapes.NodeInfo]:
        """Give node definitions by class (``GET /object_info``, ``GET /object_info/{class}``).

        An unknown class gives an empty dict.

        Args:
            class_type: None: all, which is several MB and holds the server up for some 20 ms.
        """
        return await self._transport.get_object(
            "/object_info" if class_type is None else f"/object_info/{segment(class_type)}"
        )

    async def get_embeddings(self) -> list[str]:
        """List the embeddings, without their extensions (``GET /embeddings``)."""
        return await self._transport.get_list("/embeddings")

    async def get_models(self, folder: str | None = None) -> list[str]:
        """List the kinds of models, or the files of one kind (``GET /models``, ``GET /models/{folder}``).

        Raises:
            HTTPError: 404 for a kind that the server does not know.
        """
        return await self._transport.get_list("/models" if folder is None else f"/models/{segment(folder)}")

    async def get_model_folders(self) -> list[shapes.ModelFolder]:
        """List the kinds of models with their directories (``GET /experiment/models``)."""
        return await self._transport.get_list("/experiment/models")

    async def get_model_files(self, folder: str) -> list[shapes.ModelFile]:
        """List the model files of a kind, with sizes and times (``GET /experiment/models/{folder}``).

        Raises:
            HTTPError: 404 for a kind that the server does not know.
        """
        return await self._transport.get_list(f"/experiment/models/{segment(folder)}")

    async def get_model_preview(self, folder: str, path_index: int, filename: str) -> bytes:
        """Give the preview picture of a model, a WEBP (``GET /experiment/models/preview/{folder}/{index}/{filename}``).

        Args:
            path_index: ``pathIndex`` of the file in `get_model_files`.

        Raises:
            HTTPError: 404 when it has none.
        """
        name = "/".join(map(segment, filename.split("/")))
        return await self._transport.get_bytes(f"/experiment/models/preview/{segment(folder)}/{path_index}/{name}")

    async def get_extensions(self) -> list[str]:
        """List the scripts that the editor loads (``GET /extensions``)."""
        return await self._transport.get_list("/extensions")

    async def get_workflow_templates(self) -> dict[str, list[str]]:
        """List the example workflows of each custom node pack (``GET /workflow_templates``)."""
        return await self._transport.get_object("/workflow_templates")

    async def get_i18n(self) -> dict[str, Any]:
        """Give the translations of custom node packs by language (``GET /i18n``)."""
        return await self._transport.get_object("/i18n")

    async def get_global_subgraphs(self) -> dict[str, Any]:
        """List the subgraphs that custom node packs and the server publish, by id (``GET /global_subgraphs``).

        Since 0.3.67. Their graphs are left out: see `get_global_subgraph`.
        """
        return await self._transport.get_object("/global_subgraphs")

    async def get_global_subgraph(self, subgraph_id: str) -> dict[str, Any] | None:
        """Give a published subgraph, its JSON as text in ``data`` (``GET /global_subgraphs/{id}``, since 0.3.67).

        None for an unknown one.
        """
        answer = await self._transport.get_json(f"/global_subgraphs/{segment(subgraph_id)}")
        return answer if isinstance(answer, dict) else None

    async def get_node_replacements(self) -> dict[str, list[dict[str, Any]]]:
        """Give what is put in place of old node classes (``GET /node_replacements``, since 0.14.0)."""
        return await self._transport.get_object("/node_replacements")
