"""What may stand in a graph where a file is named, and what is kept of it until it is uploaded.

What can be edited is copied when it is captured; a file on disk and an open file are read later.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TypeAlias
from weakref import WeakValueDictionary


class Masked:
    """A picture and its mask, for nodes that give both (LoadImage): uploaded as one PNG.

    The mask becomes the alpha channel, as ComfyUI's mask editor writes it: transparent where the mask is white.

    Args:
        image: A picture: a path, bytes, a ``PIL.Image.Image``, an array, an open file or an `Output`.
        mask: Likewise, of the same size; white is what is masked (to be painted anew), black is what is kept.
    """

    __slots__ = ("image", "mask")

    def __init__(self, image: Any, mask: Any) -> None:
        self.image = image
        self.mask = mask

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masked):
            return NotImplemented
        return same(self.image, other.image) and same(self.mask, other.mask)

    __hash__ = None  # type: ignore[assignment]  # what it holds may be edited

    def __repr__(self) -> str:
        return f"Masked({type(self.image).__name__}, {type(self.mask).__name__})"


# --- What was captured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Data:
    """Bytes."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Bytes that nobody changes, as a view: a streamed picture.

    Attributes:
        name: What the file is called.
    """

    data: memoryview = field(repr=False)
    name: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine's disk, read when it is uploaded."""

    path: str


@dataclass(frozen=True, slots=True, eq=False)
class OpenFile:
    """A file that the caller has open; it is read when it is uploaded, from where it stood when it was captured.

    Attributes:
        name: What it is called; "" when that is not known.
    """

    file: BinaryIO = field(repr=False)
    start: int
    name: str


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Picture:
    """A copy of a Pillow image."""

    image: Any


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Pixels:
    """A copy of an array.

    Attributes:
        shape: Height, width and channels (1 to 4).
        typestr: The type of its items, as NumPy's array interface writes it: ``|u1``, ``|b1``, ``<f4``, ``<f8``.
    """

    shape: tuple[int, int, int]
    typestr: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class ServerFile:
    """An output of an earlier prompt, of this server or another."""

    output: ServerOutput


@dataclass(frozen=True, slots=True, eq=False)
class MaskedPicture:
    """A picture and its mask."""

    image: Content
    mask: Content


Content: TypeAlias = Data | View | LocalFile | OpenFile | Picture | Pixels | ServerFile | MaskedPicture


CopyPicture: TypeAlias = Callable[[Any], Picture | Pixels]


class PillowImage(Protocol):
    """A ``PIL.Image.Image``, as far as it is asked here."""

    def copy(self) -> Any: ...

    def getbands(self) -> tuple[str, ...]: ...


class SupportsArray(Protocol):
    """An array of NumPy's, of torch, or another that has their protocol."""

    def __array__(self) -> Any: ...


class SupportsArrayInterface(Protocol):
    """An array that tells where it lies in memory."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class ServerOutput(Protocol):
    """An `Output`, as far as it is asked here."""

    filename: str
    subfolder: str
    type: str
    text: str | None

    @property
    def streamed(self) -> bool: ...


Uploadable: TypeAlias = (
    os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | PillowImage
    | SupportsArray
    | SupportsArrayInterface
    | ServerOutput
    | Masked
)
"""What may stand in a graph where a file is named.

A `pathlib.Path` (a str is the name of a file that the server has); bytes, of any kind of file; a file open for reading
bytes; a ``PIL.Image.Image``; an array of height x width (x 1 to 4 channels) of ``uint8``, ``bool``, or floats from 0 to
1, as NumPy's and torch's; an `Output` of an earlier prompt; a `Masked` picture.
"""

# --- Capturing -----------------------------------------------------------------------------------------------------


def capture(value: Any, copy_picture: CopyPicture | None = None) -> Content | None:
    """Take a value as it is now; None when it is nothing that can be uploaded.

    Args:
        copy_picture: Copies a Pillow image or an array; None: each time anew.

    Raises:
        ValueError, TypeError, OSError: It is, but cannot be used; the message says why.
    """
    if value is None or isinstance(value, str | int | float | list | tuple | Mapping):
        return None
    if isinstance(value, Masked):
        return MaskedPicture(_part(value.image, "image", copy_picture), _part(value.mask, "mask", copy_picture))
    if isinstance(value, bytes | bytearray | memoryview):
        return _data(value)
    if isinstance(value, os.PathLike):
        return LocalFile(os.path.abspath(os.fsdecode(value)))
    if _is_output(value):
        return ServerFile(value)
    if _is_image(value) or _is_array(value):
        return (copy_picture or picture_of)(value)
    return _open_file(value)


def is_file(value: Any) -> bool:
    """Tell whether a value is one that `capture` takes, without capturing it."""
    if value is None or isinstance(value, str | int | float | list | tuple | Mapping):
        return False
    return (
        isinstance(value, Masked | bytes | bytearray | memoryview | os.PathLike)
        or _is_image(value)
        or _is_output(value)
        or _is_array(value)
        or _opened(value) is not None
    )


def picture_of(value: Any) -> Picture | Pixels:
    """Copy a Pillow image or an array."""
    if not _is_image(value):
        return _pixels(value)
    if 0 in value.size:
        raise ValueError(f"a picture of {value.width} x {value.height} pixels is none")
    return Picture(value.copy())


def _part(value: Any, name: str, copy_picture: CopyPicture | None) -> Content:
    content = capture(value, copy_picture)
    if content is None or isinstance(content, MaskedPicture):
        raise TypeError(f"the {name} of Masked is a picture (a Path, bytes, ...), not {type(value).__name__}")
    return content


_shared: WeakValueDictionary[int, Data] = WeakValueDictionary()


def _data(value: bytes | bytearray | memoryview) -> Data:
    """Give the same `Data` for the same bytes object, so that it is hashed once however many prompts hold it."""
    if type(value) is not bytes:
        return Data(bytes(value))
    known = _shared.get(id(value))
    if known is None or known.data is not value:
        known = _shared[id(value)] = Data(value)
    return known


def _is_image(value: Any) -> bool:
    """Tell a Pillow image: there is none as long as Pillow was not imported."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _is_output(value: Any) -> bool:
    kind = type(value)
    return all(hasattr(kind, name) for name in ("filename", "subfolder", "streamed", "read", "save"))


