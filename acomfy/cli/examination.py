"""Measure everything between us and a server that can be measured without running a prompt."""

from __future__ import annotations

import asyncio
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import aiohttp
from yarl import URL

from .. import diagnosis
from ..access import Access
from ..answers import shown
from ..api import Api
from ..capabilities import read_capabilities
from ..connection import FLAGS, AnySocket
from ..diagnosis import Answer, Download, Finding, Level, SocketTrial
from ..errors import AcomfyError, HTTPError, ProtocolError, ServerError, ServerUnreachable
from ..events import FeatureFlags, Logs, Status
from ..frames import decode_binary, decode_text
from ..listings import HistoryEntry, read_history
from ..look import QueueSnapshot, read_queue
from ..loose import seconds_of
from ..outputs import FileReference, produced_by
from ..retry import read_date
from ..server_info import SystemStats, read_system_stats
from ..sessions import Sessions
from ..transport import Transport

_CONNECT_TIMEOUT, _READ_TIMEOUT, _REQUEST_TIMEOUT = 5.0, 10.0, 20.0
_ELSEWHERE_TIMEOUT = 2.0
_ANY_STATUS = tuple(range(300, 600))
_TEXT_KEPT = 4096
_QUESTIONS = 7
_GREETING_TIME, _FLAGS_TIME, _PUSH_TIME = 5.0, 3.0, 3.0
_OLD_HANDLER_TIME = 0.5
_EMPTY_PROMPT = b'{"number": 0}'  # without a prompt: refused with 400; with a number, so that none is used up
_TRIED_UPLOAD = 3 << 19  # over the 1 MiB that is nginx's default
_HISTORY = 10
_MOST_DOWNLOADED, _LONGEST_DOWNLOAD = 1 << 26, 10.0
_LOOKS_APART = 1.5


