"""What the server can do, asked anew after every connect: another version may have been started."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from .api import Api
from .capabilities import UNKNOWN, Capabilities, read_capabilities
from .errors import ClientClosed, ServerError
from .profiles import Profile

logger = logging.getLogger(__name__)


class Probe:
    """Ask a server what it can do, and remember that. Its silence is no error: then nothing is presumed."""

    def __init__(self, api: Api, profile: Profile) -> None:
        self._api = api
        self._profile = profile
        self._capabilities: Capabilities | None = profile.capabilities

    @property
    def known(self) -> Capabilities:
        """What is known by now."""
        return self._capabilities or UNKNOWN

    async def ask(self) -> None:
        """Ask now."""
        stats, features = (
            await self._or_none(self._api.get_system_stats()),
            await self._or_none(self._api.get_features()),
        )
        self._capabilities = self._profile.corrected(read_capabilities(stats, features))

    async def largest_upload(self) -> int | None:
        """Give the bytes of the largest upload that it takes; None: it does not say."""
        if self._capabilities is None:
            await self.ask()
        return self.known.max_upload_size

    async def with_version(self) -> Capabilities:
        """Give what it can do; asked again if it never told its version."""
        if self._capabilities is None or self._capabilities.version is None:
            await self.ask()
        return self.known

    async def _or_none(self, request: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await request
        except (ServerError, ClientClosed) as exc:
            logger.debug("the server does not tell what it can do: %s", exc)
            return None
