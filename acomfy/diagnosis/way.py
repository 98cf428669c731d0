"""The way to the server: is it a ComfyUI that answers, who stands before it, how long it takes, what time it is there.

ComfyUI itself answers 403 to an ``Origin`` or ``Sec-Fetch-Site`` of another site, which acomfy sends neither of, and
never 401 or a redirect: those come from what stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ..errors import ServerError
from .finding import Finding, duration, milliseconds, ok, problem, rounded, unknown, warning

_PORTS = (8188, 8000)  # of ComfyUI, and of its desktop application
_PREFIXES = ("/comfyui", "/comfy")
_CLOCK_OFF = 5.0
_SLOW = 0.5

_LOGIN = (
    "that looks like a login: give what the server, or the proxy before it, wants with each request; acomfy follows no "
    "redirects, which would take credentials elsewhere"
)
_CREDENTIALS = (
    "put user and password into the address (https://user:password@host), or a token that goes in the query "
    "(https://host?token=...); in Python: auth, token, headers, cookies of Client"
)
_FORBIDDEN = "the proxy wants credentials, other ones, or another address of ours"
_ORIGIN = (
    "a proxy adds an Origin or Sec-Fetch-Site of another site, which acomfy does not send: have it take them away "
    '(nginx: proxy_set_header Origin "";), or start ComfyUI with --enable-cors-header'
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, as it came.

    Attributes:
        url: What was asked, without credentials.
        server: Who it says it is.
        location: Where it redirects to, without credentials and query.
        challenge: What credentials it wants (``WWW-Authenticate``).
        text: The first of its body.
        json: Its body, when that is JSON.
        took: Seconds until it was read.
        date: The ``Date`` that it bears, in seconds since 1970.
        received_at: When its head came, by our clock, in seconds since 1970.
        encoding: How it was compressed.
        via: What proxies say of themselves.
    """

    url: str
    status: int
    content_type: str = ""
    server: str = ""
    location: str = ""
    challenge: str = ""
    text: str = ""
    json: Any = None
    took: float = 0.0
    date: float | None = None
    received_at: float = 0.0
    encoding: str = ""
    via: str = ""


def judge_failure(exc: ServerError) -> Finding:
    """Judge a first request that was not answered."""
    said, _, hint = str(exc).rpartition("; ")
    if "it was silent" in said or "it took too long" in said:
        hint = (
            "something listens there and does not answer: it is busy (loading a model?), stopped, or no ComfyUI; try "
            "again, then restart it"
        )
    return problem("server", said or hint, hint)


def judge_answer(answer: Answer) -> Finding:
    """Judge the first answer, to ``GET /system_stats``: is this a ComfyUI, and does it let us in?

    The check of the finding is ``server``, ``access``, or ``address``, when another one should be given.
    """
    if _is_comfyui(answer):
        return ok("server", f"a ComfyUI answers at {_base(answer.url)}", status=answer.status)
    if 300 <= answer.status < 400:
        return _redirected(answer)
    return _refused(answer) or _strange(answer)


def _is_comfyui(answer: Answer) -> bool:
    stats = answer.json if isinstance(answer.json, Mapping) else {}
    right = isinstance(stats.get("system"), Mapping) and isinstance(stats.get("devices"), list)
    return answer.status == 200 and right


def _redirected(answer: Answer) -> Finding:
    there, here = urlsplit(answer.location), urlsplit(answer.url)
    text = f"it redirects ({answer.status}) to {answer.location or 'nowhere'}"
    if there.hostname == here.hostname and (there.scheme, here.scheme) == ("https", "http"):
        return problem("address", text, f"give the address with https: {_base(answer.location)}", status=answer.status)
    if there.hostname == here.hostname and there.path == f"{here.path}/":
        advice = "the proxy adds a slash to every path: see its rules for this address"
        return problem("access", text, advice, status=answer.status)
    if there.path.endswith("/system_stats"):
        return problem("address", text, f"give that address: {_base(answer.location)}", status=answer.status)
    return problem("access", text, _LOGIN, status=answer.status)


def _refused(answer: Answer) -> Finding | None:
    """Judge a refusal that says what is wrong; None: it does not."""
    status, who = answer.status, f" (by {answer.server})" if answer.server else ""
    match status:
        case 401:
            wanted = f"; it wants {answer.challenge}" if answer.challenge else ""
            text = f"credentials are missing or wrong: 401{who}{wanted}"
            return problem("access", text, _CREDENTIALS, status=status)
        case 403 if "aiohttp" in answer.server.lower() and not answer.text:
            return problem("access", "ComfyUI refuses the origin: 403", _ORIGIN, status=status)
        case 403:
            return problem("access", f"access is refused: 403{who}", _FORBIDDEN, status=status)
        case 407:
            advice = "in Python: proxy='http://user:password@host:port' of Client"
            return problem("access", "the proxy on the way wants credentials: 407", advice, status=status)
        case 502 | 503 | 504:
            advice = "ComfyUI is starting, or is down, or the proxy looks for it at another port"
            return problem("server", f"the proxy{who} gets no answer from ComfyUI: {status}", advice, status=status)
        case 400 if "https" in answer.text.lower():
            advice = f"give the address with https: {_base(_with_scheme(answer.url, 'https'))}"
            return problem("address", "it speaks https at that port: 400", advice, status=status)
    return None


