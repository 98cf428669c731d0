"""What a prompt gave: `Output`, one file, streamed picture or text, and `Result`, all of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from . import download
from .api import Api
from .concurrency import together
from .errors import HTTPError, MetadataError, OutputMissing
from .files import PartialFile, destination, distinct
from .frames import OCTETS, load_json
from .outputs import (
    FileReference,
    Produced,
    Rendition,
    StreamedImage,
    extension,
    in_graph_order,
    media_type_of,
    rendition,
)
from .retry import RetryPolicy
from .workflow import title_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .embedded import Embedded
    from .markup import Shown

_LARGEST_READ = 1 << 30

DownloadObserver: TypeAlias = "Callable[[Output], AbstractContextManager[object]]"
"""Called with an output that is about to be read from the server; the context lasts until it was."""

Opening: TypeAlias = AbstractAsyncContextManager[download.Response]
"""A file as it is read."""


class Source:
    """Where outputs come from: their prompt, and the way to their files, which those derived from it know.

    Attributes:
        retry: How often a read of a file is tried again; None: never.
    """

    __slots__ = ("_graph", "_nodes", "cached_nodes", "prompt_id", "retry")

    def __init__(self, prompt_id: str, graph: bytes, retry: RetryPolicy | None) -> None:
        self.prompt_id = prompt_id
        self.retry = retry
        self.cached_nodes: tuple[str, ...] | None = None
        self._graph = graph
        self._nodes: dict[str, dict[str, Any]] | None = None

    @property
    def place(self) -> str:
        """The address of the server that has the files, if it can be asked for them."""
        raise NotImplementedError

    def open(self, output: Output, headers: Mapping[str, str], wanted: Rendition | None, *, in_turn: bool) -> Opening:
        """Open the file of an output, or a part of it, or a rendition.

        Args:
            headers: More request headers: ``Range`` and what belongs to it.
            in_turn: Wait until a transfer is free.
        """
        raise NotImplementedError

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """The prompt's nodes by id, in graph order; parsed when first asked for."""
        if self._nodes is None:
            nodes: dict[str, dict[str, Any]] = load_json(self._graph)
            self._nodes = nodes
        return self._nodes

    def missing(self, output: Output) -> OutputMissing:
        """Say that the file of an output is gone, and whether it was an old one."""
        cached = None if self.cached_nodes is None else output.node_id in self.cached_nodes
        return OutputMissing(self.prompt_id, output.node_id, filename=output.filename, cached=cached)

    def outputs(self, produced: Sequence[Produced]) -> tuple[Output, ...]:
        """Make outputs of what was produced, in the order of the prompt's nodes."""
        ordered = in_graph_order(produced, self.nodes) if len(produced) > 1 else produced
        return tuple(Output(self, item) for item in ordered)


class ServerSource(Source):
    """Outputs of a prompt of a server, whose files are read from there (``GET /view``)."""

    __slots__ = ("_observers", "api", "transfers")

    def __init__(
        self,
        prompt_id: str,
        graph: bytes,
        api: Api,
        transfers: asyncio.Semaphore,
        observers: Sequence[DownloadObserver] = (),
    ) -> None:
        super().__init__(prompt_id, graph, api.retry)
        self.api = api
        self.transfers = transfers
        self._observers = observers

    @property
    def place(self) -> str:
        return self.api.url

    def open(self, output: Output, headers: Mapping[str, str], wanted: Rendition | None, *, in_turn: bool) -> Opening:
        view: Opening = self.api.view(
            output.filename,
            subfolder=output.subfolder,
            type=output.type,
            preview=None if wanted is None else wanted.preview,
            channel=None if wanted is None else wanted.channel,
            headers=headers,
        )
        if self._observers:
            view = self._observed(output, view)
        return _Opened(output, view, wanted, self.transfers if in_turn else None)

    @asynccontextmanager
    async def _observed(self, output: Output, view: Opening) -> AsyncGenerator[download.Response, None]:
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer(output))
            async with view as response:
                yield response


