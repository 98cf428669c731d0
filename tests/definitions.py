"""What real servers answered to ``GET /object_info``, less the texts for people.

``0.3.64``: with ComfyUI's own test pack and a pack of odd inputs (``Edge...``). ``0.33.0``: the stock nodes, with the
dynamic inputs of V3.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

VERSIONS = ("0.3.64", "0.33.0")

_FOLDER = Path(__file__).parent / "object_info"


@cache
def object_info(version: str = "0.3.64") -> dict[str, Any]:
    """Give a server's answer; not to be changed, since others are given the same."""
    found: dict[str, Any] = json.loads(gzip.decompress((_FOLDER / f"{version}.json.gz").read_bytes()))
    return found
