"""How a file stands in an object store of NATS, as every NATS client reads it (ADR-20 of NATS).

Its bytes are a row of messages on a subject of their own, and a record names that subject::

    $O.{bucket}.C.{nuid}              the chunks, in order
    $O.{bucket}.M.{name in base64}    the record: JSON, the last one counts
    OBJ_{bucket}                      the stream of both
"""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass

import orjson

from ..errors import ProtocolError, ServerError

CHUNK_SIZE = 128 << 10
"""Bytes of a chunk, as the other clients have it; the last one may be shorter."""

_DIGEST = "SHA-256="
_EVEN = {"acomfy-chunks": "even"}


class BlobMissing(ServerError):
    """The object store does not have the file, or not whole, or not with that content any more.

    Attributes:
        bucket: The object store.
        name: The file's name there.
    """

    def __init__(self, bucket: str, name: str, reason: str) -> None:
        self.bucket = bucket
        self.name = name
        super().__init__(f"the file {name!r} cannot be had from the object store {bucket}: {reason}")


class StoreFull(ServerError):
    """The object store, or the disk of the broker, takes no more.

    Attributes:
        bucket: The object store.
    """

    def __init__(self, bucket: str, reason: str) -> None:
        self.bucket = bucket
        super().__init__(
            f"the object store {bucket} takes no more ({reason}); raise its limit, or keep files for a shorter time"
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What the store tells of a file.

    Attributes:
        nuid: The last part of the subject of its chunks; "" when there is none, or it was deleted.
        sequence: Of the record itself in the stream; 0 when there is none.
        stored: When, in seconds since 1970 by the broker's clock.
        chunk_size: Bytes of every chunk but the last; 0 when that is not known, as of what other clients wrote.
    """

    nuid: str = ""
    size: int = 0
    chunks: int = 0
    sha256: str = ""
    sequence: int = 0
    stored: float = 0.0
    chunk_size: int = 0


def stream(bucket: str) -> str:
    return f"OBJ_{bucket}"


def chunk_subject(bucket: str, nuid: str) -> str:
    return f"$O.{bucket}.C.{nuid}"


def record_subject(bucket: str, name: str) -> str:
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def write_record(bucket: str, name: str, record: Record) -> bytes:
    """Write a record; one without SHA-256 says that the file was deleted."""
    digest = base64.urlsafe_b64encode(bytes.fromhex(record.sha256)).decode()
    return orjson.dumps(
        {
            "name": name,
            "bucket": bucket,
            "nuid": record.nuid,
            "size": record.size,
            "chunks": record.chunks,
            "mtime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "digest": _DIGEST + digest if digest else "",
            "deleted": not digest,
            "options": {"max_chunk_size": record.chunk_size or CHUNK_SIZE},
            "metadata": _EVEN if record.chunk_size else {},
        }
    )


def read_record(message: bytes, sequence: int, stored: float) -> Record:
    """Read a record, also one that another client wrote.

    Raises:
        ProtocolError: It is none, or that of a link to another file.
    """
    try:
        found = orjson.loads(message)
        if found.get("deleted"):
            return Record(sequence=sequence, stored=stored)
        digest = found["digest"]
        if digest[: len(_DIGEST)].upper() != _DIGEST:
            raise ValueError(f"the digest {digest!r} is no SHA-256")
        sha256 = base64.urlsafe_b64decode(digest[len(_DIGEST) :]).hex()
        size, chunks = int(found.get("size", 0)), int(found.get("chunks", 0))  # nats.go leaves out what is 0
        even = found.get("metadata") == _EVEN
        chunk_size = int(found["options"]["max_chunk_size"]) if even else 0
        return Record(str(found["nuid"]), size, chunks, sha256, sequence, stored, chunk_size)
    except (binascii.Error, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ProtocolError(f"the record of a file in an object store cannot be read: {exc!r}") from exc