def _strange(answer: Answer) -> Finding:
    kind = answer.content_type or "something without a type"
    text = f"something else answers there: {answer.status}, {kind}" + (f", by {answer.server}" if answer.server else "")
    if answer.status == 200 and answer.content_type == "text/html":
        advice = "a login page, or a web application before ComfyUI: give its credentials, or ComfyUI's own address"
        return problem("address", f"{text}: a page where ComfyUI says JSON", advice, status=200)
    if _base(answer.url).endswith("/api"):
        return problem("address", text, "leave /api out of the address", status=answer.status)
    advice = "is that the address of ComfyUI: its port, and the path under which a proxy has it?"
    return problem("address", text, advice, status=answer.status)


# --- Other addresses -------------------------------------------------------------------------------------------------


def other_addresses(url: str) -> list[str]:
    """Give addresses of the same host where a ComfyUI may be, when there is none at this one.

    The other scheme; without the path, or with a usual one; ComfyUI's usual ports.
    """
    parts = urlsplit(url)
    found = [_with_scheme(url, "http" if parts.scheme == "https" else "https")]
    found += [_with_path(parts, path) for path in ([""] if parts.path.strip("/") else _PREFIXES)]
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
    found += [f"http://{host}:{port}" for port in _PORTS]
    return [address for address in dict.fromkeys(found) if address != url.rstrip("/")]


def judge_elsewhere(address: str, version: str | None) -> Finding:
    """Tell of a ComfyUI that was found at another address of the host."""
    name = f"ComfyUI {version}" if version else "a ComfyUI"
    return ok("address", f"{name} answers at {address}", "give that address", found=address)


def judge_unchecked(version: str | None) -> Finding:
    """Tell of a ComfyUI that answers if its certificate is not checked."""
    name = f"ComfyUI {version}" if version else "a ComfyUI"
    advice = "where the certificate is the server's own: ssl=False, or an ssl.SSLContext that knows it, of Client"
    return ok("certificate", f"{name} answers if its certificate is not checked", advice)


def _base(url: str) -> str:
    return url.partition("?")[0].removesuffix("/system_stats")


def _with_scheme(url: str, scheme: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _with_path(parts: SplitResult, path: str) -> str:
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


# --- Time ------------------------------------------------------------------------------------------------------------


def judge_latency(times: Sequence[float]) -> Finding:
    """Judge how long small questions take, in seconds; there is one at least."""
    middle, longest = sorted(times)[len(times) // 2], max(times)
    text = f"{milliseconds(middle)} a request (of {len(times)}; the slowest {milliseconds(longest)})"
    values: dict[str, Any] = {"median_ms": rounded(middle), "slowest_ms": rounded(longest)}
    if middle < _SLOW:
        return ok("latency", text, **values)
    return warning(
        "latency", text, "the server is busy (loading a model?), or far: try again when it is idle", **values
    )


def clock_offset(answers: Sequence[Answer]) -> float | None:
    """Give the seconds by which the server's clock is ahead of ours, 0 if it may be none; None when nothing tells.

    A ``Date`` is in whole seconds, cut off, and was written between our question and the answer.
    """
    dated = [(answer.date - answer.received_at, answer.took) for answer in answers if answer.date is not None]
    if not dated:
        return None
    earliest = max(offset for offset, _ in dated)
    latest = min(offset + 1.0 + took for offset, took in dated)
    return min(max(0.0, earliest), latest) if earliest <= latest else earliest


def judge_clock(answers: Sequence[Answer]) -> Finding:
    """Judge the difference of the clocks."""
    offset = clock_offset(answers)
    if offset is None:
        return unknown("clock", "the answers bear no date")
    if abs(offset) < _CLOCK_OFF:
        return ok("clock", "the server's agrees with ours to a few seconds", seconds=round(offset, 1))
    text = f"the server's is {duration(abs(offset))} {'ahead of' if offset > 0 else 'behind'} ours"
    advice = "times in the history and of jobs are the server's: set both clocks by NTP"
    return warning("clock", text, advice, seconds=round(offset, 1))


def judge_proxy(answers: Sequence[Answer]) -> Finding:
    """Tell what stands before the server, by what its answers bear."""
    server = next((answer.server for answer in answers if answer.server), "")
    via = next((answer.via for answer in answers if answer.via), "")
    squeezed = next((answer.encoding for answer in answers if answer.encoding), "")
    text = f"{server} stands before ComfyUI" if server and "aiohttp" not in server.lower() else ""
    text = text or (f"there is one on the way: {via}" if via else "none shows itself")
    text += f"; JSON comes compressed ({squeezed})" if squeezed else ""
    return ok("proxy", text, server=server, via=via, encoding=squeezed)
