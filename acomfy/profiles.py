"""What differs between kinds of servers: a ComfyUI of one's own, and Comfy Cloud.

Comfy Cloud (docs of August 2026) serves ComfyUI's routes below ``/api`` only, wants an API key, chooses prompt ids
itself, runs several prompts of a user at once, sends all messages of a user to all of the user's sockets, keeps its
history under other paths, and answers ``/view`` with a redirect to a signed address at another host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .capabilities import Capabilities


@dataclass(frozen=True, slots=True)
class Profile:
    """How to talk to one kind of server.

    Attributes:
        name: ``comfyui`` or ``cloud``.
        prefix: Stands before the path of every route that does not have it already; the WebSocket is at ``/ws``.
        key_header: The header of the API key; "" where there is none.
        key_parameter: The query parameter of the API key when the WebSocket is opened.
        history: The path of the history.
        unknown_is_404: It says 404 of a prompt that has no history; a ComfyUI says ``{}``, and its 404 is a proxy's.
        sorting: What it calls the orders in which jobs are listed, where that is not ComfyUI's word.
        signed_files: Files may be answered with a redirect to another host, which is followed without credentials.
        interleaves: Several prompts run at once: a picture that names no prompt cannot be told whose it is.
        capabilities: What the server can do, where that needs no asking; None: ask.
    """

    name: str
    prefix: str = ""
    key_header: str = ""
    key_parameter: str = ""
    history: str = "/history"
    unknown_is_404: bool = False
    sorting: Mapping[str, str] = field(default_factory=dict)
    signed_files: bool = False
    interleaves: bool = False
    capabilities: Capabilities | None = None

    def path(self, path: str) -> str:
        """Give the path under which a route is found."""
        return path if not self.prefix or path.startswith(f"{self.prefix}/") else self.prefix + path

    def corrected(self, told: Capabilities) -> Capabilities:
        """Correct what a server told of itself by what is known of its kind."""
        if self.capabilities is None:
            return told
        return replace(self.capabilities, version=told.version, max_upload_size=told.max_upload_size)


COMFYUI = Profile("comfyui")
CLOUD = Profile(
    "cloud",
    prefix="/api",
    key_header="X-API-Key",
    key_parameter="token",
    history="/history_v2",
    unknown_is_404=True,
    sorting={"created_at": "create_time", "execution_duration": "execution_time"},
    signed_files=True,
    interleaves=True,
    capabilities=Capabilities(targeted_interrupt=True, cancels_jobs=True),
)

_CLOUD_HOST = "cloud.comfy.org"
_BY_NAME = {profile.name: profile for profile in (COMFYUI, CLOUD)}


def is_cloud(host: str | None) -> bool:
    """Tell whether a host is Comfy Cloud's, which is spoken to by https alone: the key must not go unencrypted."""
    return host is not None and host.lower().rstrip(".") == _CLOUD_HOST


def choose(host: str | None, name: str | None = None) -> Profile:
    """Choose the profile of a server: by name, or by its host where none is named.

    Raises:
        ValueError: There is no profile of that name.
    """
    if name is None:
        return CLOUD if is_cloud(host) else COMFYUI
    if name not in _BY_NAME:
        raise ValueError(f"profile is {' or '.join(map(repr, _BY_NAME))}, not {name!r}")
    return _BY_NAME[name]


def read_histories(body: Any) -> dict[str, Any]:
    """Read a page of histories as entries by prompt_id, oldest first, whichever kind of server gave it.

    ComfyUI gives just that; Comfy Cloud gives ``{"history": [...]}``, newest first.
    """
    entries = body.get("history") if isinstance(body, Mapping) else None
    if not isinstance(entries, list):
        return dict(body) if isinstance(body, Mapping) else {}
    found = {entry.get("prompt_id"): entry for entry in reversed(entries) if isinstance(entry, Mapping)}
    return {prompt_id: entry for prompt_id, entry in found.items() if isinstance(prompt_id, str)}
