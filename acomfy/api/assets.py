"""The assets API: files by content, with tags (ComfyUI app/assets, since 0.9.0, off unless ``--enable-assets``).

Its authors call it unstable. These routes exist under ``/api`` only. A server where it is off answers 503
``SERVICE_DISABLED``, one that does not know it 404 or 405; ``assets`` in ``GET /features`` tells. Errors are
``{"error": {"code": ..., "message": ..., "details": ...}}``, in `HTTPError.body`. With ``--multi-user`` give the
user's id as ``user``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, cast

import aiohttp

from ..errors import HTTPError
from ..transport import segment
from .base import Routes, given, query, user_header
from .multipart import Uploadable

if TYPE_CHECKING:
    from . import shapes


class AssetRoutes(Routes):
    """Assets and tags."""

    async def head_asset_hash(self, hash: str, *, user: str | None = None) -> bool:
        """Tell whether the server has content of this hash (``HEAD /api/assets/hash/{hash}``, since 0.12.0).

        Args:
            hash: ``blake3:`` and 64 hex digits.

        Raises:
            HTTPError: 400 for anything else. A 404 is False, also from a server without assets.
        """
        path = f"/api/assets/hash/{segment(hash)}"
        async with self._transport.stream("HEAD", path, headers=user_header(user), allowed=(404,)) as response:
            return response.status == 200

    async def get_assets(
        self,
        *,
        tags_all: Collection[str] | None = None,
        tags_any: Collection[str] | None = None,
        tags_none: Collection[str] | None = None,
        include_tags: Collection[str] | None = None,
        exclude_tags: Collection[str] | None = None,
        name_contains: str | None = None,
        metadata_filter: Mapping[str, Any] | None = None,
        hash: str | None = None,
        job_ids: Collection[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        after: str | None = None,
        sort: Literal["name", "created_at", "updated_at", "size", "last_access_time"] | None = None,
        order: Literal["asc", "desc"] | None = None,
        user: str | None = None,
    ) -> shapes.Assets:
        """List assets, a page at a time (``GET /api/assets``, since 0.9.0).

        Args:
            tags_all, tags_any, tags_none: Tags that an asset must all have, of which it must have one, must have none
                (since 0.32.0; older servers do not look at them).
            include_tags, exclude_tags: The same as ``tags_all`` and ``tags_none``, under the names of older servers.
            metadata_filter: Entries of its ``user_metadata``.
            hash, job_ids: Of this content; made by these prompts. Not every server looks at them.
            limit: 1 to 500; None: 20.
            offset: So many are left out.
            after: ``next_cursor`` of the page before, instead of ``offset``; not with ``last_access_time``.
            sort: None: ``created_at``.
            order: None: ``desc``.

        Raises:
            HTTPError: 400 for a parameter that the server does not take, 503 or 404 when it has no assets.
        """
        params = query(
            tags_all=tags_all,
            tags_any=tags_any,
            tags_none=tags_none,
            include_tags=include_tags,
            exclude_tags=exclude_tags,
            name_contains=name_contains,
            metadata_filter=_json(metadata_filter),
            hash=hash,
            job_ids=job_ids,
            limit=limit,
            offset=offset,
            after=after,
            sort=sort,
            order=order,
        )
        return cast("shapes.Assets", await self._transport.get_object("/api/assets", params, headers=user_header(user)))

    async def get_asset(self, asset_id: str, *, user: str | None = None) -> shapes.Asset:
        """Give an asset (``GET /api/assets/{id}``, since 0.9.0).

        Raises:
            HTTPError: 404 when there is none.
        """
        path = f"/api/assets/{segment(asset_id)}"
        return cast("shapes.Asset", await self._transport.get_object(path, headers=user_header(user)))

    @asynccontextmanager
    async def view_asset(
        self, asset_id: str, *, disposition: Literal["attachment", "inline"] | None = None, user: str | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Open the content of an asset for reading (``GET /api/assets/{id}/content``, since 0.12.0): always all of it.

        Raises:
            HTTPError: 404 when there is no such asset, or its file is gone.
        """
        path = f"/api/assets/{segment(asset_id)}/content"
        params, headers = query(disposition=disposition), user_header(user)
        async with self._transport.stream("GET", path, params=params, headers=headers) as response:
            yield response

    async def post_asset(
        self,
        file: Uploadable,
        filename: str,
        *,
        tags: Collection[str],
        name: str | None = None,
        user_metadata: Mapping[str, Any] | None = None,
        hash: str | None = None,
        mime_type: str | None = None,
        preview_id: str | None = None,
        limit: int | None = None,
        user: str | None = None,
    ) -> shapes.AssetCreated:
        """Store a file as an asset (``POST /api/assets``, since 0.12.0).

        Args:
            file, filename, limit: As for `upload_image`; the server stores it under its hash.
            tags: With exactly one of ``input``, ``output`` and ``models``; with ``models`` also one
                ``model_type:<folder>``.
            name: What it is called; None: the server takes the file's name.
            hash: ``blake3:<hex>`` of the content, which the server then checks.

        Raises:
            HTTPError: 400 for tags, names or a hash that the server does not take.
            PayloadTooLarge, OSError, ValueError, TypeError: As `upload_image`.
        """
        fields = given(name=name, hash=hash, mime_type=mime_type, preview_id=preview_id)
        fields |= given(tags=json.dumps(list(tags)), user_metadata=_json(user_metadata))
        answer = await self._send_file("/api/assets", "file", file, filename, fields, limit, user_header(user))
        return cast("shapes.AssetCreated", self._object(answer, "POST /api/assets"))

    async def post_asset_from_hash(
        self,
        hash: str,
        *,
        name: str | None = None,
        tags: Collection[str] | None = None,
        user_metadata: Mapping[str, Any] | None = None,
        mime_type: str | None = None,
        preview_id: str | None = None,
        user: str | None = None,
    ) -> shapes.AssetCreated:
        """Make an asset of content that the server has (``POST /api/assets/from-hash``, since 0.12.0).

        Raises:
            HTTPError: 404 when it has not; 400 ``FEATURE_DISABLED`` after 0.33, without ``--enable-asset-hashing``.
        """
        body = given(
            hash=hash,
            name=name,
            tags=None if tags is None else list(tags),
            user_metadata=None if user_metadata is None else dict(user_metadata),
            mime_type=mime_type,
            preview_id=preview_id,
        )
        return cast("shapes.AssetCreated", await self._changed("POST", "/api/assets/from-hash", body, user))

    async def put_asset(
        self,
        asset_id: str,
        *,
        name: str | None = None,
        user_metadata: Mapping[str, Any] | None = None,
        preview_id: str | None = None,
        user: str | None = None,
    ) -> shapes.Asset:
        """Change an asset's name, metadata or preview; None leaves it (``PUT /api/assets/{id}``, since 0.12.0)."""
        metadata = None if user_metadata is None else dict(user_metadata)
        body = given(name=name, user_metadata=metadata, preview_id=preview_id)
        return cast("shapes.Asset", await self._changed("PUT", f"/api/assets/{segment(asset_id)}", body, user))

    async def delete_asset(self, asset_id: str, *, user: str | None = None) -> None:
        """Forget an asset; its file stays (``DELETE /api/assets/{id}``, since 0.12.0).

        Raises:
            HTTPError: 404 when there is none.
        """
        await self._transport.send("DELETE", f"/api/assets/{segment(asset_id)}", headers=user_header(user))

    async def post_asset_tags(
        self, asset_id: str, tags: Collection[str], *, user: str | None = None
    ) -> shapes.TagsChanged:
        """Give an asset more tags (``POST /api/assets/{id}/tags``, since 0.12.0)."""
        path, body = f"/api/assets/{segment(asset_id)}/tags", {"tags": list(tags)}
        return cast("shapes.TagsChanged", await self._changed("POST", path, body, user))

    async def delete_asset_tags(
        self, asset_id: str, tags: Collection[str], *, user: str | None = None
    ) -> shapes.TagsChanged:
        """Take tags from an asset (``DELETE /api/assets/{id}/tags``, since 0.12.0)."""
        path, body = f"/api/assets/{segment(asset_id)}/tags", {"tags": list(tags)}
        return cast("shapes.TagsChanged", await self._changed("DELETE", path, body, user))

    async def get_tags(
        self,
        *,
        prefix: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        order: Literal["count_desc", "name_asc"] | None = None,
        include_zero: bool | None = None,
        user: str | None = None,
    ) -> shapes.Tags:
        """List tags and how many assets have each (``GET /api/tags``, since 0.9.0).

        Args:
            limit: 1 to 1,000; None: 100.
            include_zero: Also tags that no asset has; None: yes.
        """
        params = query(prefix=prefix, limit=limit, offset=offset, order=order, include_zero=include_zero)
        return cast("shapes.Tags", await self._transport.get_object("/api/tags", params, headers=user_header(user)))

    async def get_asset_tags_refine(
        self,
        *,
        tags_all: Collection[str] | None = None,
        tags_any: Collection[str] | None = None,
        tags_none: Collection[str] | None = None,
        include_tags: Collection[str] | None = None,
        exclude_tags: Collection[str] | None = None,
        name_contains: str | None = None,
        metadata_filter: Mapping[str, Any] | None = None,
        limit: int | None = None,
        user: str | None = None,
    ) -> dict[str, Any]:
        """Count the tags of the assets that `get_assets` would list (``GET /api/assets/tags/refine``, since 0.18.0).

        ``tag_counts`` holds them.
        """
        params = query(
            tags_all=tags_all,
            tags_any=tags_any,
            tags_none=tags_none,
            include_tags=include_tags,
            exclude_tags=exclude_tags,
            name_contains=name_contains,
            metadata_filter=_json(metadata_filter),
            limit=limit,
        )
        return await self._transport.get_object("/api/assets/tags/refine", params, headers=user_header(user))

    async def post_assets_seed(
        self, roots: Collection[str] | None = None, *, wait: bool = False, user: str | None = None
    ) -> shapes.Scan:
        """Have the server look for new files (``POST /api/assets/seed``, since 0.12.0).

        ``status`` is ``started``, ``already_running``, or with ``wait`` ``completed``.

        Args:
            roots: Of ``models``, ``input``, ``output``; None: all.
            wait: Answer when it is over.
        """
        body = {} if roots is None else {"roots": list(roots)}
        return cast("shapes.Scan", await self._scan("/api/assets/seed", body, query(wait=wait or None), user))

    async def get_assets_seed_status(self, *, user: str | None = None) -> shapes.Scan:
        """Tell how far the server is looking for new files (``GET /api/assets/seed/status``, since 0.17.0)."""
        answer = await self._transport.get_object("/api/assets/seed/status", headers=user_header(user))
        return cast("shapes.Scan", answer)

    async def post_assets_seed_cancel(self, *, user: str | None = None) -> shapes.Scan:
        """Have the server stop looking for new files (``POST /api/assets/seed/cancel``, since 0.17.0)."""
        return cast("shapes.Scan", await self._scan("/api/assets/seed/cancel", {}, None, user))

    async def post_assets_prune(self, *, user: str | None = None) -> shapes.Scan:
        """Have assets marked that lie in no folder any more (``POST /api/assets/prune``, since 0.17.0)."""
        return cast("shapes.Scan", await self._scan("/api/assets/prune", {}, None, user))

    async def post_assets_download(
        self, source_url: str, *, tags: Collection[str], filename: str | None = None, user: str | None = None
    ) -> shapes.Task:
        """Have the server download a model (``POST /api/assets/download``, after 0.33; it needs comfy-cli there)."""
        body = given(source_url=source_url, tags=list(tags), filename=filename)
        return cast("shapes.Task", await self._changed("POST", "/api/assets/download", body, user))

    async def get_task(self, task_id: str, *, user: str | None = None) -> shapes.Task:
        """Give the state of a download (``GET /api/tasks/{id}``, after 0.33)."""
        answer = await self._transport.get_object(f"/api/tasks/{segment(task_id)}", headers=user_header(user))
        return cast("shapes.Task", answer)

    async def delete_task(self, task_id: str, *, user: str | None = None) -> None:
        """Stop a download (``DELETE /api/tasks/{id}``, after 0.33)."""
        await self._transport.send("DELETE", f"/api/tasks/{segment(task_id)}", headers=user_header(user))

    async def _changed(self, method: str, path: str, body: Mapping[str, Any], user: str | None) -> dict[str, Any]:
        answer = await self._transport.send_json(method, path, body, headers=user_header(user))
        return self._object(answer, f"{method} {path}")

    async def _scan(
        self, path: str, body: Mapping[str, Any], params: Mapping[str, str] | None, user: str | None
    ) -> dict[str, Any]:
        try:
            answer = await self._transport.send_json("POST", path, body, params=params, headers=user_header(user))
        except HTTPError as exc:
            if exc.status != 409:
                raise
            with suppress(ValueError):
                return self._object(json.loads(exc.body), f"POST {path}")  # one is under way already, as it says
            raise
        return self._object(answer, f"POST {path}")


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(dict(value))
