"""What travels over the broker, as versioned JSON: an order, the record of an attempt, an outcome.

An order is a line of JSON and behind it the graph, byte for byte as the submitter encoded it. All else is one JSON
object. Each carries ``v``, the version of its form: a reader that is older than the writer says so, and does not guess.
Unknown fields are passed over, so that fields can be added without a new version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import orjson

from ..errors import NodeProblem, ProtocolError
from ..frames import load_json
from ..job import PromptOptions
from ..outputs import FileReference, TextValue
from ..verdict import JobState
from .failures import read_error, read_value, write_error, write_value

VERSION = 1

_OPTIONS = ("strict", "on_lost", "stall_timeout")


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
        "options": {name: getattr(options, name) for name in _OPTIONS} | {"targets": options.targets},
        "files": [asdict(file) for file in order.files],
    }
    if options.extra_data is not None:
        head["extra_data"] = options.extra_data.decode()
    if isinstance(order.graph, Blob):
        head["graph"] = asdict(order.graph)
        return orjson.dumps(head)
    return orjson.dumps(head) + b"\n" + order.graph


def read_order(message: bytes) -> Order:
    """Read an order.

    Raises:
        NewerVersion: It has a form that is not known here.
        ProtocolError: It is none.
    """
    line, _, graph = message.partition(b"\n")
    head = _object(line)
    try:
        options = head["options"]
        targets = options.get("targets")
        extra = head.get("extra_data")
        return Order(
            job_id=str(head["id"]),
            client_id=str(head["client"]),
            graph=Blob(**head["graph"]) if "graph" in head else graph,
            group=str(head["group"]),
            priority=int(head["priority"]),
            streams=tuple(head["streams"]),
            options=PromptOptions(
                **{name: options[name] for name in _OPTIONS if name in options},
                targets=None if targets is None else tuple(targets),
                extra_data=None if extra is None else extra.encode(),
            ),
            files=tuple(InputBlob(**{**file, "blob": Blob(**file["blob"])}) for file in head["files"]),
            created=float(head["created"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ProtocolError(f"an order of the fleet cannot be read: {exc!r}") from exc


# --- Attempts --------------------------------------------------------------------------------------------------------


def write_attempt(attempt: Attempt) -> bytes:
    """Write the record of an attempt."""
    return orjson.dumps({"v": VERSION, **asdict(attempt)})


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
            prompt_id=str(found["prompt_id"]),
            server=str(found["server"]),
            host=str(found["host"]),
            worker=str(found["worker"]),
            started=float(found["started"]),
            failures=int(found.get("failures", 0)),
            lost=str(found.get("lost", "")),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ProtocolError(f"the record of an attempt cannot be read: {exc!r}") from exc


# --- Outcomes --------------------------------------------------------------------------------------------------------


def write_outcome(outcome: Outcome) -> bytes:
    """Write an outcome."""
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
    if isinstance(value, Success):
        found["success"] = {
            "outputs": [_write_output(output) for output in value.outputs],
            "raw": value.raw,
            "cached_nodes": value.cached_nodes,
            "nodes": value.nodes,
        }
    else:
        found["error"] = write_error(value)
    # The server's own JSON may hold what orjson refuses: NaN, integers of any size, lone surrogates.
    return json.dumps(found).encode()


def write_reference(blob: Blob) -> bytes:
    """Write what stands for an outcome that is too large for a message."""
    return orjson.dumps({"v": VERSION, "blob": asdict(blob)})


def read_outcome(message: bytes) -> Outcome | Blob:
    """Read an outcome, or where it is.

    Raises:
        NewerVersion: It has a form that is not known here.
        ProtocolError: It is none.
    """
    found = _object(message)
    try:
        if "blob" in found:
            return Blob(**found["blob"])
        success = found.get("success")
        return Outcome(
            job_id=str(found["id"]),
            prompt_id=str(found["prompt_id"]),
            state=JobState(found["state"]),
            value=read_error(found["error"]) if success is None else _read_success(success),
            attempt=int(found["attempt"]),
            server=str(found["server"]),
            worker=str(found["worker"]),
            warnings=read_value(found["warnings"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ProtocolError(f"an outcome of the fleet cannot be read: {exc!r}") from exc


def _read_success(found: Mapping[str, Any]) -> Success:
    cached = found["cached_nodes"]
    return Success(
        outputs=tuple(_read_output(output) for output in found["outputs"]),
        raw=found["raw"],
        cached_nodes=None if cached is None else tuple(cached),
        nodes=found["nodes"],
    )


def _write_output(output: StoredOutput) -> dict[str, Any]:
    if isinstance(output, TextValue):
        return {"text": output.text, "node_id": output.node_id, "key": output.key}
    reference = output.reference
    return {
        "file": {name: getattr(reference, name) for name in _REFERENCE} | {"entry": reference.entry},
        "blob": None if output.blob is None else asdict(output.blob),
        "gone": output.gone,
    }


_REFERENCE = ("node_id", "key", "filename", "subfolder", "type", "media_type", "animated")


def _read_output(found: Mapping[str, Any]) -> StoredOutput:
    if "text" in found:
        return TextValue(found["node_id"], found["key"], found["text"])
    file, blob = found["file"], found["blob"]
    reference = FileReference(**{name: file[name] for name in _REFERENCE}, entry=file["entry"])
    return StoredFile(reference, None if blob is None else Blob(**blob), bool(found.get("gone")))


def _object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object of a known version."""
    try:
        found = load_json(text)
    except ValueError as exc:
        raise ProtocolError(f"what came over the broker is no JSON: {exc}") from exc
    if not isinstance(found, dict) or not isinstance(found.get("v"), int):
        raise ProtocolError("what came over the broker is not of a fleet of acomfy")
    if found["v"] > VERSION:
        raise NewerVersion(f"a newer acomfy wrote this (version {found['v']}, known is {VERSION}); update this one")
    return found
