"""What travels over the broker, as versioned JSON: an order, the record of an attempt, an outcome.

An order is a line of JSON and behind it the graph, byte for byte as the submitter encoded it. All else is one JSON
object. Each carries ``v``, the version of its form: a reader that is older than the writer says so, and does not guess.
Unknown fields are passed over, so that fields can be added without a new version. What has not the shape of its form
is refused as a whole: nobody acts on half an order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from ..errors import NodeProblem, ProtocolError
from ..frames import load_json
from ..job import PromptOptions
from ..outputs import FileReference, TextValue
from ..verdict import JobState
from .failures import read_error, read_value, write_error, write_value
from .names import HIGHEST, LOWEST, check_token

VERSION = 1

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_ENDS = (JobState.FAILED, JobState.CANCELLED, JobState.LOST)
_ON_LOST: dict[str, Literal["raise", "resubmit"]] = {"raise": "raise", "resubmit": "resubmit"}


class NewerVersion(ProtocolError):
    """What came was written by a newer acomfy, in a form that this one does not know."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in an object store.

    Attributes:
        size: In bytes.
        sha256: Of the content, in hex.
    """

    bucket: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class InputBlob:
    """A file of an order.

    Attributes:
        mark: The string that stands in its place in the graph.
        where: Where it stands, for a person.
        filename: Made of its content; see `acomfy.inputs`.
    """

    mark: str
    node_id: str | None
    input_name: str | None
    where: str
    filename: str
    blob: Blob


@dataclass(frozen=True, slots=True)
class Order:
    """A prompt as its submitter gave it to the fleet.

    Attributes:
        job_id: The prompt_id of its first attempt.
        client_id: The submitter's.
        graph: As JSON; a `Blob` when it is too large for a message.
        group: The workers that may run it.
        priority: From -9 to 9; what has a higher one goes first.
        streams: The nodes whose pictures in binary frames are outputs.
        created: When it was submitted, in seconds since 1970 by the submitter's clock.
    """

    job_id: str
    client_id: str
    graph: bytes | Blob = field(repr=False)
    group: str = "default"
    priority: int = 0
    streams: tuple[str, ...] = ()
    options: PromptOptions = PromptOptions()
    files: tuple[InputBlob, ...] = ()
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """Where an order runs, or ran last: written before it is posted there.

    Attributes:
        number: 1 for the first.
        prompt_id: Its id on that server.
        server: The server's address as other workers reach it, without what is secret.
        host: The machine of the worker; an address like 127.0.0.1 means something there alone.
        worker: The worker's id.
        started: In seconds since 1970 by the worker's clock.
        failures: How many attempts before it count among those that there may be only so many of.
        lost: Why nothing of it is left; "" while it may still be on the server.
    """

    number: int
    prompt_id: str
    server: str
    host: str
    worker: str
    started: float
    failures: int = 0
    lost: str = ""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that a prompt gave.

    Attributes:
        blob: Its bytes; None when it was left on the server, or was gone from there.
        gone: It was gone from the server (a cached node names its old file).
    """

    reference: FileReference
    blob: Blob | None
    gone: bool = False


StoredOutput: TypeAlias = StoredFile | TextValue


