"""Files in an object store of NATS: whole or not at all, in bounded memory, through killed brokers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client as Connection
from nats.js import JetStreamContext
from nats.js.api import ObjectStoreConfig

from acomfy.errors import BrokerError, ClientClosed, ProtocolError, ServerUnreachable
from acomfy.fleet import catalog, row
from acomfy.fleet import store as store_module
from acomfy.fleet.local import LocalBroker, LocalCluster
from acomfy.fleet.objects import CHUNK_SIZE, Record, chunk_subject, read_record, record_subject, write_record
from acomfy.fleet.store import BlobMissing, FileStore, StoreFull
from acomfy.fleet.wire import Blob

from .brokers import broker as broker
from .brokers import connected
from .conftest import MS

pytestmark = pytest.mark.anyio

MB = 1 << 20
EVERYTHING = 1 << 40


@dataclass
class Bucket:
    """A bucket, and what stands behind the store of it."""

    store: FileStore
    connection: Connection
    js: JetStreamContext
    errors: list[Exception] = field(default_factory=list)

    async def messages(self) -> int:
        """How many chunks and records there are."""
        return (await self.js.stream_info("OBJ_B")).state.messages

    async def leftovers(self) -> tuple[int, int, list[str]]:
        """Subscriptions, consumers, and tasks that are not the connection's or the test's own."""
        await asyncio.sleep(0)
        own = {"_read_loop", "_flusher", "_ping_interval", "_wait_for_msgs", "_call_in_runner_task"}
        names = [getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks() - {asyncio.current_task()}]
        others = [name for name in names if name not in own and "test" not in name]
        consumers = await self.js.consumers_info("OBJ_B")
        return len(self.connection._subs), len(consumers), others


class AsIs:
    """A connection as a link."""

    shown = "nats://shown"

    def __init__(self, connection: Connection) -> None:
        self.nc, self.js = connection, connection.jetstream()

    async def ready(self, timeout: float | None) -> None:
        if self.nc.is_closed:
            raise ClientClosed("the connection to the broker is closed")


@asynccontextmanager
async def opened(
    *urls: str, ttl: float | None = None, max_bytes: int | None = None, replicas: int = 1, **times: float
) -> AsyncIterator[Bucket]:
    """Make a bucket and a store of it, whose own times are short."""
    errors: list[Exception] = []
    async with connected(*urls, errors=errors) as connection:
        js = connection.jetstream(timeout=20_000 * MS)  # a cluster may have to elect a leader first
        config = ObjectStoreConfig(ttl=ttl, max_bytes=max_bytes, replicas=replicas)
        await js.create_object_store("B", config=config)
        store = FileStore(AsIs(connection), "B", **{"silence": 2000 * MS, "patience": 20_000 * MS, **times})
        yield Bucket(store, connection, js, errors)


@pytest.fixture
async def bucket(broker: LocalBroker) -> AsyncIterator[Bucket]:
    async with opened(broker.url) as bucket:
        yield bucket


def some_bytes(size: int) -> bytes:
    return os.urandom(MB) * (size // MB) + os.urandom(size % MB)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Gate(io.BytesIO):
    """A source that stops in the middle until it is let go on; it is read in a thread."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._loop = asyncio.get_running_loop()
        self._middle = len(data) // 2
        self._open = threading.Event()
        self.reached = asyncio.Event()

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= self._middle and not self._open.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            if not self._open.wait(20):
                raise AssertionError("nobody opened the gate")
        return super().read(size)

    def open(self) -> None:
        self._open.set()


# --- What is stored comes back ----------------------------------------------------------------------------------------

SIZES = [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, MB, 3 * MB + 5]


async def test_what_was_stored_is_read_again_whatever_its_size(bucket: Bucket, tmp_path: Path) -> None:
    for size in SIZES:
        data = some_bytes(size)
        blob = await bucket.store.put(f"a b/{size}.png", data)
        assert blob == Blob("B", f"a b/{size}.png", size, sha256(data))
        assert await bucket.store.find(blob.name) == blob
        assert await bucket.store.read(blob, max_size=size) == data
        await bucket.store.save(blob, tmp_path / "new" / f"{size}.png")
        assert (tmp_path / "new" / f"{size}.png").read_bytes() == data
    assert bucket.errors == []


@pytest.mark.parametrize("given_as", ["bytes", "memoryview", "path", "file"])
async def test_it_may_be_given_in_several_ways(bucket: Bucket, tmp_path: Path, given_as: str) -> None:
    data = some_bytes(MB + 77)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        file.read(5)  # where it stands does not matter
        sources: dict[str, Any] = {
            "bytes": data,
            "memoryview": memoryview(data).cast("B"),
            "path": tmp_path / "file",
            "file": file,
        }
        blob = await bucket.store.put("name", sources[given_as])
        assert not file.closed
    assert blob.sha256 == sha256(data)
    assert await bucket.store.read(blob, max_size=EVERYTHING) == data


async def test_another_client_of_nats_reads_ours_and_we_read_its(bucket: Bucket) -> None:
    theirs = await bucket.js.object_store("B")
    data = some_bytes(MB + 5)
    await bucket.store.put("ours", data)
    assert (await theirs.get("ours")).data == data
    await bucket.store.put("empty", b"")
    assert (await theirs.get("empty")).data == b""
    await theirs.put("theirs", data)
    blob = await bucket.store.find("theirs")
    assert blob is not None and await bucket.store.read(blob, max_size=EVERYTHING) == data
    await bucket.store.delete("ours")
    assert [info.name for info in await theirs.list(ignore_deletes=True)] == ["empty", "theirs"]


@pytest.mark.parametrize("offset", [0, 1, CHUNK_SIZE, 2 * MB + 9, 3 * MB])
async def test_it_is_read_from_any_byte_on(bucket: Bucket, offset: int) -> None:
    data = some_bytes(3 * MB)
    blob = await bucket.store.put("name", data)
    async with bucket.store.open(blob, offset) as reader:
        assert b"".join([piece async for piece in reader]) == data[offset:]
        assert await reader.read(10) == b""


async def test_a_byte_far_behind_is_found_without_reading_all_before_it(bucket: Bucket) -> None:
    data = some_bytes(20 * MB)
    blobs = await asyncio.gather(*(bucket.store.put(f"{number}", data) for number in range(3)))  # one between the other
    for blob in blobs:
        for offset in (15 * MB, 20 * MB - 5):
            before = bucket.connection.stats["in_bytes"]
            async with bucket.store.open(blob, offset) as reader:
                assert await all_of(reader) == data[offset:]
            assert bucket.connection.stats["in_bytes"] - before < len(data) - offset + 12 * CHUNK_SIZE


async def test_a_file_that_is_stored_anew_is_read_on_from_far_behind(bucket: Bucket) -> None:
    data = some_bytes(10 * MB)
    blob = await bucket.store.put("name", data)
    async with bucket.store.open(blob) as reader:
        pieces = [await reader.read() for _ in range(40)]
        await bucket.store.put("name", data)
        before = bucket.connection.stats["in_bytes"]
        pieces.append(await all_of(reader))
        assert bucket.connection.stats["in_bytes"] - before < 7 * MB
    assert b"".join(pieces) == data


async def test_chunks_that_are_missing_before_the_byte_that_is_sought_do_not_matter(bucket: Bucket) -> None:
    data = some_bytes(10 * MB)
    blob = await bucket.store.put("name", data)
    await bucket.js.purge_stream("OBJ_B", subject="$O.B.C.>", keep=8)
    async with bucket.store.open(blob, 9 * MB) as reader:
        assert await all_of(reader) == data[9 * MB :]
    async with bucket.store.open(blob, 8 * MB) as reader:
        with pytest.raises((BlobMissing, ProtocolError)):
            await all_of(reader)


async def test_an_offset_outside_of_the_file_is_refused(bucket: Bucket) -> None:
    blob = await bucket.store.put("name", b"12345")
    for offset in (-1, 6):
        with pytest.raises(ValueError, match="from 0 to the file's size, 5"):
            async with bucket.store.open(blob, offset):
                raise AssertionError("it was opened")


async def test_pieces_are_no_larger_than_asked_for(bucket: Bucket) -> None:
    data = some_bytes(CHUNK_SIZE * 2 + 3)
    blob = await bucket.store.put("name", data)
    pieces = []
    async with bucket.store.open(blob) as reader:
        assert await reader.read(0) == b""
        while piece := await reader.read(50_000):
            pieces.append(piece)
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) == 50_000


async def test_a_file_of_100_mb_goes_to_the_store_and_back_in_little_memory(bucket: Bucket, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    block = os.urandom(MB)
    with source.open("wb") as file:
        for number in range(100):
            file.write(number.to_bytes(4) + block[4:])
    tracemalloc.start()
    try:
        blob = await bucket.store.put("large", source)
        _, to_put = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        await bucket.store.save(blob, copy)
        _, to_save = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert blob.size == 100 * MB
    assert to_put < 24 * MB and to_save < 16 * MB
    assert await asyncio.to_thread(lambda: sha256(copy.read_bytes())) == blob.sha256
    assert bucket.errors == []


async def test_a_reader_that_stops_is_not_sent_more_than_a_batch(bucket: Bucket) -> None:
    blob = await bucket.store.put("name", some_bytes(20 * MB))
    before = bucket.connection.stats["in_bytes"]
    async with bucket.store.open(blob) as reader:
        await reader.read(10)
        for _ in range(5):
            await bucket.connection.flush()
        assert bucket.connection.stats["in_bytes"] - before < 3 * MB


async def test_a_broker_that_takes_small_messages_only_gets_small_chunks() -> None:
    async with LocalBroker(config="max_payload: 16KB") as broker, opened(broker.url) as bucket:
        data = some_bytes(200_000)
        blob = await bucket.store.put("name", data)
        assert await bucket.store.read(blob, max_size=EVERYTHING) == data


# --- What is not there ------------------------------------------------------------------------------------------------


async def test_a_file_that_is_not_there_is_not_found_and_may_be_deleted(bucket: Bucket) -> None:
    assert await bucket.store.find("name") is None
    await bucket.store.delete("name")
    blob = await bucket.store.put("name", b"data")
    await bucket.store.delete("name")
    await bucket.store.delete("name")
    assert await bucket.store.find("name") is None
    assert await bucket.messages() == 1  # that it was deleted
    with pytest.raises(BlobMissing, match="it was deleted, or its time is over") as caught:
        await bucket.store.read(blob, max_size=EVERYTHING)
    assert (caught.value.bucket, caught.value.name) == ("B", "name")
    assert await bucket.store.put("name", b"data") == blob


async def test_what_replaces_a_file_removes_its_bytes(bucket: Bucket) -> None:
    first = await bucket.store.put("name", some_bytes(5 * CHUNK_SIZE))
    second = await bucket.store.put("name", some_bytes(2 * CHUNK_SIZE))
    assert await bucket.messages() == 3
    with pytest.raises(BlobMissing, match="replaced by another"):
        await bucket.store.read(first, max_size=EVERYTHING)
    assert await bucket.store.find("name") == second


async def test_of_several_writers_of_a_name_one_is_left_and_no_bytes_of_the_others(bucket: Bucket) -> None:
    async with asyncio.TaskGroup() as group:
        for size in range(1, 9):
            group.create_task(bucket.store.put("name", some_bytes(size * CHUNK_SIZE)))
    left = await bucket.store.find("name")
    assert left is not None
    assert await bucket.messages() == left.size // CHUNK_SIZE + 1
    assert len(await bucket.store.read(left, max_size=EVERYTHING)) == left.size


async def test_a_file_that_is_stored_anew_while_it_is_read_is_read_to_its_end(bucket: Bucket) -> None:
    data = some_bytes(10 * MB)
    blob = await bucket.store.put("name", data)
    async with bucket.store.open(blob, 100) as reader:
        pieces = [await reader.read()]
        assert await bucket.store.put("name", data) == blob
        pieces += [piece async for piece in reader]
    assert b"".join(pieces) == data[100:]


async def test_a_file_that_is_replaced_while_it_is_read_is_missing(bucket: Bucket) -> None:
    blob = await bucket.store.put("name", some_bytes(10 * MB))
    async with bucket.store.open(blob) as reader:
        await reader.read()
        await bucket.store.put("name", b"another")
        with pytest.raises(BlobMissing, match="replaced by another"):
            while await reader.read():
                pass


async def test_a_file_of_which_a_part_is_gone_is_missing(bucket: Bucket) -> None:
    blob = await bucket.store.put("name", some_bytes(10 * MB))
    async with bucket.store.open(blob) as reader:
        await reader.read()
        await bucket.js.purge_stream("OBJ_B", subject="$O.B.C.>")
        with pytest.raises(BlobMissing, match="a part of it was removed"):
            while await reader.read():
                pass


async def test_a_damaged_file_does_not_give_its_last_piece(bucket: Bucket) -> None:
    data = some_bytes(3 * CHUNK_SIZE)
    await bucket.store.put("name", data)
    true = read_record((await bucket.js.get_last_msg("OBJ_B", record_subject("B", "name"))).data or b"", 0, 0.0)
    for wrong, match in (
        (replace(true, sha256="00" * 32), "SHA-256"),
        (replace(true, size=3 * CHUNK_SIZE - 1), "more"),
    ):
        await bucket.js.publish(record_subject("B", "name"), write_record("B", "name", wrong))
        blob = await bucket.store.find("name")
        assert blob is not None
        async with bucket.store.open(blob) as reader:
            assert await reader.read() + await reader.read() == data[: 2 * CHUNK_SIZE]
            with pytest.raises(ProtocolError, match=f"is damaged: .*{match}"):
                await reader.read()


async def test_a_file_that_is_too_large_is_not_read(bucket: Bucket) -> None:
    blob = await bucket.store.put("name", b"12345")
    with pytest.raises(ProtocolError, match="has 5 bytes, more than max_size, 4"):
        await bucket.store.read(blob, max_size=4)


async def test_a_failed_save_leaves_what_stood_there(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(BlobMissing):
        await bucket.store.save(Blob("B", "name", 5, "00" * 32), tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


async def test_a_source_that_cannot_be_read_is_told_at_once(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await bucket.store.put("name", tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        await bucket.store.put("name", tmp_path)
    assert await bucket.messages() == 0


# --- Once per content -------------------------------------------------------------------------------------------------


async def test_content_that_is_there_is_not_sent_again(bucket: Bucket) -> None:
    data = some_bytes(MB)
    blob = await bucket.store.put_once(sha256(data), data)
    assert blob == Blob("B", sha256(data), MB, sha256(data))
    before = bucket.connection.stats["out_bytes"]
    assert await bucket.store.put_once(sha256(data), data) == blob
    assert bucket.connection.stats["out_bytes"] - before < 1000


async def test_content_that_several_want_at_once_is_sent_once(bucket: Bucket) -> None:
    data = some_bytes(MB)
    before = bucket.connection.stats["out_bytes"]
    blobs = await asyncio.gather(*(bucket.store.put_once(sha256(data), data) for _ in range(50)))
    assert len(set(blobs)) == 1
    assert bucket.connection.stats["out_bytes"] - before < MB + 10_000
    assert bucket.store._turns == {}


async def test_when_the_one_who_sends_is_cancelled_the_next_one_sends_its_own(bucket: Bucket) -> None:
    data = some_bytes(4 * MB)
    gate = Gate(data)
    first = asyncio.create_task(bucket.store.put_once(sha256(data), gate))
    await gate.reached.wait()
    second = asyncio.create_task(bucket.store.put_once(sha256(data), data))
    await asyncio.sleep(0)
    first.cancel()
    gate.open()
    blob = await second
    assert first.cancelled()
    assert await bucket.store.read(blob, max_size=EVERYTHING) == data
    assert await bucket.messages() == 4 * MB // CHUNK_SIZE + 1


async def test_content_that_is_not_what_was_said_is_refused_and_removed(bucket: Bucket) -> None:
    with pytest.raises(ValueError, match="did the file change"):
        await bucket.store.put_once("00" * 32, b"data")
    assert await bucket.messages() == 0


async def test_content_of_which_a_part_is_gone_is_sent_again(bucket: Bucket) -> None:
    data = some_bytes(MB)
    blob = await bucket.store.put_once(sha256(data), data)
    await bucket.js.purge_stream("OBJ_B", subject="$O.B.C.>", keep=1)
    assert await bucket.store.put_once(sha256(data), data) == blob
    assert await bucket.store.read(blob, max_size=EVERYTHING) == data


async def test_content_of_which_half_the_time_is_over_is_sent_again(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = some_bytes(MB)
    now = time.time
    async with opened(broker.url, ttl=3600.0) as bucket:
        await bucket.store.put_once(sha256(data), data)
        for age, sent in ((1700, 0), (1900, MB)):
            monkeypatch.setattr(time, "time", lambda age=age: now() + age)
            before = bucket.connection.stats["out_bytes"]
            await bucket.store.put_once(sha256(data), data)
            assert sent <= bucket.connection.stats["out_bytes"] - before < sent + 10_000
        assert await bucket.messages() == MB // CHUNK_SIZE + 1


# --- Refused ----------------------------------------------------------------------------------------------------------


async def test_a_full_bucket_is_told_at_once_and_keeps_nothing_of_the_file(broker: LocalBroker) -> None:
    async with opened(broker.url, max_bytes=MB) as bucket:
        with pytest.raises(StoreFull, match="object store B takes no more .*maximum bytes"):
            await bucket.store.put("name", some_bytes(3 * MB))
        assert await bucket.messages() == 0


async def test_a_full_disk_of_the_broker_is_told_at_once() -> None:
    async with LocalBroker(config="jetstream { max_file_store: 1MB }") as broker, opened(broker.url) as bucket:
        with pytest.raises(StoreFull, match="takes no more"):
            await bucket.store.put("name", some_bytes(3 * MB))


async def test_a_bucket_that_is_not_there_is_told_at_once(broker: LocalBroker) -> None:
    async with connected(broker.url) as connection:
        store = FileStore(AsIs(connection), "NONE")
        for attempt in (store.put("name", b"x"), store.find("name"), store.put_once("00" * 32, b"x")):
            with pytest.raises(BrokerError, match="nats://shown said no: it has no object store NONE"):
                await attempt


async def test_a_closed_connection_is_told_at_once(bucket: Bucket) -> None:
    blob = await bucket.store.put("name", some_bytes(5 * MB))
    async with bucket.store.open(blob) as reader:
        await reader.read()
        await bucket.connection.close()
        with pytest.raises(ClientClosed):
            await all_of(reader)
    with pytest.raises(ClientClosed):
        await bucket.store.put("name", b"x")


# --- Brokers that die -------------------------------------------------------------------------------------------------


async def test_a_file_is_stored_though_the_broker_is_killed_in_the_middle(broker: LocalBroker, bucket: Bucket) -> None:
    data = some_bytes(30 * MB)
    gate = Gate(data)
    task = asyncio.create_task(bucket.store.put("name", gate))
    await gate.reached.wait()
    await broker.kill()
    gate.open()
    await broker.restart()
    blob = await task
    assert await bucket.store.read(blob, max_size=EVERYTHING) == data
    assert await bucket.messages() == 30 * MB // CHUNK_SIZE + 1


async def test_a_file_is_read_though_the_broker_is_killed_in_the_middle(broker: LocalBroker, bucket: Bucket) -> None:
    data = some_bytes(30 * MB)
    blob = await bucket.store.put("name", data)
    async with bucket.store.open(blob) as reader:
        pieces = [await reader.read() for _ in range(100)]
        await broker.kill()
        rest = asyncio.create_task(all_of(reader))
        await broker.restart()
        assert b"".join([*pieces, await rest]) == data
    assert (await bucket.leftovers())[1:] == (0, [])


async def all_of(reader: Any) -> bytes:
    return b"".join([piece async for piece in reader])


async def test_files_are_stored_and_read_though_the_broker_is_killed_again_and_again(
    broker: LocalBroker, bucket: Bucket
) -> None:
    data = some_bytes(8 * MB)

    async def there_and_back(number: int) -> None:
        blob = await bucket.store.put(f"{number}", data)
        assert await bucket.store.read(blob, max_size=EVERYTHING) == data

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(there_and_back(number)) for number in range(6)]
        for _ in range(4):
            await asyncio.sleep(50 * MS)
            await broker.restart()
    assert all(task.done() for task in tasks)
    assert await bucket.messages() == 6 * (8 * MB // CHUNK_SIZE + 1)


@pytest.mark.parametrize("how", ["killed", "silent"])
async def test_a_broker_that_does_not_come_back_is_given_up(
    broker: LocalBroker, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row, "_ARRIVAL", 50 * MS)
    monkeypatch.setattr(catalog, "_CLEAN_UP", 50 * MS)
    async with opened(broker.url, silence=50 * MS, patience=150 * MS) as bucket:
        data = some_bytes(5 * MB)
        blob = await bucket.store.put("name", data)
        async with bucket.store.open(blob) as reader:
            await reader.read()
            if how == "killed":
                await broker.kill()
            else:
                assert broker.pid is not None
                os.kill(broker.pid, signal.SIGSTOP)
            for attempt in (all_of(reader), bucket.store.find("x"), bucket.store.put("x", data)):
                with pytest.raises(ServerUnreachable, match="no answer from nats://shown: .*is nats-server running"):
                    await attempt
        await broker.kill()  # nats-py's close() waits for one that is silent


async def test_a_new_connection_is_taken_when_the_old_one_is_closed_for_good(broker: LocalBroker) -> None:
    data = some_bytes(10 * MB)
    async with opened(broker.url) as bucket, connected(broker.url) as another:
        link = AsIs(bucket.connection)
        store = FileStore(link, "B", silence=2000 * MS)
        first = await store.put("first", data)
        gate = Gate(data)
        task = asyncio.create_task(store.put("second", gate))
        async with store.open(first) as reader:
            pieces = [await reader.read()]
            await gate.reached.wait()
            link.nc, link.js = another, another.jetstream()
            await bucket.connection.close()
            gate.open()
            assert b"".join([*pieces, await all_of(reader)]) == data
        assert await store.read(await task, max_size=EVERYTHING) == data


async def test_an_answer_that_is_lost_is_asked_for_again(broker: LocalBroker) -> None:
    async with opened(broker.url, silence=100 * MS) as bucket:
        data = some_bytes(5 * MB)
        blob = await bucket.store.put("name", data)
        ask = bucket.connection.publish
        lost: list[str] = []

        async def lose_some(subject: str, payload: bytes = b"", **more: Any) -> None:
            if "DIRECT.GET" in subject and len(lost) % 2 == 0:
                lost.append(subject)
                return
            lost.append("")
            await ask(subject, payload, **more)

        bucket.connection.publish = lose_some  # type: ignore[method-assign,assignment]
        assert await bucket.store.read(blob, max_size=EVERYTHING) == data
        assert len(lost) > 2


async def test_a_cluster_that_loses_a_server_stores_and_reads_on() -> None:
    data = some_bytes(20 * MB)
    async with LocalCluster(3) as cluster, opened(*cluster.urls, replicas=3) as bucket:
        leader = (await bucket.js.stream_info("OBJ_B")).cluster
        assert leader is not None and leader.leader is not None
        first = await bucket.store.put("first", data)
        gate = Gate(data)
        task = asyncio.create_task(bucket.store.put("second", gate))
        async with bucket.store.open(first) as reader:
            pieces = [await reader.read() for _ in range(20)]
            await gate.reached.wait()
            await cluster.kill(next(number for number in range(3) if f"n{number}" != leader.leader))
            gate.open()
            assert b"".join([*pieces, await all_of(reader)]) == data
        second = await task
        assert await bucket.store.read(second, max_size=EVERYTHING) == data


# --- Cancelling -------------------------------------------------------------------------------------------------------


async def test_a_cancelled_put_leaves_nothing(bucket: Bucket) -> None:
    await bucket.store.put("other", b"x")
    before = await bucket.leftovers()
    gate = Gate(some_bytes(6 * MB))
    task = asyncio.create_task(bucket.store.put("name", gate))
    await gate.reached.wait()
    task.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await bucket.messages() == 2
    assert await bucket.store.find("name") is None
    assert await bucket.leftovers() == before
    assert bucket.errors == []


async def test_one_of_two_readers_is_cancelled_and_the_other_reads_on(bucket: Bucket) -> None:
    data = some_bytes(8 * MB)
    blob = await bucket.store.put("name", data)
    before = await bucket.leftovers()
    begun = asyncio.Event()

    async def read_and_wait() -> None:
        async with bucket.store.open(blob) as reader:
            await reader.read()
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(read_and_wait())
    async with bucket.store.open(blob) as reader:
        pieces = [await reader.read()]
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b"".join([*pieces, await all_of(reader)]) == data
    assert await bucket.leftovers() == before
    assert bucket.errors == []


async def test_a_cancelled_save_leaves_no_file(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = await bucket.store.put("name", some_bytes(5 * MB))
    before = await bucket.leftovers()
    taken = asyncio.Event()
    take = store_module.BlobReader._take

    def take_and_tell(self: Any, chunk: bytes) -> None:
        take(self, chunk)
        if self._at > 2 * MB:
            taken.set()

    monkeypatch.setattr(store_module.BlobReader, "_take", take_and_tell)
    task = asyncio.create_task(bucket.store.save(blob, tmp_path / "file"))
    await taken.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not os.listdir(tmp_path))
    assert await bucket.leftovers() == before


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5000 * MS):
        while not condition():  # noqa: ASYNC110  # a thread that was not waited for does it
            await asyncio.sleep(MS)


# --- Records ----------------------------------------------------------------------------------------------------------

RECORDS = st.builds(
    Record,
    nuid=st.text(min_size=1),
    size=st.integers(0, 1 << 50),
    chunks=st.integers(0, 1 << 40),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@given(RECORDS, st.text())
def test_a_record_is_read_as_it_was_written(record: Record, name: str) -> None:
    assert read_record(write_record("B", name, record), 0, 0.0) == record


@given(
    st.binary()
    | st.dictionaries(
        st.sampled_from(["deleted", "digest", "nuid", "size", "chunks"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.sampled_from(["SHA-256=", "SHA-256=a", "SHA-256=aa=="]),
    ).map(lambda found: json.dumps(found).encode())
)
def test_any_bytes_are_a_record_or_a_protocol_error(message: bytes) -> None:
    with suppress(ProtocolError):
        assert isinstance(read_record(message, 1, 2.0), Record)


def test_a_deleted_file_has_no_chunks() -> None:
    assert read_record(write_record("B", "name", Record("nuid")), 5, 7.0) == Record(sequence=5, stored=7.0)
    assert chunk_subject("B", "n") == "$O.B.C.n"
