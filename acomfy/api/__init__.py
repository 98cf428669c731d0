"""ComfyUI's HTTP routes: one short coroutine each.

Results are what the server's JSON says, as dicts and lists whose types are in `acomfy.api.shapes`.
`acomfy.transport` sends the requests and understands the refusals.

Raised by every route, unless it says otherwise: `ServerUnreachable` (no connection, or it broke), `HTTPError` and its
`AuthenticationError`, `PayloadTooLarge`, `ProtocolError` (the answer is not ComfyUI's). A route that the server does
not have is an `HTTPError` with status 404, or 405 for what is not read. Cancelling any of them is safe; a POST may have
reached the server all the same.
"""

from __future__ import annotations

from .assets import AssetRoutes
from .files import FileRoutes, Upload
from .internal import InternalRoutes
from .introspection import IntrospectionRoutes
from .jobs import JobRoutes
from .multipart import Uploadable
from .prompts import PromptReply, PromptRoutes
from .userdata import UserRoutes

__all__ = ["Api", "PromptReply", "Upload", "Uploadable"]


class Api(PromptRoutes, JobRoutes, FileRoutes, IntrospectionRoutes, UserRoutes, AssetRoutes, InternalRoutes):
    """The routes of one server.

    Args:
        transport: Sends the requests.
    """
