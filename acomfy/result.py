"""What a prompt gave: `Output`, one file, streamed picture or text, and `Result`, all of them."""

from __future__ import annotations

import asyncio
import io
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from .api import Api
from .concurrency import together
from .errors import HTTPError, OutputMissing, ServerUnreachable
from .files import PartialFile, destination
from .frames import load_json
from .outputs import FileReference, Produced, StreamedImage, extension, in_graph_order
from .workflow import title_of

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

_CHUNK = 1 << 18
_TRIES = 4


class Source:
    """Where outputs come from: their prompt, and the way to their files."""

    __slots__ = ("_graph", "_nodes", "api", "prompt_id", "transfers")

    def __init__(self, prompt_id: str, graph: bytes, api: Api, transfers: asyncio.Semaphore) -> None:
        self.prompt_id = prompt_id
        self.api = api
        self.transfers = transfers
        self._graph = graph
        self._nodes: dict[str, dict[str, Any]] | None = None

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """The prompt's nodes by id, in graph order; parsed when first asked for."""
        if self._nodes is None:
            nodes: dict[str, dict[str, Any]] = load_json(self._graph)
            self._nodes = nodes
        return self._nodes

    def outputs(self, produced: list[Produced]) -> tuple[Output, ...]:
        """Make outputs of what was produced, in the order of the prompt's nodes."""
        ordered = in_graph_order(produced, self.nodes) if len(produced) > 1 else produced
        return tuple(Output(self, item) for item in ordered)


class Output:
    """One thing that a node gave: a file on the server, a streamed picture, or a text. Compares by value.

    Attributes:
        node_id: The node of the prompt that gave it.
        key: Where it stood in the node's ui output: ``images``, ``gifs``, ``audio``, ``text``...; ``images`` also for
            streamed pictures.
        filename: The name on the server; for a streamed picture the one that `save` gives it; "" for a text.
        subfolder: The directory below that of its type; "" for none.
        type: ``output``, ``temp`` or ``input``; streamed pictures and texts count as ``output``.
        media_type: For example ``image/png``.
        animated: True when the node said that its pictures move.
        streamed: True for a picture that came over the WebSocket.
        text: The text; None when it is none.
        entry: The entry of a file as the server sent it.
    """

    __slots__ = (
        "_source",
        "_view",
        "animated",
        "entry",
        "filename",
        "key",
        "media_type",
        "node_id",
        "subfolder",
        "text",
        "type",
    )

    def __init__(self, source: Source, item: Produced) -> None:
        self._source = source
        self._view: memoryview | None = None
        self.node_id = item.node_id
        self.subfolder, self.type, self.animated = "", "output", False
        self.text: str | None = None
        self.entry: Mapping[str, Any] = {}
        if isinstance(item, FileReference):
            self.key, self.filename, self.media_type = item.key, item.filename, item.media_type
            self.subfolder, self.type, self.animated, self.entry = item.subfolder, item.type, item.animated, item.entry
        elif isinstance(item, StreamedImage):
            self.key, self.media_type, self._view = "images", item.media_type, item.view
            prefix = source.prompt_id.partition("-")[0]
            self.filename = f"{prefix}_{item.node_id}_{item.index:05}.{extension(item.media_type)}"
        else:
            self.key, self.filename, self.media_type, self.text = item.key, "", "text/plain", item.text

    @property
    def streamed(self) -> bool:
        return self._view is not None

    @property
    def kind(self) -> str:
        """``image``, ``video``, ``audio``, ``text``, or ``file`` for all else."""
        if self.text is not None:
            return "text"
        kind = self.media_type.partition("/")[0]
        return kind if kind in ("image", "video", "audio") else "file"

    @property
    def class_type(self) -> str | None:
        """The class of its node; None when the node is not in the prompt."""
        class_type = self._source.nodes.get(self.node_id, {}).get("class_type")
        return class_type if isinstance(class_type, str) else None

    @property
    def title(self) -> str | None:
        """The title of its node; None when it has none."""
        return title_of(self._source.nodes.get(self.node_id, {}))

    def _key(self) -> tuple[object, ...]:
        return (self.node_id, self.key, self.filename, self.subfolder, self.type, self.text, self._view)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Output) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key()[:-1])

    def __repr__(self) -> str:
        if self.text is not None:
            return f"<Output text of node {self.node_id}, {len(self.text)} characters>"
        size = f", {len(self._view)} bytes" if self._view is not None else ""
        return f"<Output {self.kind} {self.filename!r} of node {self.node_id}{size}>"

    async def read(self) -> bytes:
        """Give its bytes: from the stream, or from ``GET /view``, tried again when the connection breaks.

        Raises:
            OutputMissing: The file is gone from the server (a cached node names its old file).
            ServerError: It cannot be read.
        """
        if self.text is not None:
            return self.text.encode("utf-8", "surrogatepass")
        if self._view is not None:
            return bytes(self._view)
        return await self._retried(self._read_file)

    async def save(self, dest: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it to disk; give the path. A file is streamed, so that its size does not matter.

        Cancelling it, and every failure, leaves nothing behind.

        Args:
            dest: A directory (it exists, ends in a separator, or has no extension), which the server's file name
                cannot leave, or the file's own path. Made if it is not there.
            overwrite: Replace a file of that name; else the new one gets a number: ``name (1).png``.

        Raises:
            OutputMissing: The file is gone from the server.
            ServerError: It cannot be read.
            OSError: It cannot be written.
        """
        path = destination(dest, self.filename or f"{self.node_id}.txt")
        return await self._retried(lambda: self._save(PartialFile(path, overwrite=overwrite)))

    async def image(self) -> Image:
        """Give it as a ``PIL.Image.Image``, decoded in a thread. Pillow's limits against bombs hold.

        Raises:
            OutputMissing, ServerError: As `read`.
            PIL.UnidentifiedImageError: It is no picture that Pillow knows.
        """
        data = self._view if self._view is not None else await self.read()
        return await asyncio.to_thread(_decode, data)

    async def _read_file(self) -> bytes:
        async with self._opened() as response:
            return await response.read()

    async def _save(self, part: PartialFile) -> Path:
        try:
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(part.write, chunk)
            return await asyncio.to_thread(part.finish)
        except BaseException:
            part.discard()  # at once, for the next line may be cancelled
            await asyncio.to_thread(part.discard, wait=True)
            raise

    async def _chunks(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield its bytes, a file's as they come."""
        if self._view is not None:
            yield self._view
        elif self.text is not None:
            yield await self.read()
        else:
            async with self._opened() as response:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    yield chunk

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Open the file, when a transfer is free."""
        view = self._source.api.view(self.filename, subfolder=self.subfolder, type=self.type)
        async with self._source.transfers, view as response:
            yield response

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try a read again when the connection broke or a proxy had no answer; ``/view`` may be repeated."""
        for number in range(_TRIES):
            try:
                return await attempt()
            except (HTTPError, ServerUnreachable) as exc:
                if isinstance(exc, HTTPError):
                    if exc.status == 404:
                        raise OutputMissing(self._source.prompt_id, self.node_id, filename=self.filename) from exc
                    if exc.status not in (500, 502, 503, 504):
                        raise
                if number == _TRIES - 1:
                    raise
            await asyncio.sleep(random.uniform(0.1, 0.3) * 3**number)
        raise AssertionError("the last try raises")


class _ViewFile(io.RawIOBase):
    """A file to read that lies in memory. `io.BytesIO` would copy it, and nothing else runs meanwhile: 0.4 ms a MB."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._view[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _decode(data: bytes | memoryview) -> Image:
    import PIL.Image

    image = PIL.Image.open(io.BufferedReader(_ViewFile(memoryview(data))))
    image.load()
    return image


class Result:
    """Everything that a prompt gave, in the order of the prompt's nodes (not in order of arrival, which varies).

    Attributes:
        prompt_id: The prompt.
        outputs: All outputs, temporary ones included.
        raw: The nodes' ui outputs as the server sent them, by the id of the node that ran.
        cached_nodes: The nodes that needed no run; None when that was not heard.
    """

    __slots__ = ("_source", "cached_nodes", "outputs", "raw")

    def __init__(
        self,
        source: Source,
        produced: list[Produced],
        raw: Mapping[str, Mapping[str, Any]],
        cached_nodes: Iterable[str] | None,
    ) -> None:
        self._source = source
        self.outputs = source.outputs(produced)
        self.raw = raw
        self.cached_nodes = None if cached_nodes is None else tuple(cached_nodes)

    @property
    def prompt_id(self) -> str:
        return self._source.prompt_id

    def _kept(self, kind: str) -> tuple[Output, ...]:
        return tuple(output for output in self.outputs if output.type == "output" and output.kind == kind)

    @property
    def images(self) -> tuple[Output, ...]:
        """The pictures of type ``output``, and the streamed ones."""
        return self._kept("image")

    @property
    def videos(self) -> tuple[Output, ...]:
        """The videos of type ``output``."""
        return self._kept("video")

    @property
    def audio(self) -> tuple[Output, ...]:
        """The sounds of type ``output``."""
        return self._kept("audio")

    @property
    def texts(self) -> tuple[Output, ...]:
        """The texts that nodes show."""
        return self._kept("text")

    @property
    def files(self) -> tuple[Output, ...]:
        """The files of type ``output`` that are none of these: 3D models, latents..."""
        return self._kept("file")

    @property
    def temp(self) -> tuple[Output, ...]:
        """The files of type ``temp`` (PreviewImage): gone when the server restarts."""
        return tuple(output for output in self.outputs if output.type == "temp")

    def __getitem__(self, node_id: str) -> list[Output]:
        """Give all that a node gave, of any type; empty when it gave nothing.

        Raises:
            KeyError: The node is not in the prompt.
        """
        if node_id not in self._source.nodes:
            raise KeyError(node_id)
        return [output for output in self.outputs if output.node_id == node_id]

    def __iter__(self) -> Iterator[Output]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def __bool__(self) -> bool:
        return True  # a success without outputs is a success

    def __repr__(self) -> str:
        return f"<Result of prompt {self.prompt_id}: {len(self.outputs)} outputs>"

    async def save(self, dest: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write all files and streamed pictures of type ``output`` into a directory; give the paths, in order.

        Texts and temporary files are left out. If one cannot be saved, the others under way are stopped and the error
        is raised; what was written stays. Cancelling it stops all.

        Raises:
            As `Output.save`.
        """
        chosen = [output for output in self.outputs if output.type == "output" and output.text is None]
        directory = os.path.join(dest, "")
        return await together([output.save(directory, overwrite=overwrite) for output in chosen])