def _is_array(value: Any) -> bool:
    if hasattr(value, "__array_interface__"):
        return bool(value.__array_interface__.get("shape"))  # NumPy's scalars have an empty shape
    return hasattr(value, "__array__") and bool(getattr(value, "shape", None))


def _pixels(value: Any) -> Pixels:
    if not hasattr(value, "__array_interface__"):
        try:
            value = value.__array__()  # torch: fails for what is not in the CPU's memory, and says what to do
        except Exception as exc:
            raise TypeError(f"the {type(value).__name__} cannot be read: {exc}") from exc
    interface = value.__array_interface__
    shape, typestr = _shape(tuple(interface["shape"])), interface["typestr"]
    if typestr not in ("|u1", "|b1") and typestr[1:] not in ("f4", "f8"):
        raise TypeError(f"an array of {typestr} is no picture; make it uint8, bool, or float32 from 0 to 1")
    data = _bytes_of(value, interface)
    expected = shape[0] * shape[1] * shape[2] * int(typestr[2:])
    if len(data) != expected:
        raise ValueError(f"the array has {len(data)} bytes, not {expected}")
    return Pixels(shape, typestr, data)


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Read the shape as that of one picture. ComfyUI's own pictures have the batch in front, of 1 here."""
    given = shape
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 3 and shape[0] == 1 and shape[2] > 4:
        shape = shape[1:]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or not 1 <= shape[2] <= 4 or 0 in shape:
        raise ValueError(f"an array of the shape {given} is not one picture: height, width, and 1 to 4 channels")
    return shape[0], shape[1], shape[2]


def _bytes_of(value: Any, interface: Mapping[str, Any]) -> bytes:
    try:
        return memoryview(value).tobytes()  # in C order, however it lies in memory
    except (TypeError, ValueError, NotImplementedError):
        pass
    if callable(getattr(value, "tobytes", None)):
        return bytes(value.tobytes())
    data = interface.get("data")
    if isinstance(data, bytes | bytearray | memoryview) and interface.get("strides") is None:
        return bytes(data)
    raise TypeError(f"the memory of the {type(value).__name__} cannot be read")


def _opened(value: Any) -> Any:
    """Give the open file that a value is, or holds: uploads in Starlette (FastAPI) and aiohttp have it as ``.file``."""
    for file in (getattr(value, "file", None), value):
        if callable(getattr(file, "read", None)) and callable(getattr(file, "seek", None)):
            return file
    return value if callable(getattr(value, "read", None)) else None


def _open_file(value: Any) -> Content | None:
    file = _opened(value)
    if file is None:
        return None
    if isinstance(file, io.TextIOBase):
        raise TypeError("the file is open for reading text; open it for reading bytes ('rb')")
    if callable(getattr(file, "readable", None)) and not file.readable():
        raise TypeError("the file is not open for reading; open it for reading bytes ('rb')")
    if not (hasattr(file, "seekable") and file.seekable()):
        raise TypeError(f"the {type(file).__name__} cannot seek; read it, and give the bytes")
    name = getattr(value, "filename", None) or getattr(file, "name", None)
    name = name if isinstance(name, str) else ""
    if isinstance(file, io.BytesIO):
        return Data(bytes(file.getbuffer()[file.tell() :]))
    return OpenFile(file, file.tell(), name)


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same, also where they hold arrays, whose ``==`` gives an array."""
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if _is_array(one) and not _is_image(one):
        return type(one) is type(other) and _same_array(one, other)
    return bool(one == other)


def _same_array(one: Any, other: Any) -> bool:
    alike = bool(one.shape == other.shape and one.dtype == other.dtype)
    return alike and memoryview(one).tobytes() == memoryview(other).tobytes()