class Examination:
    """Examine one server.

    It sends nothing that runs or changes anything. To see whether messages are delivered it subscribes to the log and
    posts a prompt without a prompt, which ComfyUI refuses, and writes to its log.

    Args:
        url: The server's address, with credentials if it wants any.

    Attributes:
        url: The same, without.
        unreachable: Nothing answers there.
    """

    def __init__(self, url: str) -> None:
        self._access = Access(url)
        self.url = str(shown(self._access.base))
        self.unreachable = False
        self._sessions = Sessions(self._access, None)
        self._transport = _transport(self._access, self._sessions)
        self._api = Api(self._transport)
        self._answers: list[Answer] = []
        self._version: tuple[int, int, int] | None = None

    async def findings(self) -> AsyncIterator[Finding]:
        """Yield what is found, as it is found."""
        try:
            first = await self._ask("GET", "/system_stats")
        except ServerError as exc:
            self.unreachable = isinstance(exc, ServerUnreachable)
            yield diagnosis.judge_failure(exc)
            async for finding in self._elsewhere(certificate="certificate" in str(exc)):
                yield finding
            return
        judged = diagnosis.judge_answer(first)
        yield judged
        if judged.level is Level.OK:
            async for finding in self._all(read_system_stats(first.json)):
                yield finding
        elif judged.check == "address":
            async for finding in self._elsewhere():
                yield finding

    async def aclose(self) -> None:
        """Let go of the server."""
        await self._sessions.close()

    async def _all(self, stats: SystemStats) -> AsyncIterator[Finding]:
        """Yield all that can be found of a ComfyUI that lets us in."""
        features = await self._optional("/features")
        features = features if isinstance(features, Mapping) else None
        self._version = read_capabilities(stats.raw, features).version
        yield diagnosis.judge_version(stats, features)
        yield diagnosis.judge_features(features, self._version)
        yield diagnosis.judge_users(stats, await self._optional("/users"))
        for finding in diagnosis.judge_memory(stats):
            yield finding
        queue, seen = await self._queue(), time.monotonic()
        for part in (self._latency, self._uploads(features), self._sockets, self._files):
            async for finding in part() if callable(part) else part:
                yield finding
        if queue is not None:
            async for finding in self._worker(queue, seen):
                yield finding

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Send a request; give its answer, whatever it is.

        Raises:
            ServerError: There was none, or it was far too large.
        """
        begin = time.monotonic()
        headers = None if body is None else {"Content-Type": "application/json"}
        data = None if body is None else partial(io.BytesIO, body)  # of so many bytes as such, aiohttp warns
        response = await self._transport.request(method, path, data=data, headers=headers, allowed=_ANY_STATUS)
        received_at = time.time()
        answer = self._read(response, received_at, await self._transport.read_body(response), begin)
        self._answers.append(answer)
        return answer

    def _read(self, response: aiohttp.ClientResponse, received_at: float, body: bytes, begin: float) -> Answer:
        headers, scrub = response.headers, self._access.scrub
        parsed = None
        with suppress(ValueError, RecursionError):
            parsed = json.loads(body)
        return Answer(
            url=str(shown(response.url)),
            status=response.status,
            content_type=response.content_type if "Content-Type" in headers else "",
            server=scrub(headers.get("Server", "")),
            location=_location(headers.get("Location", ""), response.url),
            challenge=scrub(headers.get("WWW-Authenticate", "")),
            text=body[:_TEXT_KEPT].decode("utf-8", "replace"),
            json=parsed,
            took=time.monotonic() - begin,
            date=read_date(headers.get("Date")),
            received_at=received_at,
            encoding=headers.get("Content-Encoding", ""),
            via=scrub(headers.get("Via", "")),
        )

    async def _optional(self, path: str) -> Any:
        """Give the JSON that a route answers with; None when it does not."""
        try:
            answer = await self._ask("GET", path)
        except ServerError:
            return None
        return answer.json if answer.status == 200 else None

    async def _elsewhere(self, *, certificate: bool = False) -> AsyncIterator[Finding]:
        """Look for a ComfyUI at other addresses of the host, without credentials.

        Args:
            certificate: At this address too, whose certificate could not be checked.
        """
        for address in [self.url][:certificate] + diagnosis.other_addresses(self.url):
            access = Access(address, ssl=False)
            sessions = Sessions(access, None)
            try:
                async with asyncio.timeout(2 * _ELSEWHERE_TIMEOUT):
                    transport = _transport(access, sessions, _ELSEWHERE_TIMEOUT, _ELSEWHERE_TIMEOUT)
                    stats = read_system_stats(await Api(transport).get_system_stats())
            except (AcomfyError, TimeoutError):
                continue
            finally:
                await sessions.close()
            version = stats.comfyui_version
            own = address == self.url
            yield diagnosis.judge_unchecked(version) if own else diagnosis.judge_elsewhere(address, version)
            return

    async def _latency(self) -> AsyncIterator[Finding]:
        times = []
        for _ in range(_QUESTIONS):
            with suppress(ServerError):
                times.append((await self._ask("GET", "/prompt")).took)
        if times:
            yield diagnosis.judge_latency(times)
        else:
            yield Finding(
                "latency",
                Level.PROBLEM,
                "GET /prompt is not answered, though GET /system_stats was",
                "does the server, or a proxy, drop requests?",
            )
        yield diagnosis.judge_clock(self._answers)
        yield diagnosis.judge_proxy(self._answers)

    async def _uploads(self, features: Mapping[str, Any] | None) -> AsyncIterator[Finding]:
        """Post a prompt without a prompt, and many blanks."""
        passed = refused = None
        limit = read_capabilities(None, features).max_upload_size
        length = min(_TRIED_UPLOAD, limit - 1024) if limit is not None else _TRIED_UPLOAD
        if self._may_provoke and length > len(_EMPTY_PROMPT):
            with suppress(ServerError):
                status = (await self._ask("POST", "/prompt", _EMPTY_PROMPT.ljust(length))).status
                passed, refused = length if status == 400 else None, length if status == 413 else None
        yield diagnosis.judge_uploads(features, passed, refused)

    @property
    def _may_provoke(self) -> bool:
        return self._transport.profile.name == "comfyui"

    # --- The WebSocket ---------------------------------------------------------------------------------------------

    async def _sockets(self) -> AsyncIterator[Finding]:
        client_id = str(uuid.uuid4())
        trial = await self._try_socket(client_id)
        for finding in diagnosis.judge_socket(trial, self._version):
            yield finding
        if trial.pushed and trial.provoked:
            yield diagnosis.judge_again(await self._try_socket(client_id, _OLD_HANDLER_TIME))

    async def _try_socket(self, client_id: str, pause: float = 0.0) -> SocketTrial:
        """Open a WebSocket, greet, and cause a message.

        Args:
            pause: Seconds before that: the handler of an earlier socket may end meanwhile, and take ours with it.
        """
        begin = time.monotonic()
        try:
            socket = await self._transport.open_socket(
                self._sessions.socket(), client_id, heartbeat=None, max_message_size=1 << 30
            )
        except HTTPError as exc:
            return SocketTrial(refusal=exc.status, failure=str(exc))
        except ServerError as exc:
            return SocketTrial(failure=str(exc))
        listener = _Listener(socket, time.monotonic() - begin)
        reading = asyncio.create_task(listener.read())
        try:
            await listener.wait(lambda trial: trial.first_status is not None, _GREETING_TIME)
            if listener.trial.first_status is not None:
                await listener.wait(lambda trial: trial.flags is not None, self._flags_time)
                await asyncio.sleep(pause)
                await self._provoke(client_id, listener)
            return listener.trial
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLAGS_TIME):
                    await socket.close()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    @property
    def _flags_time(self) -> float:
        """How long the answer to our flags is awaited; servers before 0.3.45 give none."""
        return _FLAGS_TIME if self._version is None or self._version >= (0, 3, 45) else 0.0

    async def _provoke(self, client_id: str, listener: _Listener) -> None:
        """Cause a message that goes through the server's own queue: a line of its log."""
        if not self._may_provoke:
            return
        try:
            await self._api.patch_logs_subscribe(client_id, True)
            asked, listener.trial = time.monotonic(), replace(listener.trial, pushed="")
            listener.since = asked
            answer = await self._ask("POST", "/prompt", _EMPTY_PROMPT)
        except AcomfyError as exc:
            listener.trial = replace(listener.trial, provoke_failure=str(exc))
            return
        if answer.status != 400:
            why = f"POST /prompt was answered with {answer.status}"
            listener.trial = replace(listener.trial, provoke_failure=why)
            return
        listener.trial = replace(listener.trial, provoked=True)
        await listener.wait(lambda trial: bool(trial.pushed), _PUSH_TIME)
        with suppress(AcomfyError):
            await self._api.patch_logs_subscribe(client_id, False)

    # --- Files and the queue ---------------------------------------------------------------------------------------

    async def _files(self) -> AsyncIterator[Finding]:
        try:
            entries = read_history(await self._api.get_histories(max_items=_HISTORY))
        except AcomfyError as exc:
            yield Finding(
                "files",
                Level.PROBLEM,
                f"the history cannot be read: {exc}",
                "results are then known by the WebSocket alone",
            )
            return
        files = _saved_files(entries)
        why = "the history has no file to try it with"
        for file in files[:3]:
            try:
                yield diagnosis.judge_download(await self._download(file))
                return
            except HTTPError as exc:
                why = str(exc)
            except AcomfyError as exc:
                yield Finding("files", Level.PROBLEM, str(exc), "a proxy that cuts long answers: raise its timeouts")
                return
        yield Finding("files", Level.UNKNOWN, f"the speed of downloads: {why}")

    async def _download(self, file: FileReference) -> Download:
        begin, head, count = time.monotonic(), 0.0, 0
        async with self._api.view(file.filename, subfolder=file.subfolder, type=file.type) as response:
            encoding = response.headers.get("Content-Encoding", "")
            async for chunk in response.content.iter_any():
                head = head or time.monotonic() - begin
                count += len(chunk)
                if count > _MOST_DOWNLOADED or time.monotonic() - begin > _LONGEST_DOWNLOAD:
                    response.close()
                    break
        took, ranges = time.monotonic() - begin, None
        if count > 1:
            with suppress(AcomfyError):
                async with self._api.view(
                    file.filename, subfolder=file.subfolder, type=file.type, headers={"Range": "bytes=0-0"}
                ) as response:
                    ranges = response.status == 206
        return Download(file.filename, count, head, took, ranges, encoding)

    async def _queue(self) -> QueueSnapshot | None:
        try:
            return read_queue(await self._api.get_queue())
        except (HTTPError, ProtocolError, ServerUnreachable):
            return None

    async def _worker(self, before: QueueSnapshot, seen: float) -> AsyncIterator[Finding]:
        if before.pending and not before.running:
            await asyncio.sleep(max(0.0, seen + _LOOKS_APART - time.monotonic()))
        after = await self._queue()
        if after is not None:
            yield diagnosis.judge_queue(before, after, time.monotonic() - seen, await self._running_for(after))

    async def _running_for(self, queue: QueueSnapshot) -> float | None:
        """Give the seconds that the running prompt has run at most: since it was sent, or the last one ended."""
        created = [seconds_of(item.extra_data.get("create_time")) for item in queue.running]
        offset = diagnosis.clock_offset(self._answers)
        if offset is None or not created or created[0] is None:
            return None
        ended: list[float] = []
        with suppress(AcomfyError):
            entries = read_history(await self._api.get_histories(max_items=1))
            ended = [entry.ended_at for entry in entries if entry.ended_at is not None]
        return time.time() + offset - max([created[0], *ended])


