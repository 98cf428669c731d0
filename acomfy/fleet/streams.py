"""What a fleet has on the broker: its streams, its buckets, and the consumers of its queue."""

from __future__ import annotations

from dataclasses import dataclass

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StoreCompression,
    StreamConfig,
)

from .names import Lane, Loader, Names

_LONGEST_DUPLICATES = 120.0
_WEEK = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """How the broker keeps what a fleet gives it. Said when a stream or bucket is made; one that exists stays as it is.

    Attributes:
        replicas: How many of a cluster's servers keep each message: 1, or 3 to outlive one of them.
        outcome_ttl, file_ttl, input_ttl: Seconds that outcomes, files of results and input files are kept.
        duplicate_window: Seconds in which the same order sent twice is taken once.
        dead_ttl: Seconds that what was given up is kept.
        max_pending: Orders that may be in the queue, running ones included; one more is `QueueFull`. None: any number.

    Raises:
        ValueError: One of these makes no sense.
    """

    replicas: int = 1
    outcome_ttl: float = 86_400.0
    file_ttl: float = 86_400.0
    input_ttl: float = 86_400.0
    duplicate_window: float = 600.0
    dead_ttl: float = 30 * 86_400.0
    max_pending: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= 5:
            raise ValueError(f"replicas is from 1 to 5, not {self.replicas}")
        if min(self.outcome_ttl, self.file_ttl, self.input_ttl, self.duplicate_window, self.dead_ttl) < 1:
            raise ValueError("what is kept is kept for at least 1 second")
        if self.max_pending is not None and self.max_pending < 1:
            raise ValueError(f"max_pending is at least 1, not {self.max_pending}; None is any number")


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
            duplicate_window=min(_LONGEST_DUPLICATES, keeping.dead_ttl),
            max_msgs_per_subject=1,
            allow_direct=True,
        ),
        _bucket(names.outcomes, keeping.outcome_ttl, keeping.replicas),
        _bucket(names.runs, max(keeping.outcome_ttl, _WEEK), keeping.replicas),
        _object_store(names.files, keeping.file_ttl, keeping.replicas),
        _object_store(names.inputs, keeping.input_ttl, keeping.replicas),
    ]


_LONGEST_LOADER = 8 << 10
_LOADER = ("acomfy.class", "acomfy.input", "acomfy.model")


def consumer_config(names: Names, lane: Lane, ack_wait: float) -> ConsumerConfig:
    """Say how the consumer of a lane is.

    Args:
        ack_wait: Seconds of the lease of what is taken from it; see `Worker`.
    """
    return ConsumerConfig(
        name=lane.consumer,
        durable_name=lane.consumer,
        filter_subject=names.lane(lane),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        max_deliver=-1,  # what comes too often is put aside by a worker, which says why
        max_ack_pending=-1,
        max_waiting=100_000,
        metadata=None if lane.loader is None else _told(lane.loader),
    )


def _told(loader: Loader) -> dict[str, str] | None:
    """Say how a model is loaded; None for names that nats-server would change, or refuse: then all may ask the lane."""
    try:
        said = sum(len(part.encode()) for part in loader)
    except UnicodeEncodeError:  # a lone surrogate, as a file's name has where that is no UTF-8
        return None
    return dict(zip(_LOADER, loader, strict=True)) if said <= _LONGEST_LOADER else None


def loader_of(config: ConsumerConfig) -> Loader | None:
    """Read off a lane's consumer how its model is loaded; None when it does not tell."""
    told = config.metadata or {}
    class_type, name, model = (told.get(key) for key in _LOADER)
    return None if class_type is None or name is None or model is None else (class_type, name, model)


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
        duplicate_window=min(_LONGEST_DUPLICATES, ttl),
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
        duplicate_window=min(_LONGEST_DUPLICATES, ttl),
        allow_rollup_hdrs=True,
        allow_direct=True,
    )