class Output:
    """One thing that a node gave: a file on the server, a streamed picture, or a text. Compares by value.

    Attributes:
        node_id: The node of the prompt that gave it.
        key: Where it stood in the node's ui output: ``images``, ``gifs``, ``audio``, ``text``...; ``images`` also for
            streamed pictures.
        filename: The name on the server; for a streamed picture the one that `save` gives it; "" for a text.
        subfolder: The directory below that of its type; "" for none.
        type: ``output``, ``temp`` or ``input``; streamed pictures and texts count as ``output``.
        media_type: For example ``image/png``; ``application/octet-stream`` when neither the node nor the name tells,
            until `read` finds out.
        animated: True when the node said that its pictures move.
        streamed: True for a picture that came over the WebSocket.
        text: The text; None when it is none.
        raw: The entry of a file as the server sent it, with whatever else its node or the server put there: ``format``,
            ``frame_rate``, ``id``, ``preview_id``, ``metadata``, ``display_name``...; empty for a picture or a text.
    """

    __slots__ = (
        "_source",
        "_view",
        "animated",
        "filename",
        "key",
        "media_type",
        "node_id",
        "raw",
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
        self.raw: Mapping[str, Any] = {}
        if isinstance(item, FileReference):
            self.key, self.filename, self.media_type = item.key, item.filename, item.media_type
            self.subfolder, self.type, self.animated, self.raw = item.subfolder, item.type, item.animated, item.entry
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

    def shown(self) -> Shown:
        """Give what can be shown of it without reading anything from the server."""
        from .markup import Shown

        title = self.title or self.class_type
        caption = f"node {self.node_id}" + (f" ({title})" if title else "")
        return Shown(caption, self.filename, self.media_type, self._view, self.text)

    def _repr_html_(self) -> str:
        from .markup import gallery

        return gallery([self.shown()])

    # --- Reading -----------------------------------------------------------------------------------------------------

    async def read(
        self, *, preview: str | None = None, channel: str | None = None, max_size: int = _LARGEST_READ
    ) -> bytes:
        """Give its bytes: from the stream, or from ``GET /view``.

        When the connection breaks, it goes on where it was; a file that changes meanwhile is never mixed.

        Args:
            preview: A picture in another format: ``webp`` or ``jpeg``, with a quality (``webp;75``; 90 if none is
                given). The server makes it (`acomfy` does, of a streamed picture).
            channel: ``rgb`` or ``a``: a PNG of these channels alone; ``rgba``: all.
            max_size: Bytes that are taken into memory at most.

        Raises:
            OutputMissing: The file is gone from the server (a cached node names its old file).
            ServerError: It cannot be read; `HTTPError` 500 when a preview is wanted of what is no picture.
            ProtocolError: It is larger than ``max_size``.
            ValueError: There is no such preview or channel.
        """
        wanted = self._rendition(preview, channel)
        local = await self._local(wanted)
        if local is not None:
            return bytes(local)
        data = await download.read(self._opener(wanted), self._source.retry, max_size=max_size)
        if self.media_type == OCTETS and wanted is None:
            self.media_type = media_type_of(data)
        return data

    async def stream(self, *, preview: str | None = None, channel: str | None = None) -> AsyncGenerator[bytes, None]:
        """Yield its bytes as they come, each once, without taking the whole into memory.

        When the connection breaks, it goes on where it was. Leave it with ``aclosing`` when you may not read to the
        end, so that the connection is let go at once. It takes no place among ``max_requests``.

        Args:
            preview, channel: As `read`.

        Raises:
            OutputMissing, ServerError, ValueError: As `read`.
            ProtocolError: It cannot be gone on with: the file changed, or the server gives no parts of it.
        """
        wanted = self._rendition(preview, channel)
        local = await self._local(wanted)
        if local is not None:
            yield bytes(local)
            return
        opener = self._opener(wanted, in_turn=False)
        async with aclosing(download.stream(opener, self._source.retry)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def save(
        self,
        dest: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        preview: str | None = None,
        channel: str | None = None,
    ) -> Path:
        """Write it to disk; give the path. A file is streamed, so that its size does not matter.

        When the connection breaks, it goes on where it was. The file stands under its name when it is whole;
        cancelling it, and every failure, leaves nothing behind.

        Args:
            dest: A directory (it exists, ends in a separator, or has no extension), which the server's file name
                cannot leave, or the file's own path. Made if it is not there.
            overwrite: Replace a file of that name; else the new one gets a number: ``name (1).png``.
            preview, channel: As `read`; in a directory its name gets the extension of what comes.

        Raises:
            OutputMissing, ServerError, ValueError: As `read`.
            OSError: It cannot be written.
        """
        wanted = self._rendition(preview, channel)
        name = self.filename or f"{self.node_id}.txt"
        if wanted is not None:
            name = f"{name.rpartition('.')[0] or name}.{wanted.extension}"
        return await self._save_as(destination(dest, name), wanted, overwrite=overwrite)

    async def _save_as(self, path: Path, wanted: Rendition | None = None, *, overwrite: bool) -> Path:
        part = PartialFile(path, overwrite=overwrite)
        local = await self._local(wanted)
        try:
            if local is None:
                return await download.save(self._opener(wanted), self._source.retry, part)
            await asyncio.to_thread(part.write, local)
            return await asyncio.to_thread(part.finish)
        except BaseException:
            part.discard()  # at once, for the next line may be cancelled
            await asyncio.to_thread(part.discard, wait=True)
            raise

    async def image(self, *, preview: str | None = None, channel: str | None = None) -> Image:
        """Give it as a ``PIL.Image.Image``, decoded in a thread. Pillow's limits against bombs hold.

        Args:
            preview, channel: As `read`: ``preview="webp;75"`` of a large picture comes much faster.

        Raises:
            OutputMissing, ServerError, ValueError: As `read`.
            PIL.UnidentifiedImageError: It is no picture that Pillow knows.
            OSError, ValueError: It is damaged, or its texts are a bomb; in Pillow's own words.
            PIL.Image.DecompressionBombError: It has more pixels than Pillow allows.
        """
        from .decoding import decode

        if self._view is not None and preview is None and channel is None:
            return await asyncio.to_thread(decode, self._view)
        return await asyncio.to_thread(decode, await self.read(preview=preview, channel=channel))

    async def metadata(self) -> Embedded:
        """Read what ComfyUI wrote into it: ``.prompt``, ``.workflow`` and ``.texts`` (PNG, WEBP, FLAC, MP4, GLB...).

        No more of the file is read than needed. Nothing is in it when the server was started with
        ``--disable-metadata``, or when a node of another kind made it.

        Raises:
            MetadataError: The file is damaged, or what is written in it is larger than 32 MiB.
            OutputMissing, ServerError: As `read`.
        """
        from .embedded import read_embedded
        from .metadata import read_metadata

        local = await self._local(None)
        try:
            if local is not None:
                return await asyncio.to_thread(read_embedded, local)
            return await read_metadata(self._opener(None), self._source.retry)
        except MetadataError as exc:
            raise MetadataError(f"{self.filename!r} of node {self.node_id}: {exc}") from exc

    def _rendition(self, preview: str | None, channel: str | None) -> Rendition | None:
        wanted = rendition(preview, channel) if preview is not None or channel is not None else None
        if wanted is not None and self.text is not None:
            raise ValueError("a text has neither preview nor channels")
        return wanted

    async def _local(self, wanted: Rendition | None) -> bytes | memoryview | None:
        """Give the bytes that are here already; None for a file of the server."""
        if self.text is not None:
            return self.text.encode("utf-8", "surrogatepass")
        if self._view is None or wanted is None:
            return self._view
        from .decoding import render

        return await asyncio.to_thread(render, self._view, wanted)

    def _opener(self, wanted: Rendition | None, *, in_turn: bool = True) -> download.Opener:
        return lambda headers: self._source.open(self, headers, wanted, in_turn=in_turn)

    def _raise_meaning(self, refusal: HTTPError, wanted: Rendition | None) -> NoReturn:
        """Raise what a refusal of the server means for this output."""
        if refusal.status == 404:
            raise self._source.missing(self) from refusal
        if refusal.status == 500 and wanted is not None:
            hint = "previews and channels are made of pictures alone: is this one?"
            raise HTTPError(
                500, refusal.method, refusal.url, refusal.body, hint, content_type=refusal.content_type
            ) from refusal
        raise refusal


class _Opened:
    """A file of the server while it is read, once a transfer is free. As a generator it cost 5 us more a file."""

    __slots__ = ("_output", "_transfers", "_view", "_wanted")

    def __init__(
        self, output: Output, view: Opening, wanted: Rendition | None, transfers: asyncio.Semaphore | None
    ) -> None:
        self._output = output
        self._view = view
        self._wanted = wanted
        self._transfers = transfers

    async def __aenter__(self) -> download.Response:
        if self._transfers is not None:
            await self._transfers.acquire()
        try:
            return await self._view.__aenter__()
        except BaseException as exc:
            self._end_turn()
            if isinstance(exc, HTTPError):
                self._output._raise_meaning(exc, self._wanted)
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return await self._view.__aexit__(exc_type, exc, traceback)
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        if self._transfers is not None:
            self._transfers.release()


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
        self.cached_nodes = source.cached_nodes = None if cached_nodes is None else tuple(cached_nodes)

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

    def _repr_html_(self) -> str:
        from .markup import gallery

        return gallery([output.shown() for output in self], empty="nothing was made")

    def __repr__(self) -> str:
        return f"<Result of prompt {self.prompt_id}: {len(self.outputs)} outputs>"

    async def save(self, dest: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write all files and streamed pictures of type ``output`` into a directory; give the paths, in order.

        Texts and temporary files are left out. A file that two nodes name (Preview3D shows what SaveGLB wrote) is
        written once; two files of one name get two names, with ``overwrite`` the same ones each time. If one cannot be
        saved, the others under way are stopped and the error is raised; what was written stays. Cancelling it stops
        all.

        Raises:
            As `Output.save`.
        """
        chosen: dict[tuple[str, str], Output] = {}
        for output in self.outputs:
            if output.type == "output" and output.text is None:
                chosen.setdefault((output.subfolder, output.filename), output)
        if overwrite:  # of one result nothing replaces another: its names may differ in the subfolder alone
            paths = [Path(dest, name) for name in distinct(output.filename for output in chosen.values())]
            files = zip(chosen.values(), paths, strict=True)
            return await together([output._save_as(path, overwrite=True) for output, path in files])
        directory = os.path.join(dest, "")
        return await together([output.save(directory) for output in chosen.values()])
