"""Tell a load server what to do and ask what it saw, from whichever process."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def begin(url: str, **arguments: Any) -> None:
    """Start a round; see `LoadServer.begin`."""
    tell(url, "begin", **arguments)


def tell(url: str, name: str, **arguments: Any) -> None:
    """Send an order; see `LoadServer.told`."""
    request = urllib.request.Request(f"{url}/benchmark/{name}", data=json.dumps(arguments).encode())
    urllib.request.urlopen(request).close()


def seen(url: str) -> dict[str, Any]:
    """Ask what the server saw since the round began; see `LoadServer.seen`."""
    with urllib.request.urlopen(f"{url}/benchmark") as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer
