"""What a prompt gave: outputs by kind and order, their bytes, and saving them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import PIL
import pytest
from aiohttp import web
from PIL import Image

import acomfy
from acomfy.api import Api
from acomfy.errors import AuthenticationError, ClientClosed, HTTPError, OutputMissing, ServerUnreachable
from acomfy.outputs import Produced, StreamedImage, produced_by
from acomfy.result import Output, Result, ServerSource
from acomfy.retry import RetryPolicy
from acomfy.simulator import SimulatedServer, odd_nodes
from acomfy.transport import Transport

from .graphs import color_of, saved, streamed
from .shell import Gates, client, eventually, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["Gates", "client", "gates", "server"]

PROMPT_ID = "3f2a0000-1111-4222-8333-444455556666"
GRAPH: dict[str, Any] = {
    "9": {"class_type": "SaveImage", "inputs": {}, "_meta": {"title": "The picture"}},
    "3": {"class_type": "PreviewAny", "inputs": {"seed": 2**70, "odd": "\ud800"}},
    "5": {"class_type": "SaveImageWebsocket", "inputs": {}},
}


def png(color: int = 0x336699, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (color >> 16, color >> 8 & 255, color & 255)).save(buffer, "png")
    return buffer.getvalue()


Answer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


class FileServer:
    """A server of files at ``/view``, whose next answers can be made to fail.

    Attributes:
        files: Their bytes, by (type, subfolder, filename).
        next: How the next requests are answered, if not with the file.
        asked: The query of every request.
        most: How many requests were under way at once, at the most.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.next: list[Answer] = []
        self.asked: list[dict[str, str]] = []
        self.under_way = self.most = 0
        self.url = ""

    async def view(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append(query)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            data = self.files.get((query["type"], query["subfolder"], query["filename"]))
            if data is None:
                return web.Response(status=404)
            if self.next:
                return await self.next.pop(0)(request, data)
            return web.Response(body=data)
        finally:
            self.under_way -= 1

    def holds(self, filename: str, data: bytes, subfolder: str = "", type: str = "output") -> None:
        self.files[type, subfolder, filename] = data


def status(number: int) -> Answer:
    async def answer(request: web.Request, data: bytes) -> web.StreamResponse:
        return web.Response(status=number, text="no")

    return answer


async def cut(request: web.Request, data: bytes) -> web.StreamResponse:
    """Break the connection in the middle of the body."""
    response = web.StreamResponse(headers={"Content-Length": str(len(data))})
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    assert request.transport is not None
    request.transport.abort()
    return response


async def cut_chunked(request: web.Request, data: bytes) -> web.StreamResponse:
    """Break it in a body whose length was not told."""
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def cut_at_once(request: web.Request, data: bytes) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class Hold:
    """Send half of the body, and the rest when it is told to."""

    def __init__(self) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: web.Request, data: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        self.reached.set()
        await self.go_on.wait()
        await response.write(data[len(data) // 2 :])
        return response


@pytest.fixture
async def files() -> AsyncIterator[FileServer]:
    files = FileServer()
    app = web.Application()
    app.router.add_get("/view", files.view)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    files.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield files
    await runner.cleanup()


@pytest.fixture
async def source(files: FileServer) -> AsyncIterator[ServerSource]:
    async with aiohttp.ClientSession() as session:
        api = Api(
            Transport(
                files.url, lambda: session, connect_timeout=5.0, read_timeout=5.0, retry=RetryPolicy(first_delay=0.0)
            )
        )
        yield ServerSource(PROMPT_ID, json.dumps(GRAPH).encode(), api, asyncio.Semaphore(4))


def entry(filename: str, subfolder: str = "", type: str = "output", **more: Any) -> dict[str, Any]:
    return {"filename": filename, "subfolder": subfolder, "type": type, **more}


def result_of(source: ServerSource, *produced: Produced, **ui: Any) -> Result:
    return Result(source, [*produced, *produced_by("9", ui)], {"9": ui}, None)


def saved_file(
    source: ServerSource, filename: str = "a_00001_.png", subfolder: str = "", type: str = "output"
) -> Output:
    return result_of(source, images=[entry(filename, subfolder, type)]).outputs[0]


def streamed_image(source: ServerSource, data: bytes, index: int = 0, media_type: str = "image/png") -> Output:
    return result_of(source, StreamedImage("5", index, memoryview(data), media_type)).outputs[0]


def text(source: ServerSource, text: str) -> Output:
    return result_of(source, text=[text]).outputs[0]


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def in_directory(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


# --- What there is -------------------------------------------------------------------------------------------------


async def test_outputs_are_sorted_by_what_they_are_and_not_by_their_key(source: ServerSource) -> None:
    result = result_of(
        source,
        images=[entry("a.png"), entry("b.mp4"), entry("c.png", type="temp"), entry("d.png", type="input")],
        gifs=[entry("e.gif"), entry("f.webm")],
        audio=[entry("g.flac")],
        result=[entry("h.glb"), entry("i.xyz"), entry("j.txt")],
        text=["some text"],
        number=[1.5],
    )
    found = {
        kind: [output.filename or output.text for output in getattr(result, kind)]
        for kind in ("images", "videos", "audio", "texts", "files", "temp")
    }
    assert found == {
        "images": ["a.png", "e.gif"],
        "videos": ["b.mp4", "f.webm"],
        "audio": ["g.flac"],
        "texts": ["some text"],
        "files": ["h.glb", "i.xyz", "j.txt"],
        "temp": ["c.png"],
    }
    assert [output.kind for output in result] == [
        *("image", "video", "image", "image", "image", "video", "audio", "file", "file", "file", "text")
    ]
    assert len(result) == 11 and len(result["9"]) == 11
    assert result.raw["9"]["number"] == [1.5]


async def test_outputs_stand_in_the_order_of_the_graph_and_not_of_arrival(source: ServerSource) -> None:
    produced: list[Produced] = [
        *produced_by("3", {"text": ["x"]}),
        StreamedImage("5", 0, memoryview(b"a"), "image/png"),
        StreamedImage("5", 1, memoryview(b"b"), "image/png"),
        *produced_by("9", {"images": [entry("2.png"), entry("1.png")]}),
    ]
    result = Result(source, produced, {}, ["3"])
    assert [output.node_id for output in result] == ["9", "9", "3", "5", "5"]
    assert [output.filename for output in result.images] == [
        *("2.png", "1.png", "3f2a0000_5_00000.png", "3f2a0000_5_00001.png")
    ]
    assert result.cached_nodes == ("3",) and result.prompt_id == PROMPT_ID


async def test_a_node_gives_its_outputs_or_none_or_is_not_in_the_prompt(source: ServerSource) -> None:
    result = result_of(source, images=[entry("a.png", type="temp")], text=["x"])
    assert [output.kind for output in result["9"]] == ["image", "text"]
    assert result["3"] == []
    with pytest.raises(KeyError, match="'33'"):
        result["33"]


async def test_a_result_without_outputs_is_true(source: ServerSource) -> None:
    result = Result(source, [], {}, None)
    assert result and len(result) == 0 and list(result) == [] and result.cached_nodes is None
    assert result.images == result.temp == ()


async def test_an_output_knows_its_node(source: ServerSource) -> None:
    output = saved_file(source)
    assert (output.node_id, output.class_type, output.title) == ("9", "SaveImage", "The picture")
    assert (text(source, "x").title, streamed_image(source, b"").class_type) == ("The picture", "SaveImageWebsocket")
    stranger = Result(source, list(produced_by("77", {"text": ["x"]})), {}, None).texts[0]
    assert (stranger.class_type, stranger.title) == (None, None)


async def test_a_file_keeps_what_the_server_said_of_it(source: ServerSource) -> None:
    said = entry("a.webp", "sub/dir", "temp", format="image/webp", fps=8)
    output = result_of(source, images=[said], animated=[True]).outputs[0]
    assert (output.key, output.filename, output.subfolder, output.type) == ("images", "a.webp", "sub/dir", "temp")
    assert (output.media_type, output.animated, output.streamed, output.text) == ("image/webp", True, False, None)
    assert output.raw == said


async def test_a_streamed_picture_counts_as_output(source: ServerSource) -> None:
    output = streamed_image(source, png(), 3, "image/jpeg")
    assert (output.key, output.subfolder, output.type, output.kind) == ("images", "", "output", "image")
    assert (output.filename, output.streamed, output.raw) == ("3f2a0000_5_00003.jpg", True, {})


async def test_outputs_compare_by_value(source: ServerSource) -> None:
    def made() -> list[Output]:
        outputs = [saved_file(source), saved_file(source, "b.png"), saved_file(source, type="temp")]
        outputs += [saved_file(source, subfolder="x"), text(source, "x"), text(source, "y")]
        return [*outputs, streamed_image(source, b"a"), streamed_image(source, b"b"), streamed_image(source, b"a", 1)]

    one, two = made(), made()
    assert one == two and [hash(output) for output in one] == [hash(output) for output in two]
    assert len(set(one)) == len(one) == len(set(one + two))
    assert one[0] != "a_00001_.png"


async def test_a_repr_is_one_line_without_bytes_or_text(source: ServerSource) -> None:
    assert repr(saved_file(source)) == "<Output image 'a_00001_.png' of node 9>"
    assert repr(text(source, "secret\ntext")) == "<Output text of node 9, 11 characters>"
    assert repr(streamed_image(source, b"secret")) == "<Output image '3f2a0000_5_00000.png' of node 5, 6 bytes>"
    assert repr(result_of(source, text=["x"])) == f"<Result of prompt {PROMPT_ID}: 1 outputs>"


# --- Their bytes ---------------------------------------------------------------------------------------------------


async def test_a_file_is_read_from_its_own_place(files: FileServer, source: ServerSource) -> None:
    odd = "a b&c=d%20+ü🦊.png"
    files.holds(odd, b"odd", "sub dir/ü", "temp")
    assert await saved_file(source, odd, "sub dir/ü", "temp").read() == b"odd"
    assert files.asked == [{"filename": odd, "subfolder": "sub dir/ü", "type": "temp"}]


async def test_streamed_pictures_and_texts_are_read_without_the_server(files: FileServer, source: ServerSource) -> None:
    assert await streamed_image(source, b"bytes").read() == b"bytes"
    assert await text(source, "ü🦊").read() == "ü🦊".encode()
    assert await text(source, "\ud800").read() == b"\xed\xa0\x80"
    assert files.asked == []


async def test_a_picture_is_decoded(files: FileServer, source: ServerSource) -> None:
    files.holds("a_00001_.png", png(0x112233))
    for output in (saved_file(source), streamed_image(source, png(0x112233))):
        image = await output.image()
        assert image.size == (8, 8) and image.getpixel((3, 3)) == (0x11, 0x22, 0x33)


async def test_what_is_no_whole_picture_is_pillows_own_error(source: ServerSource) -> None:
    with pytest.raises(PIL.UnidentifiedImageError):
        await text(source, "no picture").image()
    with pytest.raises(OSError, match="truncated"):
        await streamed_image(source, png(size=64)[:-30]).image()


async def test_pillows_limits_against_bombs_hold(source: ServerSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(Image.DecompressionBombError):
        await streamed_image(source, png()).image()


READS: list[Callable[[Output, Path], Awaitable[Any]]] = [
    lambda output, directory: output.read(),
    lambda output, directory: output.save(directory),
    lambda output, directory: output.image(),
]
reads = pytest.mark.parametrize("read", READS, ids=["read", "save", "image"])


@reads
@pytest.mark.parametrize("failure", [cut, cut_chunked, cut_at_once, *map(status, (429, 502, 503, 504))])
async def test_a_read_that_breaks_is_tried_again_until_it_is_whole(
    files: FileServer, source: ServerSource, tmp_path: Path, read: Any, failure: Answer
) -> None:
    data = png(size=64)
    files.holds("a_00001_.png", data)
    files.next = [failure] * 3
    whole = await read(saved_file(source), tmp_path)
    if isinstance(whole, Path):
        assert in_directory(tmp_path) == {"a_00001_.png": data}
    elif isinstance(whole, bytes):
        assert whole == data
    else:
        assert whole.size == (64, 64)
    assert len(files.asked) == 4


@reads
async def test_after_four_tries_the_last_failure_is_raised(
    files: FileServer, source: ServerSource, tmp_path: Path, read: Any
) -> None:
    files.holds("a_00001_.png", png())
    files.next = [cut, status(502), cut, status(503)]
    with pytest.raises(HTTPError, match="503"):
        await read(saved_file(source), tmp_path)
    files.next = [cut] * 4
    with pytest.raises(ServerUnreachable):
        await read(saved_file(source), tmp_path)
    assert len(files.asked) == 8
    assert in_directory(tmp_path) == {}


async def test_the_pauses_between_tries_grow_and_vary(
    files: FileServer, source: ServerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RetryPolicy.delay, "__defaults__", (lambda: 1.0,))
    monkeypatch.setattr(source, "retry", RetryPolicy())
    slept: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(delay: float) -> None:
        slept.append(delay)
        await real_sleep(0)

    monkeypatch.setattr("acomfy.download.asyncio.sleep", sleep)
    files.holds("a_00001_.png", png())
    files.next = [status(502)] * 4
    with pytest.raises(HTTPError):
        await saved_file(source).read()
    assert slept == pytest.approx([0.2, 0.6, 1.8])


@reads
async def test_a_server_that_is_away_is_unreachable(source: ServerSource, tmp_path: Path, read: Any) -> None:
    async with aiohttp.ClientSession() as session:
        nobody = ServerSource(
            PROMPT_ID, b"{}", Api(Transport("http://127.0.0.1:9", lambda: session)), asyncio.Semaphore(1)
        )
        with pytest.raises(ServerUnreachable):
            await read(saved_file(nobody), tmp_path)
    assert in_directory(tmp_path) == {}


@reads
async def test_a_file_that_is_gone_is_missing_by_name(
    files: FileServer, source: ServerSource, tmp_path: Path, read: Any
) -> None:
    with pytest.raises(OutputMissing, match=r"file 'gone\.png' of node 9 is gone from the server") as missing:
        await read(saved_file(source, "gone.png"), tmp_path / "out")
    assert (missing.value.prompt_id, missing.value.node_id) == (PROMPT_ID, "9")
    assert (missing.value.filename, missing.value.received) == ("gone.png", ())
    assert isinstance(missing.value.__cause__, HTTPError)
    assert len(files.asked) == 1
    assert names(tmp_path) == []


@reads
@pytest.mark.parametrize(
    ("number", "error"), [(400, HTTPError), (500, HTTPError), (401, AuthenticationError), (403, AuthenticationError)]
)
async def test_a_refusal_is_raised_at_once(
    files: FileServer, source: ServerSource, tmp_path: Path, read: Any, number: int, error: type[HTTPError]
) -> None:
    files.holds("a_00001_.png", png())
    files.next = [status(number)]
    with pytest.raises(error) as refusal:
        await read(saved_file(source), tmp_path)
    assert refusal.value.status == number
    assert len(files.asked) == 1


async def test_no_more_files_are_read_at_once_than_are_allowed(files: FileServer, source: ServerSource) -> None:
    everybody = asyncio.Barrier(4)

    async def meet(request: web.Request, data: bytes) -> web.StreamResponse:
        await everybody.wait()
        return web.Response(body=data)

    files.holds("a_00001_.png", b"data")
    files.next = [meet] * 12
    assert await asyncio.gather(*(saved_file(source).read() for _ in range(12))) == [b"data"] * 12
    assert files.most == 4


async def test_a_pause_between_tries_holds_no_place(files: FileServer, source: ServerSource) -> None:
    source.transfers = asyncio.Semaphore(1)
    files.holds("a_00001_.png", b"data")
    files.next = [cut] * 3
    assert await asyncio.gather(*(saved_file(source).read() for _ in range(3))) == [b"data"] * 3
    assert not source.transfers.locked()


# --- Saving --------------------------------------------------------------------------------------------------------


async def test_a_file_is_saved_under_its_name(files: FileServer, source: ServerSource, tmp_path: Path) -> None:
    files.holds("a_00001_.png", b"data", "deep/er")
    assert await saved_file(source, subfolder="deep/er").save(tmp_path / "out") == tmp_path / "out" / "a_00001_.png"
    assert await saved_file(source, subfolder="deep/er").save(f"{tmp_path}/mine.png") == tmp_path / "mine.png"
    assert in_directory(tmp_path / "out") == {"a_00001_.png": b"data"}


async def test_streamed_pictures_and_texts_are_saved(source: ServerSource, tmp_path: Path) -> None:
    assert await streamed_image(source, b"data").save(tmp_path) == tmp_path / "3f2a0000_5_00000.png"
    assert await text(source, "ü").save(tmp_path) == tmp_path / "9.txt"
    assert in_directory(tmp_path) == {"3f2a0000_5_00000.png": b"data", "9.txt": "ü".encode()}


async def test_nothing_is_overwritten_unless_that_is_wanted(source: ServerSource, tmp_path: Path) -> None:
    output = text(source, "new")
    (tmp_path / "9.txt").write_text("old")
    assert await output.save(tmp_path) == tmp_path / "9 (1).txt"
    assert await output.save(tmp_path, overwrite=True) == tmp_path / "9.txt"
    assert in_directory(tmp_path) == {"9.txt": b"new", "9 (1).txt": b"new"}


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "..", "x\x00.png"])
async def test_a_name_from_the_server_cannot_leave_the_directory(
    files: FileServer, source: ServerSource, tmp_path: Path, name: str
) -> None:
    files.holds(name, b"data")
    path = await saved_file(source, name).save(tmp_path / "out")
    assert path.resolve().parent == (tmp_path / "out").resolve()
    assert names(tmp_path) == ["out"]
    assert in_directory(tmp_path / "out") == {path.name: b"data"}


@pytest.mark.parametrize("size", [0, 1, 1 << 18, 5_000_001])
async def test_a_file_of_any_size_is_saved_whole(
    files: FileServer, source: ServerSource, tmp_path: Path, size: int
) -> None:
    data = os.urandom(size)
    files.holds("a_00001_.png", data)
    assert (await saved_file(source).save(tmp_path)).read_bytes() == data


async def test_a_file_is_not_seen_under_its_name_before_it_is_whole(
    files: FileServer, source: ServerSource, tmp_path: Path
) -> None:
    hold = Hold()
    files.holds("a_00001_.png", b"data" * 1_000_000)
    files.next = [hold]
    saving = asyncio.ensure_future(saved_file(source).save(tmp_path))
    await hold.reached.wait()
    await eventually(lambda: names(tmp_path) != [])
    assert [name.endswith(".part") for name in names(tmp_path)] == [True]
    hold.go_on.set()
    assert await saving == tmp_path / "a_00001_.png"
    assert in_directory(tmp_path) == {"a_00001_.png": b"data" * 1_000_000}


async def test_what_the_disk_refuses_is_an_os_error_and_no_fault_of_the_server(
    files: FileServer, source: ServerSource, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    files.holds("a_00001_.png", b"data")
    for output in (saved_file(source), streamed_image(source, b"data"), text(source, "x")):
        with pytest.raises(OSError):
            await output.save(tmp_path / "file" / "below")
    assert len(files.asked) == 1
    assert in_directory(tmp_path) == {"file": b""}
    assert not source.transfers.locked()


async def test_a_result_saves_its_files_and_pictures_in_order(
    files: FileServer, source: ServerSource, tmp_path: Path
) -> None:
    filenames = [f"{number}.png" for number in range(100)]
    for name in filenames:
        files.holds(name, name.encode())
    files.holds("3.png", b"the other", "sub")
    result = result_of(
        source,
        StreamedImage("5", 0, memoryview(b"streamed"), "image/png"),
        images=[*map(entry, filenames), entry("3.png", "sub"), entry("t.png", type="temp")],
        text=["left out"],
    )
    paths = await result.save(tmp_path / "new.dir")
    assert len(set(paths)) == 102
    contents = [path.read_bytes() for path in paths]
    assert contents == [*(name.encode() for name in filenames), b"the other", b"streamed"]
    assert sorted(path.name for path in (paths[3], paths[100])) == ["3 (1).png", "3.png"]
    assert len(in_directory(tmp_path / "new.dir")) == 102
    for directory in ("new.dir", "new.dir", "other"):
        paths = await result.save(str(tmp_path / directory), overwrite=True)
        assert [path.read_bytes() for path in paths] == contents
        assert [path.name for path in (paths[3], paths[100])] == ["3.png", "3 (1).png"]
        assert len(in_directory(tmp_path / directory)) == 102


async def test_a_result_without_files_saves_nothing(source: ServerSource, tmp_path: Path) -> None:
    assert await result_of(source, text=["x"]).save(tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


async def test_a_file_that_cannot_be_saved_stops_the_others(
    files: FileServer, source: ServerSource, tmp_path: Path
) -> None:
    hold = Hold()

    async def refuse(request: web.Request, data: bytes) -> web.StreamResponse:
        await hold.reached.wait()
        return web.Response(status=404)

    files.next = [hold, refuse]
    files.holds("a.png", b"data" * 1000)
    files.holds("b.png", b"data")
    with pytest.raises(OutputMissing, match=r"b\.png"):
        await result_of(source, images=[entry("a.png"), entry("b.png")]).save(tmp_path)
    assert in_directory(tmp_path) == {}


# --- Cancelling ----------------------------------------------------------------------------------------------------


async def cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@reads
async def test_a_read_can_be_cancelled_while_the_server_sends(
    files: FileServer, source: ServerSource, tmp_path: Path, read: Any
) -> None:
    hold = Hold()
    files.holds("a_00001_.png", b"data" * 1000)
    files.next = [hold]
    task = asyncio.ensure_future(read(saved_file(source), tmp_path))
    await hold.reached.wait()
    await cancelled(task)
    assert in_directory(tmp_path) == {}
    assert not source.transfers.locked()
    hold.go_on.set()


@reads
async def test_a_read_can_be_cancelled_while_it_waits_its_turn(
    files: FileServer, source: ServerSource, tmp_path: Path, read: Any
) -> None:
    source.transfers = asyncio.Semaphore(0)
    task = asyncio.ensure_future(read(saved_file(source), tmp_path))
    await asyncio.sleep(0)
    await cancelled(task)
    assert files.asked == []


def outputs_of(source: ServerSource, files: FileServer) -> list[Output]:
    data = b"data" * 50_000
    files.holds("a_00001_.png", data)
    return [saved_file(source), streamed_image(source, data), text(source, "data")]


@pytest.mark.parametrize("which", range(3), ids=["file", "streamed", "text"])
@pytest.mark.parametrize("overwrite", [False, True])
async def test_a_save_that_is_cancelled_as_the_file_is_put_in_its_place_leaves_nothing_half(
    files: FileServer,
    source: ServerSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    which: int,
    overwrite: bool,
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    function = "replace" if overwrite else "link"
    real = getattr(os, function)

    def slow(*args: Any) -> None:
        reached.set()
        assert go_on.wait(10)
        real(*args)

    monkeypatch.setattr(os, function, slow)
    output = outputs_of(source, files)[which]
    task = asyncio.ensure_future(output.save(tmp_path, overwrite=overwrite))
    await asyncio.to_thread(reached.wait, 10)
    task.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    left = in_directory(tmp_path)
    assert left == ({output.filename or "9.txt": await output.read()} if overwrite else {})


@pytest.mark.parametrize("which", range(3), ids=["file", "streamed", "text"])
async def test_a_save_that_is_cancelled_twice_leaves_nothing_when_its_thread_has_ended(
    files: FileServer, source: ServerSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    real = os.link

    def slow(*args: Any) -> None:
        reached.set()
        assert go_on.wait(10)
        real(*args)

    monkeypatch.setattr(os, "link", slow)
    task = asyncio.ensure_future(outputs_of(source, files)[which].save(tmp_path))
    await asyncio.to_thread(reached.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await eventually(lambda: names(tmp_path) == [])


@pytest.mark.parametrize("which", range(3), ids=["file", "streamed", "text"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_save_that_is_cancelled_at_any_step_leaves_nothing(
    files: FileServer, source: ServerSource, tmp_path: Path, which: int, times: int
) -> None:
    cut_off = 0
    for steps in range(80):
        directory = tmp_path / str(steps)
        task = asyncio.ensure_future(outputs_of(source, files)[which].save(directory))
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        if not task.cancelled():
            (await task).unlink()
        elif times == 1:
            assert in_directory(directory) == {}
        cut_off += task.cancelled()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert cut_off > 10
    assert [name for name in names(tmp_path) if names(tmp_path / name)] == []
    assert not source.transfers.locked()


async def test_a_result_whose_saving_is_cancelled_leaves_no_partial_file(
    files: FileServer, source: ServerSource, tmp_path: Path
) -> None:
    for number in range(20):
        files.holds(f"{number}.png", b"data" * 1000)
    hold = Hold()
    files.next = [hold] * 4
    task = asyncio.ensure_future(result_of(source, images=[entry(f"{n}.png") for n in range(20)]).save(tmp_path))
    await hold.reached.wait()
    await cancelled(task)
    assert in_directory(tmp_path) == {}
    hold.go_on.set()


# --- Over a whole run ----------------------------------------------------------------------------------------------


async def test_a_run_gives_saved_streamed_and_temporary_pictures(
    server: SimulatedServer, client: acomfy.Client, tmp_path: Path
) -> None:
    graph = saved(0x102030, batch=2)
    graph["4"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Stream"}}
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    result = await client.run(graph)
    assert [(output.node_id, output.streamed) for output in result.images] == [
        *(("2", False), ("2", False), ("4", True), ("4", True))
    ]
    assert [output.node_id for output in result.temp] == ["3", "3"]
    assert result["1"] == []
    assert {output.title for output in result["4"]} == {"Stream"}
    assert set(result.raw) == {"2", "3"}
    paths = await result.save(tmp_path)
    assert [color_of(path.read_bytes()) for path in paths] == [0x102030] * 4


async def test_two_runs_of_one_prompt_give_equal_files(client: acomfy.Client) -> None:
    one, two = await client.run(saved(5)), await client.run(saved(5))
    assert one.images == two.images
    assert two.cached_nodes == ("1", "2")


async def test_a_cached_file_that_was_deleted_is_missing(
    server: SimulatedServer, client: acomfy.Client, tmp_path: Path
) -> None:
    await client.run(saved(5))
    for path in server.folders.paths["output"].rglob("*.png"):
        path.unlink()
    result = await client.run(saved(5))
    with pytest.raises(OutputMissing, match="cached, file gone.*change an input to run it again") as missing:
        await result.save(tmp_path)
    assert missing.value.cached is True


async def test_a_success_without_outputs_is_no_missing_file(server: SimulatedServer, client: acomfy.Client) -> None:
    server.add_node(odd_nodes.OUTPUT_WITHOUT_UI)
    graph = saved(5)
    graph["2"] = {"class_type": "OutputWithoutUi", "inputs": {"value": ["1", 0]}}
    result = await client.run(graph)
    assert (len(result), result["2"]) == (0, [])


async def test_a_file_that_was_deleted_after_it_was_made(
    server: SimulatedServer, client: acomfy.Client, tmp_path: Path
) -> None:
    result = await client.run(saved(6))
    for path in server.folders.paths["output"].rglob("*.png"):
        path.unlink()
    with pytest.raises(OutputMissing, match="deleted since") as missing:
        await result.images[0].read()
    assert missing.value.cached is False


# --- Previews, channels, metadata ----------------------------------------------------------------------------------


RENDITIONS = [("webp;75", None), ("jpeg", None), ("webp", "rgb"), ("jpeg", "a"), (None, "rgb"), (None, "a")]


@pytest.mark.parametrize(("preview", "channel"), RENDITIONS)
async def test_a_streamed_picture_is_rendered_as_the_server_does(
    client: acomfy.Client, preview: str | None, channel: str | None
) -> None:
    graph = saved(0x3060C0, size=32)
    graph["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
    file, picture = (await client.run(graph)).images
    theirs = await file.image(preview=preview, channel=channel)
    ours = await picture.image(preview=preview, channel=channel)
    assert (ours.format, ours.mode, ours.size) == (theirs.format, theirs.mode, theirs.size)
    assert ours.tobytes() == theirs.tobytes()


async def test_a_preview_is_saved_with_its_own_extension(client: acomfy.Client, tmp_path: Path) -> None:
    (output,) = (await client.run(saved(5))).images
    assert (await output.save(tmp_path, preview="webp;75")).name == "test_00001_.webp"
    assert (await output.save(tmp_path, preview="jpeg")).name == "test_00001_.jpg"
    assert (await output.save(tmp_path, channel="a")).name == "test_00001_.png"
    assert (await output.save(tmp_path / "mine.png", preview="webp")).name == "mine.png"
    chunks = [chunk async for chunk in output.stream(preview="webp;75")]
    assert b"".join(chunks) == await output.read(preview="webp;75")


async def test_a_preview_of_what_is_no_picture_is_the_servers_refusal(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    (output,) = (await client.run(saved(5))).images
    for path in server.folders.paths["output"].rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(HTTPError, match=r"500.*made of pictures alone"):
        await output.read(preview="webp")


async def test_a_text_has_no_previews(source: ServerSource, tmp_path: Path) -> None:
    for read in (text(source, "x").read(preview="webp"), text(source, "x").save(tmp_path, channel="a")):
        with pytest.raises(ValueError, match="a text has neither preview nor channels"):
            await read
    with pytest.raises(ValueError, match="preview is"):
        await streamed_image(source, png()).read(preview="png")


async def test_what_comfyui_wrote_into_a_picture_is_read_back(client: acomfy.Client) -> None:
    workflow = {"nodes": [], "version": 0.4}
    graph = saved(5)
    graph["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
    file, picture = (await client.run(graph, extra_data={"extra_pnginfo": {"workflow": workflow}})).images
    found = await file.metadata()
    assert (found.kind, found.prompt, found.workflow) == ("png", graph, workflow)
    assert (await picture.metadata()).prompt is None  # streamed pictures hold none
    assert found.prompt is not None
    assert acomfy.Workflow(found.prompt)["1"]["class_type"] == "EmptyImage"


async def test_texts_and_pictures_are_streamed_in_one_piece(source: ServerSource) -> None:
    assert [chunk async for chunk in text(source, "ü").stream()] == ["ü".encode()]
    assert [chunk async for chunk in streamed_image(source, b"data").stream()] == [b"data"]
    assert (await text(source, "ü").metadata()).kind == ""


async def test_a_stream_takes_no_place_among_the_transfers(files: FileServer, source: ServerSource) -> None:
    source.transfers = asyncio.Semaphore(1)
    files.holds("a_00001_.png", b"data")
    async for chunk in saved_file(source).stream():
        assert await saved_file(source).read() == chunk == b"data"
        assert [inner async for inner in saved_file(source).stream()] == [b"data"]


async def test_the_first_bytes_tell_what_the_name_does_not(files: FileServer, source: ServerSource) -> None:
    files.holds("picture", png())
    output = result_of(source, odd=[entry("picture")]).outputs[0]
    assert (output.media_type, output.kind) == ("application/octet-stream", "file")
    await output.read()
    assert (output.media_type, output.kind) == ("image/png", "image")


async def test_a_file_that_two_nodes_name_is_saved_once(
    files: FileServer, source: ServerSource, tmp_path: Path
) -> None:
    files.holds("a.glb", b"data", "3d")
    result = result_of(source, **{"3d": [entry("a.glb", "3d")], "result": ["3d/a.glb", None]})
    assert len(result.files) == 2
    assert await result.save(tmp_path) == [tmp_path / "a.glb"]


async def test_a_closed_client_reads_no_files_but_streamed_pictures_stay(server: SimulatedServer) -> None:
    async with acomfy.Client(server.url) as client:
        file, picture = (await client.run(saved(5))).images[0], (await client.run(streamed(5))).images[0]
    with pytest.raises(ClientClosed):
        await file.read()
    assert color_of(await picture.read()) == 5
