"""What a server can do, by its version.

Versions and commits: ComfyUI changelog and the pull requests named beside each rule. A server that does not tell its
version counts as old: what it may lack is not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Version: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server can do.

    Attributes:
        version: Its version; None when it did not tell.
        takes_prompt_id: It keeps the prompt_id that we choose (0.3.45).
        targeted_interrupt: ``POST /interrupt`` with a prompt_id stops that prompt alone (0.3.57, PR 9607); before, it
            stops whatever runs.
        history_offset: ``GET /history`` takes an offset (0.3.60); before, it does not look at it.
        cancels_jobs: ``POST /api/jobs/{id}/cancel`` exists (0.26.0, PR 14493).
        max_upload_size: Bytes that it takes in one request; None when it did not tell.
    """

    version: Version | None = None
    takes_prompt_id: bool = False
    targeted_interrupt: bool = False
    history_offset: bool = False
    cancels_jobs: bool = False
    max_upload_size: int | None = None


UNKNOWN = Capabilities()


def read_capabilities(system_stats: Any, features: Any) -> Capabilities:
    """Read a server's capabilities off its answers to ``GET /system_stats`` and ``GET /features``.

    Either may be None (the request failed, or the route is not there).
    """
    version = _version(system_stats)
    known = version or (0, 0, 0)
    # A server that has /features (0.3.45) has all that came with it, also when it hides its version.
    since_features = isinstance(features, Mapping) and "supports_preview_metadata" in features
    return Capabilities(
        version=version,
        takes_prompt_id=known >= (0, 3, 45) or since_features,
        targeted_interrupt=known >= (0, 3, 57),
        history_offset=known >= (0, 3, 60),
        cancels_jobs=known >= (0, 26, 0),
        max_upload_size=_size(features),
    )


def _version(system_stats: Any) -> Version | None:
    system = system_stats.get("system") if isinstance(system_stats, Mapping) else None
    text = system.get("comfyui_version") if isinstance(system, Mapping) else None
    match = re.match(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", text) if isinstance(text, str) else None
    if match is None:
        return None
    major, minor, patch = match.groups(default="0")
    return int(major), int(minor), int(patch)


def _size(features: Any) -> int | None:
    # The option is in MB and may be a fraction, so the number of bytes may be a float.
    size = features.get("max_upload_size") if isinstance(features, Mapping) else None
    if isinstance(size, bool) or not isinstance(size, int | float):
        return None
    return int(size) if 0 < size < math.inf else None
