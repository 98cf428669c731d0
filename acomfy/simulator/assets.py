"""The assets API (ComfyUI app/assets, 0.33.0): files by content, with tags; off unless the server is told otherwise.

Hashes are named ``blake3:`` as ComfyUI's, but are other digests of the same length: nothing here computes BLAKE3.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import re
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import BodyPartReader, web

from .versions import Version

if TYPE_CHECKING:
    from .server import SimulatedServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ROOTS = ("input", "output")
_ROLES = ("input", "output", "models")
_SORTS = ("name", "created_at", "updated_at", "size", "last_access_time")
_HASH = re.compile(r"blake3:[0-9a-f]{64}")


@dataclass
class Reference:
    """An asset: a name and tags for some content."""

    name: str
    path: Path
    hash: str
    size: int
    tags: list[str]
    mime_type: str
    user_metadata: dict[str, Any] = field(default_factory=dict)
    preview_id: str | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def shown(self) -> dict[str, Any]:
        """Write it as the routes give it; what is not known is left out."""
        at = self.created_at.isoformat()
        about = {
            "id": self.id,
            "name": self.name,
            "hash": self.hash,
            "asset_hash": self.hash,
            "loader_path": self.path.name,
            "display_name": self.name,
            "size": self.size,
            "mime_type": self.mime_type,
            "tags": sorted(self.tags),
            "preview_id": self.preview_id,
            "user_metadata": self.user_metadata,
            "is_immutable": False,
            "created_at": at,
            "updated_at": at,
            "last_access_time": at,
        }
        return {key: value for key, value in about.items() if value is not None}


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def response(self) -> web.Response:
        error = {"code": self.code, "message": str(self), "details": {}}
        return web.json_response({"error": error}, status=self.status)


class AssetRoutes:
    """The handlers."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._references: dict[str, Reference] = {}

    def add_to(self, app: web.Application) -> None:
        """Add the routes that the server's version has; they exist under ``/api`` only."""
        known = tuple(int(part) for part in self._server.version.split("."))
        for since, method, path, handler in self._table():
            if known >= since:
                app.router.add_route(method, path, self._guarded(handler))

    def _table(self) -> list[tuple[Version, str, str, Handler]]:
        first, whole, scans, refine = (0, 9, 0), (0, 12, 0), (0, 17, 0), (0, 18, 0)
        one = "/api/assets/{id:[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}}"
        return [
            (first, "GET", "/api/assets", self._list),
            (first, "GET", one, self._get),
            (first, "GET", "/api/tags", self._tags),
            (whole, "HEAD", "/api/assets/hash/{hash}", self._head),
            (whole, "GET", f"{one}/content", self._content),
            (whole, "POST", "/api/assets", self._post),
            (whole, "POST", "/api/assets/from-hash", self._post_from_hash),
            (whole, "PUT", one, self._put),
            (whole, "DELETE", one, self._delete),
            (whole, "POST", f"{one}/tags", self._add_tags),
            (whole, "DELETE", f"{one}/tags", self._remove_tags),
            (whole, "POST", "/api/assets/seed", self._seed),
            (scans, "GET", "/api/assets/seed/status", self._seed_status),
            (scans, "POST", "/api/assets/seed/cancel", self._seed_cancel),
            (scans, "POST", "/api/assets/prune", self._prune),
            (refine, "GET", "/api/assets/tags/refine", self._refine),
        ]

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                if not self._server.assets:
                    raise _Refusal(503, "SERVICE_DISABLED", "Assets system is disabled.")
                return await handler(request)
            except _Refusal as refusal:
                return refusal.response()

        return guarded

    # --- Reading ---------------------------------------------------------------------------------------------------

    async def _head(self, request: web.Request) -> web.Response:
        found = any(reference.hash == _valid_hash(request.match_info["hash"]) for reference in self._all())
        return web.Response(status=200 if found else 404)

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        found = self._filtered(query)
        sort, limit, offset = query.get("sort", "created_at"), int(query.get("limit", 20)), int(query.get("offset", 0))
        if sort not in _SORTS or not 1 <= limit <= 500:
            raise _Refusal(400, "INVALID_QUERY", "Validation failed.")
        found.sort(key=lambda reference: reference.shown()[sort], reverse=query.get("order", "desc") == "desc")
        if self._server.can.asset_cursors and "after" in query:
            offset = int(query["after"].removeprefix("cursor-"))
        part = found[offset : offset + limit]
        more = offset + len(part) < len(found)
        answer = {"assets": [item.shown() for item in part], "total": len(found), "has_more": more}
        if more and self._server.can.asset_cursors:
            answer["next_cursor"] = f"cursor-{offset + len(part)}"
        return web.json_response(answer)

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._reference(request).shown())

    async def _content(self, request: web.Request) -> web.StreamResponse:
        reference = self._reference(request)
        if not reference.path.is_file():
            raise _Refusal(404, "FILE_NOT_FOUND", "Underlying file not found on disk.")
        return web.Response(body=reference.path.read_bytes(), content_type=reference.mime_type)

    async def _tags(self, request: web.Request) -> web.Response:
        counts = Counter(tag for reference in self._all() for tag in reference.tags)
        found = [item for item in counts.most_common() if item[0].startswith(request.query.get("prefix", ""))]
        tags = [{"name": name, "count": count} for name, count in found]
        return web.json_response({"tags": tags, "total": len(tags), "has_more": False})

    async def _refine(self, request: web.Request) -> web.Response:
        counts = Counter(tag for reference in self._filtered(request.query) for tag in reference.tags)
        return web.json_response({"tag_counts": dict(counts.most_common())})

    def _all(self) -> Iterable[Reference]:
        return self._references.values()

    def _reference(self, request: web.Request) -> Reference:
        asset_id = request.match_info["id"].lower()
        if asset_id not in self._references:
            raise _Refusal(404, "ASSET_NOT_FOUND", f"AssetReference {asset_id} not found")
        return self._references[asset_id]

    def _filtered(self, query: Mapping[str, str]) -> list[Reference]:
        wanted, unwanted, one_of = _csv(query, "include_tags"), _csv(query, "exclude_tags"), set[str]()
        if self._server.can.asset_tag_names:
            wanted, unwanted = wanted | _csv(query, "tags_all"), unwanted | _csv(query, "tags_none")
            one_of = _csv(query, "tags_any")
        metadata = json.loads(query.get("metadata_filter", "{}")).items()
        return [
            reference
            for reference in self._all()
            if wanted <= set(reference.tags)
            and not unwanted & set(reference.tags)
            and (not one_of or one_of & set(reference.tags))
            and query.get("name_contains", "") in reference.name
            and metadata <= reference.user_metadata.items()
        ]

    # --- Writing ---------------------------------------------------------------------------------------------------

    def add(self, path: Path, name: str, tags: list[str], **about: Any) -> Reference:
        """Make an asset of a file."""
        data = path.read_bytes()
        mime_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        reference = Reference(name, path, _hash(data), len(data), tags, mime_type, **about)
        self._references[reference.id] = reference
        return reference

    async def _post(self, request: web.Request) -> web.Response:
        form = await _read_form(request)
        tags = json.loads(form.get("tags", "[]"))
        role = [tag for tag in tags if tag in _ROLES]
        if len(role) != 1:
            raise _Refusal(400, "INVALID_BODY", "tags hold exactly one of input, output, models")
        if "file" not in form:
            raise _Refusal(400, "MISSING_INPUT", "Provided hash not found and no file uploaded.")
        filename, data = form["file"]
        if form.get("hash") and _valid_hash(form["hash"]) != _hash(data):
            raise _Refusal(400, "HASH_MISMATCH", "the content has another hash")
        folder = self._server.folders.paths[role[0] if role[0] in _ROOTS else "input"]
        known = next((item for item in self._all() if item.hash == _hash(data)), None)
        path = folder / (_hash(data).partition(":")[2] + Path(filename).suffix) if known is None else known.path
        path.write_bytes(data)
        metadata = json.loads(form.get("user_metadata", "{}"))
        reference = self.add(path, form.get("name") or filename, [*tags, "uploaded"], user_metadata=metadata)
        return web.json_response(
            {**reference.shown(), "created_new": known is None}, status=201 if known is None else 200
        )

    async def _post_from_hash(self, request: web.Request) -> web.Response:
        body = await request.json()
        content = _valid_hash(body["hash"])
        known = next((reference for reference in self._all() if reference.hash == content), None)
        if known is None:
            raise _Refusal(404, "ASSET_NOT_FOUND", f"Asset content {content} does not exist")
        name, metadata = body.get("name", content), body.get("user_metadata", {})
        reference = self.add(known.path, name, body.get("tags", []), user_metadata=metadata)
        return web.json_response({**reference.shown(), "created_new": False}, status=201)

    async def _put(self, request: web.Request) -> web.Response:
        reference, body = self._reference(request), await request.json()
        changes = {key: body[key] for key in ("name", "user_metadata", "preview_id") if body.get(key) is not None}
        if not changes:
            raise _Refusal(400, "INVALID_BODY", "Validation failed.")
        for key, value in changes.items():
            setattr(reference, key, value)
        return web.json_response(reference.shown())

    async def _delete(self, request: web.Request) -> web.Response:
        del self._references[self._reference(request).id]
        return web.Response(status=204)

    async def _add_tags(self, request: web.Request) -> web.Response:
        reference, tags = self._reference(request), (await request.json())["tags"]
        added = [tag for tag in tags if tag not in reference.tags]
        reference.tags += added
        present = [tag for tag in tags if tag not in added]
        return web.json_response({"added": added, "already_present": present, "total_tags": sorted(reference.tags)})

    async def _remove_tags(self, request: web.Request) -> web.Response:
        reference, tags = self._reference(request), (await request.json())["tags"]
        removed = [tag for tag in tags if tag in reference.tags]
        reference.tags = [tag for tag in reference.tags if tag not in removed]
        missing = [tag for tag in tags if tag not in removed]
        return web.json_response({"removed": removed, "not_present": missing, "total_tags": sorted(reference.tags)})

    # --- Scans -----------------------------------------------------------------------------------------------------

    async def _seed(self, request: web.Request) -> web.Response:
        roots = (await request.json()).get("roots", _ROLES)
        if not set(roots) & set(_ROLES):
            raise _Refusal(400, "INVALID_BODY", "No valid roots specified")
        known = {reference.path for reference in self._all()}
        for root in set(roots) & set(_ROOTS):
            for path in sorted(self._server.folders.paths[root].rglob("*")):
                if path.is_file() and path not in known:
                    self.add(path, path.name, [root])
        if request.query.get("wait") == "true":
            return web.json_response({"status": "completed", "progress": _progress(len(known)), "errors": []})
        return web.json_response({"status": "started"}, status=202)

    async def _seed_status(self, request: web.Request) -> web.Response:
        return web.json_response({"state": "IDLE", "progress": _progress(len(self._references)), "errors": []})

    async def _seed_cancel(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "idle"})

    async def _prune(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "completed", "marked": 0})


def _progress(count: int) -> dict[str, int]:
    return {"scanned": count, "total": count, "created": 0, "skipped": 0}


def _hash(data: bytes) -> str:
    return f"blake3:{hashlib.blake2b(data, digest_size=32).hexdigest()}"


def _valid_hash(text: str) -> str:
    if not _HASH.fullmatch(text.strip().lower()):
        raise _Refusal(400, "INVALID_HASH", "hash must be like 'blake3:<hex>'")
    return text.strip().lower()


def _csv(query: Mapping[str, str], name: str) -> set[str]:
    return {tag.strip() for tag in query.get(name, "").split(",") if tag.strip()}


async def _read_form(request: web.Request) -> dict[str, Any]:
    if not (request.content_type or "").startswith("multipart/"):
        raise _Refusal(415, "UNSUPPORTED_MEDIA_TYPE", "Use multipart/form-data for uploads.")
    form: dict[str, Any] = {}
    async for part in await request.multipart():
        if isinstance(part, BodyPartReader) and part.name is not None:
            data = await part.read(decode=True)
            form[part.name] = (part.filename, data) if part.filename else data.decode("utf-8")
    return form