@dataclass
class _Listener:
    """Note what comes over a WebSocket."""

    socket: AnySocket
    opened: float
    since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.trial = SocketTrial(opened=self.opened)
        self._changed = asyncio.Event()

    async def wait(self, done: Any, within: float) -> None:
        """Wait until the trial is as wanted, but no longer than so many seconds, nor than the socket is open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not done(self.trial) and not self.trial.failure:
                    self._changed.clear()
                    await self._changed.wait()

    async def read(self) -> None:
        """Read the socket to its end."""
        try:
            await self.socket.send_str(FLAGS)
            while True:
                message = await self.socket.receive()
                if message.type is aiohttp.WSMsgType.TEXT or message.type is aiohttp.WSMsgType.BINARY:
                    self._note(message.data, binary=message.type is aiohttp.WSMsgType.BINARY)
                else:
                    self._note_end(f"the WebSocket was closed (code {self.socket.close_code})")
                    return
        except (aiohttp.ClientError, OSError) as exc:
            self._note_end(str(exc) or type(exc).__name__)

    def _note_end(self, why: str) -> None:
        self.trial = replace(self.trial, failure=why)
        self._changed.set()

    def _note(self, frame: bytes, *, binary: bool) -> None:
        trial, took = self.trial, time.monotonic() - self.since
        try:
            event = decode_binary(frame) if binary else decode_text(frame)
        except ProtocolError:
            event = None
        trial = replace(trial, largest=max(trial.largest, len(frame)))
        match event:
            case FeatureFlags(flags=flags):
                trial = replace(trial, flags=flags, round_trip=took)
            case Status() if trial.first_status is None:
                trial = replace(trial, first_status=took)
            case None:
                pass
            case _ if not trial.pushed:
                kind = "logs" if isinstance(event, Logs) else type(event).__name__
                trial = replace(trial, pushed=kind, push_time=took)
        self.trial = trial
        self._changed.set()


def _transport(
    access: Access, sessions: Sessions, connect: float = _CONNECT_TIMEOUT, read: float = _READ_TIMEOUT
) -> Transport:
    return Transport(
        access,
        sessions.http,
        bare_session=sessions.bare,
        connect_timeout=connect,
        read_timeout=read,
        request_timeout=_REQUEST_TIMEOUT,
    )


def _location(location: str, url: URL) -> str:
    """Give the address of a redirect without what may be secret in it."""
    if not location:
        return ""
    try:
        return str(shown(url.join(URL(location))))
    except ValueError:
        return "an address that is none"


def _saved_files(entries: tuple[HistoryEntry, ...]) -> list[FileReference]:
    """Give the files of a history, the newest first, those that were saved before those that were shown."""
    found = [
        thing
        for entry in reversed(entries)
        for node_id, ui in entry.outputs.items()
        for thing in produced_by(node_id, ui)
        if isinstance(thing, FileReference)
    ]
    return sorted(found, key=lambda file: file.type != "output")
