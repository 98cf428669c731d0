"""The two upload routes: names that survive, bodies that are read as they are sent, and what goes wrong with either."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from hypothesis import example, given
from hypothesis import strategies as st

import acomfy
from acomfy.api import Api
from acomfy.api.multipart import FilePart, disposition
from acomfy.simulator import SimulatedServer
from acomfy.transport import Transport

from .conftest import MS
from .other_servers import answering, respond
from .test_api import api_of

pytestmark = pytest.mark.anyio

HOSTILE = [
    "with space.png",
    "ünïcödé 日本 🦊.png",
    "qu\"ote's.png",
    "back\\slash\\",
    "\\leading.png",
    "per%20cent+plus&amp;.png",
    'a;b;c; name="x"; filename*=y.png',
    "tab\tnew\nline\r.png",
    " a.png ",
    "x" * 196 + ".png",
    "é" * 120,
    ".hidden",
    "CON",
    "[output].png",
    '"',
    ";",
]


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


@pytest.fixture
async def api(server: SimulatedServer) -> AsyncIterator[Api]:
    async with api_of(server.url) as api:
        yield api


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_file_is_stored_under_the_very_name_that_was_given(
    server: SimulatedServer, api: Api, name: str
) -> None:
    upload = await api.upload_image(b"some bytes", name, subfolder="sub/ö x")
    assert (upload.name, upload.subfolder, upload.type) == (name, "sub/ö x", "input")
    assert (server.folders.paths["input"] / "sub" / "ö x" / name).read_bytes() == b"some bytes"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example('a"; filename="b')
@example("/x")
@example("\\\\")
def test_any_name_reaches_a_server_as_it_is(name: str) -> None:
    header = disposition("image", name)
    assert "\n" not in header and "\r" not in header
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind, params = parse_content_disposition(header)
    assert (kind, params["name"]) == ("form-data", "image")
    assert content_disposition_filename(params) == name


@pytest.mark.parametrize("name", ["", "\ud800.png"])
async def test_a_name_that_cannot_be_sent_is_refused(api: Api, name: str) -> None:
    with pytest.raises(ValueError):
        await api.upload_image(b"x", name)


async def test_bytes_paths_and_open_files_arrive_whole(api: Api, tmp_path: Path) -> None:
    data = os.urandom(1_000_003)
    path = tmp_path / "a"
    path.write_bytes(data)
    with path.open("rb") as file:
        file.seek(1000)
        given_as: list[tuple[Any, bytes]] = [
            (data, data),
            (bytearray(data), data),
            (memoryview(data)[::2].tobytes(), data[::2]),
            (path, data),
            (str(path), data),
            (io.BytesIO(data), data),
            (file, data[1000:]),
            (Unseekable([b"one ", b"two"]), b"one two"),
            (b"", b""),
        ]
        for number, (source, wanted) in enumerate(given_as):
            upload = await api.upload_image(source, f"{number}.bin", type="temp")
            async with api.view(upload.name, type="temp") as response:
                assert await response.read() == wanted
        assert not file.closed


class Unseekable(io.RawIOBase):
    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.parts.pop(0) if self.parts else b""


class Failing(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError(5, "Input/output error")


class Shrinking(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return super().read(4)[: 4 if self.tell() <= 4 else 0]


async def test_a_file_that_cannot_be_read_is_the_error_and_not_the_connection_that_it_cut(
    api: Api, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        await api.upload_image(Failing(b"x" * 100), "x")
    with pytest.raises(ValueError, match="shorter by 96 bytes"):
        await api.upload_image(Shrinking(b"x" * 100), "x")
    with pytest.raises(TypeError, match="for reading bytes"):
        await api.upload_image(io.StringIO("text"), "x")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no file"):
        await api.upload_image(tmp_path / "none", "x")
    with pytest.raises(FileNotFoundError):
        await api.upload_image(tmp_path, "x")
    with pytest.raises(TypeError, match="not int"):
        await api.upload_image(7, "x")  # type: ignore[arg-type]


async def test_a_server_that_takes_no_more_of_a_body_is_given_up() -> None:
    ends: list[asyncio.StreamWriter] = []

    async def takes_a_little(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        await reader.read(100)  # and what its buffers hold

    server = await asyncio.start_server(takes_a_little, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(5000 * MS):
            api = Api(Transport(url, lambda: session, read_timeout=50 * MS))
            data = bytes(1 << 25)
            for send in (api.upload_image(data, "x"), api.post_userdata("x", data), api.post_prompt(data)):
                with pytest.raises(acomfy.ServerUnreachable, match="took nothing more of the body for") as caught:
                    await send
                assert caught.value.maybe_sent
    finally:
        for writer in ends:
            writer.close()
        server.close()


async def test_a_file_is_read_off_the_loop_and_little_at_a_time(api: Api) -> None:
    sizes, threads = [], set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size)
            threads.add(threading.get_ident())
            return super().read(size)

    await api.upload_image(Watched(b"x" * 3_000_000), "x.bin")
    assert len(sizes) > 5 and max(size or 0 for size in sizes) <= 1 << 18
    assert threading.get_ident() not in threads


async def test_the_same_name_is_numbered_reused_or_replaced(api: Api) -> None:
    first = await api.upload_image(b"1", "u.png")
    again = await api.upload_image(b"1", "u.png")
    other = await api.upload_image(b"2", "u.png")
    assert [upload.name for upload in (first, again, other)] == ["u.png", "u.png", "u (1).png"]
    assert (await api.upload_image(b"3", "u.png", overwrite=True)).name == "u.png"
    async with api.view("u.png", type="input") as response:
        assert await response.read() == b"3"


async def test_the_value_for_a_loader_tells_subfolder_and_folder(api: Api) -> None:
    assert (await api.upload_image(b"", "a.png")).value == "a.png"
    assert (await api.upload_image(b"", "a.png", subfolder="s/t")).value == "s/t/a.png"
    assert (await api.upload_image(b"", "a.png", subfolder="s/t", type="output")).value == "s/t/a.png [output]"
    assert (await api.upload_image(b"", "a [output]")).value == "a [output] [input]"


async def test_what_is_too_large_is_refused_before_or_by_the_server() -> None:
    async with SimulatedServer(max_upload_size=10_000) as server, api_of(server.url) as api:
        with pytest.raises(acomfy.PayloadTooLarge) as caught:
            await api.upload_image(b"x" * 10_001, "x", limit=10_000)
        assert (caught.value.limit, server.requests["POST", "/upload/image"]) == (10_000, 0)
        with pytest.raises(acomfy.PayloadTooLarge) as caught:
            await api.upload_image(b"x" * 10_001, "x")
        assert caught.value.limit == 10_000


@pytest.mark.parametrize(
    ("options", "status"),
    [({"subfolder": "../../x"}, 400), ({"filename": "../../x"}, 400), ({"type": "nope"}, 500)],
    ids=["subfolder", "name", "type"],
)
async def test_no_upload_leads_out_of_its_folder(api: Api, options: dict[str, Any], status: int) -> None:
    with pytest.raises(acomfy.HTTPError) as caught:
        await api.upload_image(b"x", **{"filename": "x", **options})
    assert caught.value.status == status


async def test_an_answer_without_a_name_is_refused() -> None:
    async with answering(respond(200, "{}", "application/json")) as url, api_of(url) as api:
        with pytest.raises(acomfy.ProtocolError, match="/upload/image"):
            await api.upload_image(b"x", "x")


async def test_a_part_is_no_text() -> None:
    with pytest.raises(TypeError):
        FilePart(b"x").decode()
