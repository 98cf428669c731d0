"""What the server is, and what it has: version, features, users, memory. Of its disk ComfyUI tells nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..capabilities import Version, read_capabilities
from ..overview import memories
from ..server_info import SystemStats
from .finding import Finding, ok, size, unknown, warning

_OLDEST: Version = (0, 3, 40)
_LITTLE = 0.05


def judge_version(stats: SystemStats, features: Mapping[str, Any] | None) -> Finding:
    """Judge the version, by what it lacks."""
    known = read_capabilities(stats.raw, features)
    values: dict[str, Any] = {
        "version": stats.comfyui_version,
        "python": stats.python_version,
        "pytorch": stats.pytorch_version,
    }
    python = "".join(stats.python_version.split()[:1])
    parts = (python and f"Python {python}", stats.pytorch_version and f"PyTorch {stats.pytorch_version}", stats.os)
    about = ", ".join(part for part in parts if part)
    if known.version is None:
        advice = "acomfy takes it for an old one: what that may lack is not used"
        return warning("version", f"the server does not tell its version ({about})", advice, **values)
    text = f"ComfyUI {stats.comfyui_version} ({about})"
    if known.version < _OLDEST:
        return warning("version", text, "acomfy is tested with 0.3.40 and newer: update ComfyUI", **values)
    if not known.takes_prompt_id:
        advice = "update ComfyUI: it chooses prompt ids itself, and its pictures name no prompt (since 0.3.45 they do)"
        return warning("version", text, advice, **values)
    if not known.targeted_interrupt:
        advice = "update ComfyUI: it cannot stop a running prompt without stopping whatever runs (0.3.57 can)"
        return warning("version", text, advice, **values)
    return ok("version", text, **values)


def judge_features(features: Mapping[str, Any] | None, version: Version | None) -> Finding:
    """Judge the answer to ``GET /features``; None: there was none."""
    if features is not None:
        names = ", ".join(sorted(str(name) for name, value in features.items() if value is True)) or "none"
        return ok("features", names, features=dict(features))
    if version is not None and version < (0, 3, 45):
        return ok("features", "none: they came with 0.3.45")
    advice = "does a proxy let some routes through only? acomfy wants all of them, also those below /api"
    return warning("features", "GET /features is not answered", advice)


def judge_users(stats: SystemStats, users: Any) -> Finding:
    """Judge whether user data needs a name; ``users`` is the answer to ``GET /users``, None when there was none."""
    listed = users.get("users") if isinstance(users, Mapping) else None
    if "--multi-user" in stats.argv or isinstance(listed, Mapping):
        text = "several (--multi-user): queue, history and files are everybody's all the same"
        advice = "user data and settings want the header comfy-user: headers={'comfy-user': ID} of Client"
        return ok("users", text, advice, multi_user=True)
    if users is None:
        return unknown("users", "GET /users is not answered", multi_user=None)
    return ok("users", "one", multi_user=False)


def judge_memory(stats: SystemStats) -> list[Finding]:
    """Judge the memory of each device and of the machine."""
    found = []
    for memory in memories(stats):
        free = memory.total - memory.used
        text = f"{memory.name}: {size(free)} of {size(memory.total)} free"
        values: dict[str, Any] = {"name": memory.name, "free": free, "total": memory.total}
        if free < memory.total * _LITTLE:
            advice = "have models unloaded, by client.free() or POST /free; or other programs need it"
            found.append(warning("memory", text, advice, **values))
        else:
            found.append(ok("memory", text, **values))
    return found or [unknown("memory", "the server does not tell")]
