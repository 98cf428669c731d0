"""What an answer that says no means: by its status first, whoever wrote its body.

ComfyUI refuses in JSON of several shapes, in plain text, or with an empty body; what stands in front of it refuses in
HTML, or with a redirect to a login page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .errors import AuthenticationError, HTTPError, PayloadTooLarge, ServerError

SHOWN_BYTES = 200
"""Bytes of a body that are quoted."""

_FORBIDDEN = (
    "ComfyUI refuses paths that lead out of a folder, and requests whose Origin differs from its address "
    "(--enable-cors-header lifts that); else a proxy in front of it wants credentials"
)
_NO_USER = "401: Unauthorized"
"""What ComfyUI says to an unknown ``comfy-user`` (app/user_manager.py, app_settings.py); it has no other 401."""
_HINTS = {
    401: "credentials are missing or wrong: see auth, token, headers and api_key of Client",
    402: "the account has to pay for this, or its plan does not cover it",
    403: _FORBIDDEN,
    407: "the proxy on the way wants credentials: proxy='http://user:password@host:port'",
    429: "there were too many requests, or too many prompts wait",
}


def refusal(
    status: int,
    method: str,
    url: str,
    *,
    body: bytes = b"",
    content_type: str = "",
    redirects_to: str | None = None,
    retry_after: float | None = None,
    size: int | None = None,
    hint: str = "",
) -> ServerError:
    """Make the error of an answer whose status says no.

    Args:
        url: May be shown: without credentials.
        body: Its first bytes.
        redirects_to: The address in its ``Location`` that may be shown; None when it has none.
        retry_after: Seconds that it asks to wait.
        size: Bytes of the body that was sent.
        hint: What more is known.
    """
    text = excerpt(body)
    if status == 413:
        match = re.search(r"size (\d{1,18}) exceeded", text)
        return PayloadTooLarge(size, int(match.group(1)) if match else None)
    if redirects_to is not None:
        hint = f"it redirects to {redirects_to}: is the address right, and is a login needed?"
    denied = status in (401, 403, 407) or 300 <= status < 400
    return (AuthenticationError if denied else HTTPError)(
        status,
        method,
        url,
        text,
        hint or _hint(status, text, content_type),
        content_type=content_type,
        error_type=error_type(body),
        retry_after=retry_after,
    )


def _hint(status: int, text: str, content_type: str) -> str:
    if status == 403 and text.strip() and "html" not in content_type and not text.lstrip().startswith("<"):
        return ""  # ComfyUI's own words ("Invalid directory"): it knows best
    if status == 401 and text == _NO_USER:
        return "a server with --multi-user wants user=, one of the ids in users(); else " + _HINTS[401]
    return _HINTS.get(status, "")


def excerpt(body: bytes) -> str:
    """Give the first bytes of a body as text, whatever they are."""
    return body[:SHOWN_BYTES].decode("utf-8", "replace")


def error_type(body: bytes) -> str | None:
    """Read the kind of error out of a JSON body; None when it names none.

    Shapes seen: ``{"error": {"type": ...}}`` (``/prompt``), ``{"error": {"code": ...}}`` (assets), ``{"code": ...}``
    (Comfy Cloud).
    """
    if body.lstrip()[:1] != b"{":
        return None
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    inner = answer.get("error") if isinstance(answer, Mapping) else None
    places = (inner, answer) if isinstance(inner, Mapping) else (answer,)
    kinds = (place.get(key) for place in places for key in ("type", "code"))
    return next((kind[:SHOWN_BYTES] for kind in kinds if isinstance(kind, str) and kind), None)
