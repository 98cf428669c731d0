"""The routes of prompts: post, queue, interrupt, history, free (ComfyUI server.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..errors import HTTPError, PayloadTooLarge, PromptRejected, ProtocolError
from ..profiles import read_histories
from ..transport import segment
from .base import Routes, query
from .multipart import FilePart

_LARGE = 1 << 20
"""Bytes of a body that may not go into the connection's buffers: a server that takes no more of it must be noticed."""

if TYPE_CHECKING:
    from . import shapes


@dataclass(frozen=True, slots=True)
class PromptReply:
    """The server's answer to a prompt that it queued.

    Attributes:
        prompt_id: The id that it goes by; not ours on servers before 0.3.45.
        number: Its place in the queue's order, lowest first.
        node_errors: What is wrong with the outputs that the server dropped, by node id; empty when all will run.
    """

    prompt_id: str
    number: float
    node_errors: Mapping[str, Any]


class PromptRoutes(Routes):
    """Prompts and the queue."""

    async def post_prompt(
        self,
        body: bytes | Mapping[str, Any],
        *,
        titles: Callable[[], Mapping[str, str]] = dict,
        limit: int | None = None,
    ) -> PromptReply:
        """Queue a prompt (``POST /prompt``).

        Args:
            body: The request, as JSON or as an object: ``prompt``, ``client_id``, ``prompt_id`` and so on.
            titles: Gives the titles of the prompt's nodes, for the error.
            limit: Bytes that the server takes, where it told; a larger body is not sent.

        Raises:
            PromptRejected: The server refused it (400).
        """
        if not isinstance(body, bytes):
            body = json.dumps(dict(body), allow_nan=False).encode()
        if limit is not None and len(body) > limit:
            raise PayloadTooLarge(len(body), limit)
        response = await self._transport.request(
            "POST",
            "/prompt",
            data=body if len(body) < _LARGE else lambda: FilePart(body, self._transport.read_timeout),
            headers={"Content-Type": "application/json"},
            allowed=(400,),
            size=len(body),
        )
        answer = await self._transport.read_json(response)
        if not isinstance(answer, dict):
            raise ProtocolError(f"POST {self.url}/prompt was answered with {type(answer).__name__}, not an object")
        if response.status == 400:
            raise _rejection(answer, titles)
        return _prompt_reply(answer)

    async def get_prompt(self) -> int:
        """Give the number of prompts that wait or run, of all clients (``GET /prompt``: ``queue_remaining``)."""
        answer = await self._transport.get_json("/prompt")
        try:
            return int(answer["exec_info"]["queue_remaining"])
        except (KeyError, TypeError, ValueError):
            raise ProtocolError(f"GET {self.url}/prompt was answered without a queue_remaining") from None

    async def get_queue(self) -> shapes.Queue:
        """Give the whole queue with all its graphs (``GET /queue``): ``queue_running`` and ``queue_pending``.

        ``queue_pending`` is a heap, not a line: sort it by number and prompt_id. With hundreds of prompts the answer
        is megabytes.
        """
        return cast("shapes.Queue", await self._transport.get_object("/queue"))

    async def post_queue(self, *, delete: Sequence[str] = (), clear: bool = False) -> None:
        """Take waiting prompts from the queue (``POST /queue``); ``clear`` takes everybody's. Running ones stay."""
        body: dict[str, Any] = {"clear": True} if clear else {}
        await self._transport.send("POST", "/queue", {**body, "delete": list(delete)} if delete else body)

    async def post_interrupt(self, prompt_id: str | None = None) -> None:
        """Stop the running prompt (``POST /interrupt``).

        Args:
            prompt_id: Stop it only if it is this one (since 0.3.57; older servers stop whatever runs). None: whatever.
        """
        await self._transport.send("POST", "/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    async def get_history(self, prompt_id: str) -> dict[str, Any] | None:
        """Give a prompt's history entry (``GET /history/{id}``).

        None when it has none: it waits, runs, was deleted, or never existed.
        """
        profile = self._transport.profile
        try:
            history = await self._transport.get_object(f"{profile.history}/{segment(prompt_id)}")
        except HTTPError as exc:
            if exc.status == 404 and profile.unknown_is_404:
                return None
            raise
        entry = history.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    async def get_histories(self, *, max_items: int | None = None, offset: int | None = None) -> dict[str, Any]:
        """Give history entries by prompt_id, in the order in which they ended (``GET /history``).

        Args:
            max_items: So many at most: the newest, or those from ``offset`` on. None: all, with their graphs.
            offset: Entries to leave out, counted from the oldest (since 0.3.60; older servers do not look at it).
        """
        params = query(max_items=max_items, offset=offset)
        return read_histories(await self._transport.get_object(self._transport.profile.history, params))

    async def post_history(self, *, delete: Sequence[str] = (), clear: bool = False) -> None:
        """Forget history entries (``POST /history``); ``clear`` forgets everybody's. The files stay."""
        body: dict[str, Any] = {"clear": True} if clear else {}
        await self._transport.send("POST", "/history", {**body, "delete": list(delete)} if delete else body)

    async def post_free(self, *, unload_models: bool = False, free_memory: bool = False) -> None:
        """Have models unloaded, or memory and the cache cleared, once no prompt runs (``POST /free``)."""
        await self._transport.send("POST", "/free", {"unload_models": unload_models, "free_memory": free_memory})


def _prompt_reply(answer: dict[str, Any]) -> PromptReply:
    prompt_id, number, node_errors = answer.get("prompt_id"), answer.get("number"), answer.get("node_errors")
    if not isinstance(prompt_id, str):
        raise ProtocolError("POST /prompt was answered without a prompt_id")
    return PromptReply(
        prompt_id,
        float(number) if isinstance(number, int | float) else 0.0,
        node_errors if isinstance(node_errors, dict) else {},
    )


def _rejection(answer: dict[str, Any], titles: Callable[[], Mapping[str, str]]) -> PromptRejected:
    error, node_errors = answer.get("error"), answer.get("node_errors")
    if isinstance(error, str):
        error = {"message": error}
    return PromptRejected(
        error if isinstance(error, dict) else {},
        node_errors if isinstance(node_errors, dict) else {},
        titles=titles(),
    )
