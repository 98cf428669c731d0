"""The connection to NATS, kept for as long as it is wanted, with the streams and buckets that a fleet needs.

It is opened in the background and made anew for ever; what needs it waits for it, within its own patience. nats-py
reconnects by itself, but closes for good when its credentials are refused later; then a new one is made here. Either
way the broker may be another than before, with nothing on its disk: so the streams are looked for each time, and
subscribed is what was not yet.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.api import StreamConfig

from ..concurrency import Tasks, together
from ..errors import BrokerError, ClientClosed, QueueFull, ServerError, ServerUnreachable
from .addresses import check_connect_options, check_credentials, connect_options, read_addresses
from .names import Lane, Names
from .natspy import Connection, drop
from .streams import Keeping, consumer_config, stream_configs

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_TIMEOUT = 2.5

_RECONNECT_WAIT = 0.5
_PING_INTERVAL = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_CLOSING = 2.0
_HEADROOM = 4096

# JetStream's error codes (nats-server server/errors.json).
_STREAM_EXISTS = 10058
_STREAM_NOT_FOUND = 10059
_CONSUMER_EXISTS = (10105, 10148)
_MAXIMUM_MESSAGES = 10077
_NO_LEADER = (10005, 10008, 10009)

_NO_FILE = (FileNotFoundError, IsADirectoryError, PermissionError)

PASSING = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    js_errors.ServiceUnavailableError,
    js_errors.NoStreamResponseError,
    OSError,
)
"""What passes: the broker, or the leader of a stream, is away for now."""

_NO_JETSTREAM = (nats.errors.NoRespondersError, js_errors.ServiceUnavailableError)


class Listening:
    """A subscription that outlives its connection.

    Args:
        callback: Called with each message; what it raises is logged by nats-py's error callback.
        queue: The queue group, of whose members one gets each message; "" for none.
    """

    def __init__(self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str) -> None:
        self.subject = subject
        self.connection: Connection | None = None
        self._callback = callback
        self._queue = queue
        self._subscription: Subscription | None = None

    async def begin(self, nc: Connection) -> None:
        self.connection = nc
        self._subscription = await nc.subscribe(self.subject, queue=self._queue, cb=self._callback)

    async def end(self) -> None:
        subscription, self._subscription = self._subscription, None
        await drop(subscription)


class Broker:
    """A connection to NATS.

    Args:
        servers: Its addresses; user and password or a token may be in them.
        options: Arguments of ``nats.connect``: ``tls``, ``user_credentials``, ``nkeys_seed``, ``token``...

    Attributes:
        shown: The addresses, without what is secret in them.

    Raises:
        ValueError, TypeError: One of these cannot be used.
    """

    def __init__(
        self, servers: str | Sequence[str], names: Names, keeping: Keeping, options: Mapping[str, Any]
    ) -> None:
        check_connect_options(options)
        addresses = read_addresses(servers)
        self.shown = addresses.shown
        self.names = names
        self._urls = addresses.urls
        self._options = connect_options(addresses, options)
        self._keeping = keeping
        self._tasks = Tasks()
        self._nc: Connection | None = None
        self._js: JetStreamContext | None = None
        self._ready = asyncio.Event()
        self._refusal: ServerError | None = None
        self._last_error: BaseException | None = None
        self._denied: tuple[float, Exception] = (float("-inf"), Exception())
        self._changed = asyncio.Event()
        self._anew = True
        self._asking: set[asyncio.Timeout] = set()
        self._preparing: asyncio.Timeout | None = None
        self._listening: dict[Listening, None] = {}
        self._lanes: set[Lane] = set()
        self._lanes_turn = asyncio.Lock()
        self._closed = False
        self._on_open: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Broker {self.shown}>"

    # --- The connection ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to connect."""
        self._tasks.spawn(self._keep(), "acomfy-broker")

    async def aclose(self) -> None:
        """Close the connection. What waits for it gets `ClientClosed`."""
        self._closed = True
        self._ready.set()
        await self._tasks.end()

    @contextmanager
    def when_open(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have a function called whenever a connection was opened or came back, or a stream was made anew."""
        self._on_open.append(callback)
        try:
            yield
        finally:
            self._on_open.remove(callback)

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._nc is not None and self._nc.is_connected and self._ready.is_set() and self._refusal is None

    @property
    def trouble(self) -> ServerError:
        """Why it cannot be used at the moment, and what to do about it."""
        return self._refusal or self._error(self._last_error or ConnectionResetError("the connection broke"))

    async def _keep(self) -> None:
        while True:
            nc = Connection()
            try:
                await self._connect(nc)
                self._nc, self._js = nc, nc.jetstream(timeout=ANSWER_TIMEOUT)
                self._anew = True
                while not nc.is_closed:
                    self._changed.clear()
                    await self._prepare(nc)
                    await self._listen_on(nc)
                    self._opened()
                    await self._changed.wait()
            except Exception as exc:  # nats-py raises anything for options that it cannot use
                self._note(exc, final=not isinstance(exc, PASSING) or isinstance(exc, _NO_FILE))
            finally:
                await _close(nc)
            if self._refusal is None:
                self._ready.clear()
            await asyncio.sleep(_LONGEST_PAUSE)

    async def _connect(self, nc: Connection) -> None:
        """Connect; as nats-py is told to try for ever, what it raises is about the options that it was given."""

        async def on_error(exc: Exception) -> None:
            if "permissions violation" in str(exc).lower():
                self._deny(exc)
            else:
                self._note(exc, final=_is_refusal(exc) and not nc.is_connected)

        async def on_loss() -> None:
            self._answers_are_lost()

        async def on_change() -> None:
            self._anew = True
            self._changed.set()

        options: dict[str, Any] = {
            "name": "acomfy",
            "connect_timeout": 5,
            "reconnect_time_wait": _RECONNECT_WAIT,
            "ping_interval": _PING_INTERVAL,
            "max_reconnect_attempts": -1,
            **self._options,
        }
        if "user_credentials" in options:
            await asyncio.to_thread(check_credentials, options["user_credentials"])
        await nc.connect(
            servers=list(self._urls),
            error_cb=on_error,
            disconnected_cb=on_loss,
            reconnected_cb=on_change,
            closed_cb=on_change,
            **options,
        )

    def _note(self, exc: BaseException, *, final: bool) -> None:
        """Note what went wrong; what would go wrong again is told to all who wait."""
        self._last_error = exc
        logger.debug("the broker %s: %r", self.shown, exc)
        if final:
            refusal = self._error(exc)
            if str(refusal) != str(self._refusal):
                logger.info("%s", refusal)
            self._refusal = refusal
            self._ready.set()

    def _deny(self, exc: Exception) -> None:
        logger.warning("the broker %s refuses something: %s", self.shown, exc)
        now = asyncio.get_running_loop().time()
        self._denied = now, exc
        if self._preparing is not None and "$js.api" in str(exc).lower():
            self._preparing.reschedule(now)

    def _answers_are_lost(self) -> None:
        """Let nobody wait for an answer that would have come over a connection which is gone."""
        now = asyncio.get_running_loop().time()
        for scope in self._asking:
            scope.reschedule(now)

    def _opened(self) -> None:
        self._refusal = self._last_error = None
        self._ready.set()
        anew, self._anew = self._anew, False
        if anew:
            for callback in list(self._on_open):
                callback()

    async def ready(self, timeout: float | None) -> JetStreamContext:
        """Wait until it can be used, for so many seconds; None: for ever.

        Raises:
            ServerUnreachable: It cannot, or it refuses the credentials.
            BrokerError: It refuses what a fleet needs.
            ClientClosed: It was closed.
        """
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._ready.wait()
            except TimeoutError:
                raise self._error(self._last_error or TimeoutError("no connection in time")) from None
        if self._closed:
            raise ClientClosed("the connection to the broker is closed")
        if self._refusal is not None:
            raise copy.copy(self._refusal)
        return self.js

    @property
    def js(self) -> JetStreamContext:
        """Its JetStream, once it was ready."""
        if self._js is None:
            raise AssertionError("the broker was not waited for")
        return self._js

    @property
    def nc(self) -> Connection:
        """The connection, once it was ready."""
        if self._nc is None:
            raise AssertionError("the broker was not waited for")
        return self._nc

    @property
    def largest_message(self) -> int:
        """Bytes that a message may have, beside its headers."""
        return self.nc.max_payload - _HEADROOM

    def _error(self, exc: BaseException, *, maybe_sent: bool = False) -> ServerError:
        """Say what went wrong, and what to do about it."""
        if isinstance(exc, ServerError):
            return exc
        reason = "JetStream does not answer" if isinstance(exc, _NO_JETSTREAM) else str(exc) or type(exc).__name__
        if isinstance(exc, js_errors.APIError) and not isinstance(exc, PASSING):
            return BrokerError(self.shown, exc.description or reason, code=exc.err_code)
        return ServerUnreachable(self.shown, reason, maybe_sent=maybe_sent, hint=_hint(exc))

    # --- What is asked of it -----------------------------------------------------------------------------------------

    async def persist(self, action: Callable[[JetStreamContext], Awaitable[T]], *, patience: float | None = 30.0) -> T:
        """Do something with the broker, again while it is away: for so many seconds; None: for ever.

        Raises:
            ServerUnreachable: It did not come back in time. If ``maybe_sent``, a try may have arrived.
            QueueFull: The queue has as many orders as it may.
            BrokerError: It said no.
            ClientClosed: It was closed.
        """
        clock = asyncio.get_running_loop().time
        deadline = None if patience is None else clock() + patience
        pause = _FIRST_PAUSE
        sent = False
        while True:
            try:
                js = await self.ready(None if deadline is None else max(deadline - clock(), 0.01))
            except ServerUnreachable as exc:
                exc.maybe_sent = sent
                raise
            asked = clock()
            try:
                if not self.nc.is_connected:  # nats-py would keep it until it is connected again, or not at all
                    raise ConnectionResetError("the connection broke and is not back yet")
                sent = True
                return await self.answer(action(js))
            except (nats.errors.Error, OSError) as exc:
                failure = self._passing(exc, asked)
            if deadline is not None and clock() >= deadline:
                raise self._error(failure, maybe_sent=sent) from failure
            logger.debug("trying the broker again: %r", failure)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _passing(self, exc: Exception, asked: float) -> Exception:
        """Give an error that passes; raise any other."""
        code = exc.err_code if isinstance(exc, js_errors.APIError) else None
        if code == _STREAM_NOT_FOUND or isinstance(exc, js_errors.NoStreamResponseError):
            self._changed.set()  # somebody removed it: it is made again
            return exc
        if isinstance(exc, js_errors.NotFoundError):
            raise exc
        if code == _MAXIMUM_MESSAGES:
            raise QueueFull("the fleet's queue is full (max_pending); nothing was queued") from exc
        if isinstance(exc, TimeoutError) and self._denied[0] >= asked:
            raise BrokerError(self.shown, str(self._denied[1])) from exc
        if not isinstance(exc, PASSING) and code not in _NO_LEADER:
            reason = exc.description if isinstance(exc, js_errors.APIError) else None
            raise BrokerError(self.shown, reason or str(exc), code=code) from exc
        return exc

    async def request(self, subject: str, *, timeout: float) -> Msg:
        """Ask whoever listens to a plain subject.

        Raises:
            nats.errors.Error: Nobody listens (`NoRespondersError`), or no answer came in so many seconds.
        """
        return await self.answer(self.nc.request(subject, b"", timeout=timeout))

    async def answer(self, asked: Awaitable[T]) -> T:
        """Wait for an answer of the broker, but not for one that was lost with its connection (`TimeoutError`)."""
        async with asyncio.timeout(None) as scope:
            self._asking.add(scope)
            try:
                return await asked
            finally:
                self._asking.discard(scope)

    # --- What is on it -----------------------------------------------------------------------------------------------

    async def _prepare(self, nc: Connection) -> None:
        """Make the streams and buckets, where they are not there."""
        self._lanes.clear()
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as self._preparing:
                configs = stream_configs(self.names, self._keeping)
                await together(self._ensure_stream(nc, config) for config in configs)
        except TimeoutError as exc:
            if self._denied[0] < begun:
                raise
            raise BrokerError(self.shown, str(self._denied[1])) from exc
        finally:
            self._preparing = None

    async def _ensure_stream(self, nc: Connection, config: StreamConfig) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._add_stream(config)
            except (*PASSING, js_errors.APIError) as exc:  # a cluster that elects its leader
                passes = isinstance(exc, PASSING) or exc.err_code in _NO_LEADER
                if not passes or not nc.is_connected:
                    raise
                self._last_error = exc
                logger.debug("the stream %s cannot be made yet: %r", config.name, exc)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _add_stream(self, config: StreamConfig) -> None:
        """Make a stream if it is not there; who may not make streams can use those that are."""
        try:
            await self.answer(self.js.stream_info(str(config.name)))
        except js_errors.NotFoundError:
            try:
                await self.answer(self.js.add_stream(config))
                self._anew = True
            except js_errors.BadRequestError as exc:
                if exc.err_code != _STREAM_EXISTS:  # by another who came at the same time, with other options
                    raise

    async def ensure_lane(self, lane: Lane, ack_wait: float, *, patience: float | None = 30.0) -> None:
        """Make the consumer of a lane, where it is not there.

        Args:
            ack_wait: Seconds of the lease of what is taken from it; see `Worker`.
        """
        if lane in self._lanes:
            return
        config = consumer_config(self.names, lane, ack_wait)

        async def add(js: JetStreamContext) -> None:
            try:
                await js.add_consumer(self.names.jobs, config=replace(config))
            except js_errors.BadRequestError as exc:
                if exc.err_code not in _CONSUMER_EXISTS:
                    raise

        async with self._lanes_turn:
            if lane not in self._lanes:
                await self.persist(add, patience=patience)
                self._lanes.add(lane)

    def forget_lane(self, lane: Lane) -> None:
        """Note that the consumer of a lane may be gone."""
        self._lanes.discard(lane)

    # --- Plain subjects ----------------------------------------------------------------------------------------------

    async def listen(self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = "") -> Listening:
        """Listen to a plain subject, on this connection and those after it, until `unlisten`."""
        listening = Listening(subject, callback, queue)
        self._listening[listening] = None
        if self.connected:
            await self._begin(listening, self.nc)
        return listening

    async def unlisten(self, listening: Listening) -> None:
        """Listen no more."""
        if listening in self._listening:
            del self._listening[listening]
            await listening.end()

    async def _listen_on(self, nc: Connection) -> None:
        while waiting := [listening for listening in self._listening if listening.connection is not nc]:
            for listening in waiting:
                await self._begin(listening, nc)

    async def _begin(self, listening: Listening, nc: Connection) -> None:
        try:
            await listening.begin(nc)
        except nats.errors.Error as exc:
            logger.debug("%s will be listened to on the next connection: %s", listening.subject, exc)
        if listening not in self._listening:
            await listening.end()

    async def tell(self, subject: str, payload: bytes = b"") -> None:
        """Publish on a plain subject, for whoever listens; nothing happens while the broker is away."""
        if not self.connected:
            return
        try:
            await self.nc.publish(subject, payload)
        except nats.errors.Error as exc:
            logger.debug("%s was not told: %s", subject, exc)


async def _close(nc: Connection) -> None:
    """Close a connection, also one that does not answer, or that never came about."""
    try:
        async with asyncio.timeout(_CLOSING):
            await nc.close()
    except Exception as exc:
        logger.debug("a connection was not closed in order: %r", exc)


def _is_refusal(exc: BaseException) -> bool:
    """Tell whether an error is about credentials, which do not get better by trying again."""
    if isinstance(exc, nats.errors.AuthorizationError | nats.errors.InvalidUserCredentialsError):
        return True
    said = str(exc).lower()
    return isinstance(exc, nats.errors.Error) and ("authorization violation" in said or "authentication" in said)


def _hint(exc: BaseException) -> str:
    if _is_refusal(exc):
        return "it refused the credentials: check user, token, credentials file or nkey"
    if isinstance(exc, _NO_JETSTREAM):
        return "it has no JetStream: start nats-server with -js"
    if isinstance(exc, ssl.SSLError):
        return "give tls= an ssl.SSLContext that trusts its certificate, and a certificate of your own if it wants one"
    if isinstance(exc, nats.errors.Error | ConnectionError | TimeoutError | socket.gaierror):
        return "is nats-server running there, with JetStream (-js)?"
    return "check the arguments that nats.connect was given"
