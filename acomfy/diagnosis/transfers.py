"""Files and the queue: how large a request may be, how files come, whether prompts move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..capabilities import read_capabilities
from ..look import QueueSnapshot
from .finding import Finding, duration, milliseconds, ok, problem, size, unknown, warning

_LITTLE_UPLOAD = 10e6
_SLOW, _SLOW_FROM = 1e6, 0.1
_HELD_PART, _HELD_FROM = 0.8, 1.0
_LONG_RUN = 1800.0


def judge_uploads(features: Mapping[str, Any] | None, passed: int | None, refused: int | None) -> Finding:
    """Judge how large a request may be.

    Args:
        passed: Bytes of a body that came through to ComfyUI; None when none was tried.
        refused: Bytes of a body that was answered with 413; None when none was.
    """
    limit = read_capabilities(None, features).max_upload_size
    values: dict[str, Any] = {"max_upload_size": limit, "passed": passed, "refused": refused}
    if refused is not None:
        advice = "a proxy takes less (nginx: client_max_body_size 0;), or ComfyUI wants a larger --max-upload-size"
        return problem("uploads", f"a request of {size(refused)} is refused (413)", advice, **values)
    text = "ComfyUI does not tell its limit" if limit is None else f"ComfyUI takes {size(limit)} in one request"
    text += "" if passed is None else f"; one of {size(passed)} came through"
    if limit is not None and limit < _LITTLE_UPLOAD:
        return warning("uploads", text, "start ComfyUI with a larger --max-upload-size (in MB)", **values)
    return unknown("uploads", f"{text}; none was tried", **values) if passed is None else ok("uploads", text, **values)


@dataclass(frozen=True, slots=True)
class Download:
    """A file that was read from ``/view``.

    Attributes:
        size: Bytes of it that were read.
        head: Seconds until the first of them.
        took: Seconds until the last.
        ranges: A part of it can be asked for; None when that was not tried.
        encoding: How it was compressed on the way.
    """

    filename: str
    size: int
    head: float
    took: float
    ranges: bool | None
    encoding: str = ""


def judge_download(download: Download) -> Finding:
    """Judge how files come."""
    rate = download.size / max(download.took, 1e-6)
    text = f"{size(download.size)} in {milliseconds(download.took)}: {rate / 1e6:.1f} MB/s"
    advice = []
    if download.encoding:
        text += f", compressed ({download.encoding})"
        advice.append("pictures are compressed already, so have the proxy leave them as they are: it costs time")
    if download.ranges is False:
        text += ", not in parts"
        advice.append("a download that breaks begins anew: have the proxy pass Range on")
    if download.took > _HELD_FROM and download.head > _HELD_PART * download.took:
        text += f", the first byte after {milliseconds(download.head)}"
        advice.append("a proxy seems to read the whole file first (nginx: proxy_buffering off)")
    elif rate < _SLOW and download.took > _SLOW_FROM:
        advice.append("that is slow: it is the way there, or the server is busy")
    values: dict[str, Any] = {
        "bytes": download.size,
        "seconds": round(download.took, 3),
        "bytes_per_second": round(rate),
    }
    return warning("files", text, "; ".join(advice), **values) if advice else ok("files", text, **values)


def judge_queue(before: QueueSnapshot, after: QueueSnapshot, apart: float, running_for: float | None) -> Finding:
    """Judge whether prompts move, by two looks at the queue.

    Args:
        apart: Seconds between the looks.
        running_for: Seconds that what runs has run at most; None when that is not known.
    """
    text = f"{len(after.running)} running, {len(after.pending)} waiting"
    values: dict[str, Any] = {"running": len(after.running), "waiting": len(after.pending)}
    waiting = {item.prompt_id for item in before.pending} & {item.prompt_id for item in after.pending}
    if waiting and not before.running and not after.running:
        advice = "ComfyUI's worker has died, its log tells of what: restart ComfyUI"
        return problem("queue", f"{text}: nothing runs, nor did {duration(apart)} ago", advice, **values)
    running = {item.prompt_id for item in before.running} & {item.prompt_id for item in after.running}
    if running and running_for is not None and running_for > _LONG_RUN:
        advice = "a long prompt, or a worker that has died, which look alike: see ComfyUI's log"
        return warning("queue", f"{text}; what runs may run for {duration(running_for)}", advice, **values)
    return ok("queue", text, **values)
