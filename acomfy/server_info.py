"""What a server tells about itself, as plain typed values: read off its JSON, whatever its version.

Keys come and go with versions: what is missing, or not of its type, reads as None (or 0, or empty), and all that was
sent stays in ``raw``. Only what makes no sense at all is a `ProtocolError`. (ComfyUI server.py, app/user_manager.py,
app/assets, 0.3.40 to 0.38.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ProtocolError
from .loose import count_of, items_of, member, seconds_of, text_of

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Device:
    """A device that ComfyUI computes on; memory is in bytes.

    Attributes:
        type: ``cuda``, ``cpu``, ``mps``, ``xpu``, ...
        index: Its number among those of its type; None when it has none (CPU).
        vram_total, vram_free: Its memory; on CPU that of the machine.
        torch_vram_total, torch_vram_free: What PyTorch has reserved, and what of it is free.
    """

    name: str
    type: str
    index: int | None
    vram_total: int
    vram_free: int
    torch_vram_total: int
    torch_vram_free: int
    raw: Raw = field(repr=False)


@dataclass(frozen=True, slots=True)
class SystemStats:
    """A server's versions, memory and devices (``GET /system_stats``); memory is in bytes.

    Attributes:
        comfyui_version: For example ``0.3.64``; None when the server does not tell.
        os: ``posix`` or ``nt`` on older servers, ``linux``, ``darwin``, ``win32`` on newer ones.
        devices: The one in use first; older servers tell of that one only.
    """

    comfyui_version: str | None
    os: str
    python_version: str
    pytorch_version: str
    ram_total: int
    ram_free: int
    argv: tuple[str, ...] = field(repr=False)
    devices: tuple[Device, ...]
    raw: Raw = field(repr=False)


def read_system_stats(body: Any) -> SystemStats:
    """Read the answer to ``GET /system_stats``.

    Raises:
        ProtocolError: It is not what ComfyUI answers.
    """
    system, devices = member(body, "system"), member(body, "devices")
    if not isinstance(system, Mapping) or not isinstance(devices, list):
        raise ProtocolError("the answer to GET /system_stats has no system and devices")
    return SystemStats(
        comfyui_version=text_of(system.get("comfyui_version")) or None,
        os=text_of(system.get("os")),
        python_version=text_of(system.get("python_version")),
        pytorch_version=text_of(system.get("pytorch_version")),
        ram_total=count_of(system.get("ram_total")),
        ram_free=count_of(system.get("ram_free")),
        argv=tuple(item for item in items_of(system.get("argv")) if isinstance(item, str)),
        devices=tuple(_device(item) for item in devices if isinstance(item, Mapping)),
        raw=body,
    )


def _device(device: Raw) -> Device:
    index = device.get("index")
    return Device(
        name=text_of(device.get("name")),
        type=text_of(device.get("type")),
        index=index if isinstance(index, int) and not isinstance(index, bool) else None,
        vram_total=count_of(device.get("vram_total")),
        vram_free=count_of(device.get("vram_free")),
        torch_vram_total=count_of(device.get("torch_vram_total")),
        torch_vram_free=count_of(device.get("torch_vram_free")),
        raw=device,
    )


@dataclass(frozen=True, slots=True)
class UserFile:
    """A file that a user of the server keeps there (``GET /v2/userdata``): workflows, settings, ...

    Attributes:
        path: Below the user's own directory, with slashes.
        size: In bytes; None when the server could not tell.
        modified_at: Seconds since 1970; None when the server could not tell.
    """

    path: str
    size: int | None
    modified_at: float | None
    raw: Raw = field(repr=False)


def read_user_files(body: Iterable[Any]) -> tuple[UserFile, ...]:
    """Read the files of the answer to ``GET /v2/userdata``; directories are left out."""
    return tuple(
        UserFile(
            entry["path"],
            count_of(entry["size"]) if "size" in entry else None,
            seconds_of(entry.get("modified")),
            entry,
        )
        for entry in body
        if isinstance(entry, Mapping) and entry.get("type") == "file" and isinstance(entry.get("path"), str)
    )


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Something that the server wrote: a line, a part of one, or a progress bar's newest state (after a ``\\r``).

    Attributes:
        time: When, in ISO 8601, by the server's local clock.
        text: With its line end, and the colours of newer servers (ANSI escapes).
    """

    time: str
    text: str


def read_log_entries(entries: Iterable[Any]) -> list[LogEntry]:
    """Read what ``logs`` messages and ``GET /internal/logs/raw`` hold."""
    return [
        LogEntry(text_of(entry.get("t")), entry["m"])
        for entry in entries
        if isinstance(entry, Mapping) and isinstance(entry.get("m"), str)
    ]


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that the server's asset system knows (since 0.9.0, off unless ``--enable-assets``).

    Attributes:
        id: Of this reference to the content; two may have the same content.
        name: What it is called.
        hash: ``blake3:<hex>`` of its content; None when the server has not computed it.
        loader_path: What a loader node's input takes; None when no loader can read it, or the server does not tell.
        size: In bytes; None when the server does not tell.
        job_id: The prompt that made it; None for others.
    """

    id: str
    name: str
    hash: str | None
    loader_path: str | None
    size: int | None
    mime_type: str | None
    tags: tuple[str, ...]
    job_id: str | None
    raw: Raw = field(repr=False)


def read_asset(body: Any) -> Asset:
    """Read an asset.

    Raises:
        ProtocolError: It has no id.
    """
    asset_id = member(body, "id")
    if not isinstance(asset_id, str):
        raise ProtocolError("the server's assets API tells of an asset without an id")
    return Asset(
        id=asset_id,
        name=text_of(body.get("display_name")) or text_of(body.get("name")),
        hash=text_of(body.get("hash")) or text_of(body.get("asset_hash")) or None,
        loader_path=text_of(body.get("loader_path")) or None,
        size=count_of(body["size"]) if body.get("size") is not None else None,
        mime_type=text_of(body.get("mime_type")) or None,
        tags=tuple(tag for tag in items_of(body.get("tags")) if isinstance(tag, str)),
        job_id=text_of(body.get("job_id")) or None,
        raw=body,
    )
