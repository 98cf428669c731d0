"""The connection to NATS, kept for as long as it is wanted, with the streams and buckets that a fleet needs.

It is opened in the background and made anew for ever; what needs it waits for it, within its own patience. nats-py
reconnects by itself, but closes for good when its credentials are refused later; then a new one is made here, and every
subscription with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client as NATS
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StoreCompression,
    StreamConfig,
)

from ..concurrency import Tasks
from ..errors import BrokerError, ClientClosed, QueueFull, ServerUnreachable
from .names import Lane, Names

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_TIMEOUT = 5.0

_RECONNECT_WAIT = 0.5
_PING_INTERVAL = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_HEADROOM = 4096

# JetStream's error codes (nats-server server/errors.json).
_STREAM_EXISTS = 10058
_CONSUMER_EXISTS = (10105, 10148)
_MAXIMUM_MESSAGES = 10077
_NO_LEADER = (10005, 10008, 10009)

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


@dataclass(frozen=True, slots=True)
class Keeping:
    """How the broker keeps what a fleet gives it. Said when a stream or bucket is made; one that exists stays as it is.

    Attributes:
        replicas: How many of a cluster's servers keep each message: 1, or 3 to outlive one of them.
        outcome_ttl, file_ttl, input_ttl: Seconds that outcomes, files of results and input files are kept.
        duplicate_window: Seconds in which the same order sent twice is taken once.
        dead_ttl: Seconds that what was given up is kept.
        max_pending: Orders that may be in the queue, running ones included; one more is `QueueFull`. None: any number.
    """

    replicas: int = 1
    outcome_ttl: float = 86_400.0
    file_ttl: float = 86_400.0
    input_ttl: float = 86_400.0
    duplicate_window: float = 600.0
    dead_ttl: float = 30 * 86_400.0
    max_pending: int | None = None


class Listening:
    """A subscription that outlives its connection.

    Args:
        callback: Called with each message; what it raises is logged by nats-py's error callback.
        queue: The queue group, of whose members one gets each message; "" for none.
    """

    def __init__(self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str) -> None:
        self.subject = subject
        self._callback = callback
        self._queue = queue
        self._subscription: Subscription | None = None

    async def begin(self, nc: NATS) -> None:
        self._subscription = await nc.subscribe(self.subject, queue=self._queue, cb=self._callback)

    async def end(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as exc:
                logger.debug("%s is not listened to any more: %s", self.subject, exc)


class Broker:
    """A connection to NATS.

    Args:
        servers: Its addresses; user and password or a token may be in them.
        options: Arguments of ``nats.connect``: ``tls``, ``user_credentials``, ``nkeys_seed``, ``token``...

    Attributes:
        shown: The addresses, without what is secret in them.
    """

    def __init__(
        self, servers: str | Sequence[str], names: Names, keeping: Keeping, options: Mapping[str, Any]
    ) -> None:
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        if not self._servers or not all(isinstance(url, str) and url for url in self._servers):
            raise ValueError("servers are addresses of NATS, for example 'nats://127.0.0.1:4222'")
        self.shown = ", ".join(shown_address(url) for url in self._servers)
        self.names = names
        self._keeping = keeping
        self._options = dict(options)
        self._tasks = Tasks()
        self._nc: NATS | None = None
        self._js: JetStreamContext | None = None
        self._ready = asyncio.Event()
        self._refusal: Exception | None = None
        self._last_error: Exception | None = None
        self._listening: list[Listening] = []
        self._lanes: set[Lane] = set()
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
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._nc is not None:
            await self._nc.close()

    def when_open(self, callback: Callable[[], None]) -> None:
        """Have a function called whenever a connection was opened or came back."""
        self._on_open.append(callback)

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._nc is not None and self._nc.is_connected and self._ready.is_set()

    async def _keep(self) -> None:
        while True:
            gone = asyncio.Event()
            nc = NATS()
            try:
                await self._connect(nc, gone)
                self._nc, self._js = nc, nc.jetstream(timeout=ANSWER_TIMEOUT)
                await self._prepare()
                for listening in self._listening:
                    await listening.begin(nc)
                self._refusal = None
                self._opened()
                await gone.wait()
            except (nats.errors.Error, OSError) as exc:
                self._last_error = exc
                if _is_refusal(exc) or isinstance(exc, js_errors.APIError):
                    self._refusal = exc
                    self._ready.set()
                logger.info("the broker %s cannot be used: %s", self.shown, exc)
            finally:
                if not nc.is_closed:
                    await nc.close()
            await asyncio.sleep(_LONGEST_PAUSE)
            if self._refusal is None:
                self._ready.clear()

    async def _connect(self, nc: NATS, gone: asyncio.Event) -> None:
        async def on_error(exc: Exception) -> None:
            self._last_error = exc
            if _is_refusal(exc) and not nc.is_connected:
                self._refusal = exc
                self._ready.set()
            logger.debug("the broker %s: %r", self.shown, exc)

        async def on_back() -> None:
            self._refusal = None
            self._opened()

        async def on_closed() -> None:
            gone.set()

        options: dict[str, Any] = {
            "name": "acomfy",
            "connect_timeout": 5,
            "reconnect_time_wait": _RECONNECT_WAIT,
            "ping_interval": _PING_INTERVAL,
            "max_reconnect_attempts": -1,
            **self._options,
        }
        await nc.connect(
            servers=self._servers, error_cb=on_error, reconnected_cb=on_back, closed_cb=on_closed, **options
        )

    def _opened(self) -> None:
        self._ready.set()
        for callback in self._on_open:
            callback()

    async def ready(self, timeout: float | None) -> JetStreamContext:
        """Wait until it can be used, for so many seconds; None: for ever.

        Raises:
            ServerUnreachable: It cannot.
            ClientClosed: It was closed.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            raise self._unreachable(self._last_error or "no connection in time") from None
        if self._closed:
            raise ClientClosed("the connection to the broker is closed")
        if self._refusal is not None:
            raise self._unreachable(self._refusal)
        if self._js is None:
            raise AssertionError("a connection that is ready has a JetStream context")
        return self._js

    @property
    def nc(self) -> NATS:
        """The connection, once it was ready."""
        if self._nc is None:
            raise AssertionError("the broker was not waited for")
        return self._nc

    @property
    def js(self) -> JetStreamContext:
        """Its JetStream, once it was ready."""
        if self._js is None:
            raise AssertionError("the broker was not waited for")
        return self._js

    @property
    def largest_message(self) -> int:
        """Bytes that a message may have, beside its headers."""
        return self.nc.max_payload - _HEADROOM

    def _unreachable(self, reason: object, *, maybe_sent: bool = False) -> ServerUnreachable:
        hint = "is nats-server running there, with JetStream (-js)?"
        if isinstance(reason, Exception):
            if _is_refusal(reason):
                hint = "it refused the credentials: check user, token, credentials file or nkey"
            reason = str(reason) or type(reason).__name__
        return ServerUnreachable(self.shown, str(reason), maybe_sent=maybe_sent, hint=hint)

    async def persist(self, action: Callable[[JetStreamContext], Awaitable[T]], *, patience: float | None = 30.0) -> T:
        """Do something with the broker, again while it is away: for so many seconds; None: for ever.

        Raises:
            ServerUnreachable: It did not come back in time; whether the last try arrived is not known.
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
                return await action(js)
            except PASSING as exc:
                failure: Exception = exc
            except js_errors.NotFoundError:
                raise
            except js_errors.APIError as exc:
                if exc.err_code == _MAXIMUM_MESSAGES:
                    raise QueueFull("the fleet's queue is full (max_pending); nothing was queued") from exc
                if exc.err_code not in _NO_LEADER:
                    raise BrokerError(self.shown, exc.description or str(exc), code=exc.err_code) from exc
                failure = exc
            except nats.errors.Error as exc:
                raise BrokerError(self.shown, str(exc)) from exc
            sent = True
            if deadline is not None and clock() >= deadline:
                raise self._unreachable(failure, maybe_sent=sent) from failure
            logger.debug("trying the broker again: %r", failure)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    # --- What is on it -----------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Make the streams and buckets, where they are not there."""
        for config in stream_configs(self.names, self._keeping):
            pause = _FIRST_PAUSE
            while True:
                try:
                    await self._add_stream(config)
                    break
                except PASSING as exc:  # a cluster that elects its leader
                    self._last_error = exc
                    logger.debug("the stream %s cannot be made yet: %r", config.name, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _add_stream(self, config: StreamConfig) -> None:
        if self._js is None:
            raise AssertionError("streams are made on a connection")
        try:
            await self._js.add_stream(config)
        except js_errors.BadRequestError as exc:
            if exc.err_code != _STREAM_EXISTS:
                raise
            logger.debug("the stream %s is kept as it is", config.name)

    async def ensure_lane(self, lane: Lane, ack_wait: float, *, patience: float | None = 30.0) -> None:
        """Make the consumer of a lane, where it is not there.

        Args:
            ack_wait: Seconds of the lease of what is taken from it; see `Worker`.
        """
        if lane in self._lanes:
            return
        config = ConsumerConfig(
            name=lane.consumer,
            durable_name=lane.consumer,
            filter_subject=self.names.lane(lane),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait,
            max_deliver=-1,  # what comes too often is put aside by a worker, which says why
            max_ack_pending=-1,
            max_waiting=100_000,
        )

        async def add(js: JetStreamContext) -> None:
            try:
                await js.add_consumer(self.names.jobs, config=replace(config))
            except js_errors.BadRequestError as exc:
                if exc.err_code not in _CONSUMER_EXISTS:
                    raise

        await self.persist(add, patience=patience)
        self._lanes.add(lane)

    def forget_lane(self, lane: Lane) -> None:
        """Note that the consumer of a lane is gone."""
        self._lanes.discard(lane)

    async def listen(self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = "") -> Listening:
        """Listen to a plain subject, on this connection and those after it, until `unlisten`."""
        listening = Listening(subject, callback, queue)
        self._listening.append(listening)
        if self._nc is not None and self._ready.is_set() and not self._nc.is_closed:
            try:
                await listening.begin(self._nc)
            except nats.errors.Error as exc:
                logger.debug("%s will be listened to on the next connection: %s", subject, exc)
        return listening

    async def unlisten(self, listening: Listening) -> None:
        """Listen no more."""
        if listening in self._listening:
            self._listening.remove(listening)
            await listening.end()

    async def tell(self, subject: str, payload: bytes = b"") -> None:
        """Publish on a plain subject, for whoever listens; nothing happens while the broker is away."""
        if not self.connected:
            return
        try:
            await self.nc.publish(subject, payload)
        except nats.errors.Error as exc:
            logger.debug("%s was not told: %s", subject, exc)


def _is_refusal(exc: Exception) -> bool:
    """Tell whether an error is about credentials, which do not get better by trying again."""
    if isinstance(exc, nats.errors.AuthorizationError | nats.errors.InvalidUserCredentialsError):
        return True
    return "authorization violation" in str(exc).lower() or "authentication" in str(exc).lower()


def shown_address(url: str) -> str:
    """Give an address without what is secret in it."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    try:
        port = parts.port
    except ValueError:
        port = None
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def stream_configs(names: Names, keeping: Keeping) -> list[StreamConfig]:
    """Say what streams there are; a bucket is a stream of a certain form."""
    return [
        StreamConfig(
            name=names.jobs,
            subjects=[f"{names.name}.jobs.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            num_replicas=keeping.replicas,
            duplicate_window=keeping.duplicate_window,
            max_msgs=keeping.max_pending or -1,
            discard=DiscardPolicy.NEW,
            compression=StoreCompression.S2,
            allow_direct=True,
        ),
        StreamConfig(
            name=names.dead,
            subjects=[f"{names.name}.dead.>"],
            storage=StorageType.FILE,
            num_replicas=keeping.replicas,
            max_age=keeping.dead_ttl,
            max_msgs_per_subject=1,
            allow_direct=True,
        ),
        _bucket(names.outcomes, keeping.outcome_ttl, keeping.replicas),
        _bucket(names.runs, max(keeping.outcome_ttl, 7 * 86_400.0), keeping.replicas),
        _object_store(names.files, keeping.file_ttl, keeping.replicas),
        _object_store(names.inputs, keeping.input_ttl, keeping.replicas),
    ]


def _bucket(name: str, ttl: float, replicas: int) -> StreamConfig:
    """A key-value bucket, as ADR-8 of NATS says that it is made."""
    return StreamConfig(
        name=f"KV_{name}",
        subjects=[f"$KV.{name}.>"],
        storage=StorageType.FILE,
        num_replicas=replicas,
        max_age=ttl,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        duplicate_window=min(120.0, ttl),
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_direct=True,
    )


def _object_store(name: str, ttl: float, replicas: int) -> StreamConfig:
    """An object store, as ADR-20 of NATS says that it is made."""
    return StreamConfig(
        name=f"OBJ_{name}",
        subjects=[f"$O.{name}.C.>", f"$O.{name}.M.>"],
        storage=StorageType.FILE,
        num_replicas=replicas,
        max_age=ttl,
        discard=DiscardPolicy.NEW,
        duplicate_window=min(120.0, ttl),
        allow_rollup_hdrs=True,
        allow_direct=True,
    )