@dataclass(frozen=True, slots=True)
class Success:
    """What a prompt gave.

    Attributes:
        outputs: In the order of the prompt's nodes.
        raw: The nodes' ui outputs as the server sent them.
        cached_nodes: None when that is not known.
        nodes: Class and title of each node of the prompt, for who has no graph.
    """

    outputs: tuple[StoredOutput, ...]
    raw: Mapping[str, Any] = field(repr=False)
    cached_nodes: tuple[str, ...] | None
    nodes: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an order ended.

    Attributes:
        value: What it gave, or the error that it ended with.
        attempt: How many attempts there were; 0 when it was never begun.
        server: Where it ran; "" when it did not run.
    """

    job_id: str
    prompt_id: str
    state: JobState
    value: Success | BaseException
    attempt: int = 0
    server: str = ""
    worker: str = ""
    warnings: tuple[NodeProblem, ...] = ()


# --- Orders ----------------------------------------------------------------------------------------------------------


def write_order(order: Order) -> bytes:
    """Write an order as a message."""
    options = order.options
    head: dict[str, Any] = {
        "v": VERSION,
        "id": order.job_id,
        "client": order.client_id,
        "group": order.group,
        "priority": order.priority,
        "streams": order.streams,
        "created": order.created,
        "options": {
            "strict": options.strict,
            "on_lost": options.on_lost,
            "stall_timeout": options.stall_timeout,
            "targets": options.targets,
        },
        "files": [asdict(file) for file in order.files],
    }
    if options.extra_data is not None:
        head["extra_data"] = options.extra_data.decode()
    if isinstance(order.graph, Blob):
        return _dump({**head, "graph": asdict(order.graph)})
    return _dump(head) + b"\n" + order.graph


def read_order(message: bytes) -> Order:
    """Read an order.

    Raises:
        NewerVersion: It has a form that is not known here.
        ProtocolError: It is none.
    """
    line, _, graph = message.partition(b"\n")
    head = _object(line)
    try:
        if not LOWEST <= head["priority"] <= HIGHEST:
            raise ValueError("its priority is out of range")
        if "graph" not in head and not graph:
            raise ValueError("it has no graph")
        return Order(
            job_id=check_token("its id", head["id"]),
            client_id=check_token("its client_id", head["client"]),
            graph=_read_blob(head["graph"]) if "graph" in head else graph,
            group=check_token("its group", head["group"]),
            priority=int(head["priority"]),
            streams=_texts(head["streams"]),
            options=_read_options(head["options"], head.get("extra_data")),
            files=tuple(_read_input(file) for file in head["files"]),
            created=float(head["created"]),
        )
    except _UNREADABLE as exc:
        raise _unreadable("an order of the fleet", exc) from exc


def _read_options(found: Mapping[str, Any], extra: Any) -> PromptOptions:
    stall, targets = found.get("stall_timeout"), found.get("targets")
    return PromptOptions(
        strict=bool(found.get("strict", True)),
        on_lost=_ON_LOST[found.get("on_lost", "raise")],
        targets=None if targets is None else _texts(targets),
        extra_data=None if extra is None else _text(extra).encode(),
        stall_timeout=None if stall is None else float(stall),
    )


def _read_input(found: Mapping[str, Any]) -> InputBlob:
    return InputBlob(
        mark=_text(found["mark"]),
        node_id=_optional_text(found["node_id"]),
        input_name=_optional_text(found["input_name"]),
        where=_text(found["where"]),
        filename=_text(found["filename"]),
        blob=_read_blob(found["blob"]),
    )


def _read_blob(found: Mapping[str, Any]) -> Blob:
    size = found["size"]
    if not isinstance(size, int) or size < 0:
        raise TypeError("the size of a file is no number of bytes")
    return Blob(_text(found["bucket"]), _text(found["name"]), size, _text(found["sha256"]))


# --- Attempts --------------------------------------------------------------------------------------------------------


def write_attempt(attempt: Attempt) -> bytes:
    """Write the record of an attempt."""
    return _dump({"v": VERSION, **asdict(attempt)})


def read_attempt(record: bytes) -> Attempt:
    """Read the record of an attempt.

    Raises:
        NewerVersion: It has a form that is not known here.
        ProtocolError: It is none.
    """
    found = _object(record)
    try:
        return Attempt(
            number=int(found["number"]),
            prompt_id=_text(found["prompt_id"]),
            server=_text(found["server"]),
            host=_text(found["host"]),
            worker=_text(found["worker"]),
            started=float(found["started"]),
            failures=int(found.get("failures", 0)),
            lost=_text(found.get("lost", "")),
        )
    except _UNREADABLE as exc:
        raise _unreadable("the record of an attempt", exc) from exc


# --- Outcomes --------------------------------------------------------------------------------------------------------


def write_outcome(outcome: Outcome) -> bytes:
    """Write an outcome. One that is nested too deep for JSON is written as an error that says so."""
    try:
        return _dump(_outcome(outcome))
    except RecursionError:
        error = ProtocolError(f"what the server gave for prompt {outcome.prompt_id} is nested too deep to be sent on")
        return _dump(_outcome(replace(outcome, state=JobState.FAILED, value=error)))


def _outcome(outcome: Outcome) -> dict[str, Any]:
    value = outcome.value
    found: dict[str, Any] = {
        "v": VERSION,
        "id": outcome.job_id,
        "prompt_id": outcome.prompt_id,
        "state": outcome.state.value,
        "attempt": outcome.attempt,
        "server": outcome.server,
        "worker": outcome.worker,
        "warnings": write_value(outcome.warnings),
    }
    if isinstance(value, BaseException):
        return {**found, "error": write_error(value)}
    success = {
        "outputs": [_write_output(output) for output in value.outputs],
        "raw": value.raw,
        "cached_nodes": value.cached_nodes,
        "nodes": value.nodes,
    }
    return {**found, "success": success}


def write_reference(blob: Blob) -> bytes:
    """Write what stands for an outcome that is too large for a message."""
    return _dump({"v": VERSION, "blob": asdict(blob)})


def read_outcome(message: bytes) -> Outcome | Blob:
    """Read an outcome, or where it is.

    Raises:
        NewerVersion: It has a form that is not known here.
        ProtocolError: It is none.
    """
    found = _object(message)
    try:
        if "blob" in found:
            return _read_blob(found["blob"])
        state = JobState(found["state"])
        success = found.get("success")
        if state not in (_ENDS if success is None else (JobState.COMPLETED,)):
            raise ValueError(f"{state} is not how it can have ended")
        return Outcome(
            job_id=_text(found["id"]),
            prompt_id=_text(found["prompt_id"]),
            state=state,
            value=read_error(found["error"]) if success is None else _read_success(success),
            attempt=int(found["attempt"]),
            server=_text(found["server"]),
            worker=_text(found["worker"]),
            warnings=_read_warnings(found["warnings"]),
        )
    except _UNREADABLE as exc:
        raise _unreadable("an outcome of the fleet", exc) from exc


def _read_warnings(found: Any) -> tuple[NodeProblem, ...]:
    warnings = tuple(read_value(found))
    if not all(isinstance(warning, NodeProblem) for warning in warnings):
        raise TypeError("a warning is no problem of a node")
    return warnings


def _read_success(found: Mapping[str, Any]) -> Success:
    cached = found["cached_nodes"]
    return Success(
        outputs=tuple(_read_output(output) for output in found["outputs"]),
        raw=_mapping(found["raw"]),
        cached_nodes=None if cached is None else _texts(cached),
        nodes={node_id: _mapping(node) for node_id, node in found["nodes"].items()},
    )


def _write_output(output: StoredOutput) -> dict[str, Any]:
    if isinstance(output, TextValue):
        return {"text": output.text, "node_id": output.node_id, "key": output.key}
    reference = output.reference
    return {
        "file": {name: getattr(reference, name) for name in (*_REFERENCE, "animated", "entry")},
        "blob": None if output.blob is None else asdict(output.blob),
        "gone": output.gone,
    }


_REFERENCE = ("node_id", "key", "filename", "subfolder", "type", "media_type")


def _read_output(found: Mapping[str, Any]) -> StoredOutput:
    if "text" in found:
        return TextValue(_text(found["node_id"]), _text(found["key"]), _text(found["text"]))
    file, blob = found["file"], found["blob"]
    texts = {name: _text(file[name]) for name in _REFERENCE}
    reference = FileReference(**texts, animated=bool(file["animated"]), entry=_mapping(file["entry"]))
    return StoredFile(reference, None if blob is None else _read_blob(blob), bool(found.get("gone")))


# --- JSON ------------------------------------------------------------------------------------------------------------


def _dump(found: Mapping[str, Any]) -> bytes:
    # Names and the server's own JSON may hold what orjson refuses: lone surrogates, NaN, integers of any size.
    return json.dumps(found).encode()


def _object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object of a known version."""
    found = load_json(text)
    version = found.get("v") if isinstance(found, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ProtocolError("what came over the broker is not of a fleet of acomfy")
    if version > VERSION:
        raise NewerVersion(f"a newer acomfy wrote this (version {version}, known is {VERSION}); update this one")
    return dict(found)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text should be")
    return value


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} where a list should be")
    return tuple(_text(item) for item in value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where an object should be")
    return value


def _unreadable(what: str, exc: Exception) -> ProtocolError:
    return ProtocolError(f"{what} cannot be read: {type(exc).__name__}: {str(exc)[:200]}")
