"""Errors as JSON and back: never pickle, and an error that the reader does not know becomes its nearest known kind.

What comes may have been written by an older or a newer acomfy, or by somebody who means no good. So an error is made of
a class of `acomfy.errors` alone, with all attributes that this one has; what does not fit them is passed over.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from .. import errors
from ..errors import AcomfyError, NodeProblem, UnknownNode

_TAG = "$"
_DEEPEST = 50
_MOST_BYTES = 1 << 26

_DATACLASSES: dict[str, type[Any]] = {"NodeProblem": NodeProblem, "UnknownNode": UnknownNode}
_KNOWN = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AcomfyError)}
_ITEMS = {"problems": NodeProblem, "nodes": UnknownNode, "traceback": str, "received": bytes}
_NOTHING = {
    "str": "",
    "int": 0,
    "float": 0.0,
    "int | None": None,
    "Mapping[str, Any]": {},
    "Iterable[UnknownNode]": (),
}
"""What stands for an argument of an error that is not known, by its annotation."""


# --- Errors ----------------------------------------------------------------------------------------------------------


def write_error(error: BaseException) -> dict[str, Any]:
    """Write an error as JSON: its class and the classes above it, its sentence, its attributes."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, AcomfyError)]
    if not kinds:
        return {"kinds": ["AcomfyError"], "message": f"{type(error).__name__}: {error}", "data": {}}
    public = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    writing = _Writing()
    return {
        "kinds": kinds,
        "message": str(error),
        "data": {name: writing.value(value) for name, value in public.items()},
    }


def read_error(found: Mapping[str, Any]) -> AcomfyError:
    """Make the error again: of its own class, else of the nearest of those above it that is known here.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, RecursionError: It is none.
    """
    kind = next((_KNOWN[name] for name in found["kinds"] if name in _KNOWN), AcomfyError)
    message = found["message"]
    if not isinstance(message, str):
        raise TypeError("the sentence of an error is no text")
    error = _blank(kind)
    error.args = (message,)
    for name, written in found["data"].items():
        value = read_value(written)
        if _fits(error, name, value):
            error.__dict__[name] = value
    return error


def _blank(kind: type[AcomfyError]) -> AcomfyError:
    """Make an error of which nothing is known: an older acomfy did not write all attributes that it has now."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    needed = [each for each in parameters if each.default is each.empty and each.annotation in _NOTHING]
    return kind(**{each.name: _NOTHING[each.annotation] for each in needed})


def _fits(error: AcomfyError, name: str, value: Any) -> bool:
    """Tell whether an error can have such an attribute: not in the place of a method, and of the kind that it has."""
    if name.startswith("_") or hasattr(type(error), name):
        return False
    usual = vars(error).get(name)
    if usual is not None and not isinstance(value, int | float if isinstance(usual, float) else type(usual)):
        return False
    return name not in _ITEMS or all(isinstance(item, _ITEMS[name]) for item in value)


# --- Their attributes ------------------------------------------------------------------------------------------------


def write_value(value: Any) -> Any:
    """Write an attribute so that `read_value` gives its like.

    What JSON has not is tagged; of what is strange, or nested very deep, is told what it is.
    """
    return _Writing().value(value)


class _Writing:
    """One error: bytes of it are written as long as there is room."""

    def __init__(self) -> None:
        self._room = _MOST_BYTES

    def value(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, bytes | bytearray | memoryview):
            return {_TAG: "bytes", "of": base64.b64encode(self._whole_or_nothing(value)).decode()}
        if depth > _DEEPEST:
            return f"<{type(value).__name__}, nested too deep>"
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        if isinstance(value, Mapping) and _TAG not in value and all(isinstance(key, str) for key in value):
            return {key: self.value(item, depth + 1) for key, item in value.items()}
        return self._tagged(value, depth + 1)

    def _tagged(self, value: Any, depth: int) -> Any:
        name = type(value).__name__
        if isinstance(value, Mapping):
            pairs = [[self.value(key, depth), self.value(item, depth)] for key, item in value.items()]
            return {_TAG: "dict", "of": pairs}
        if isinstance(value, tuple):
            return {_TAG: "tuple", "of": [self.value(item, depth) for item in value]}
        if isinstance(value, set | frozenset):
            return {_TAG: "frozenset", "of": [self.value(item, depth) for item in sorted(value, key=repr)]}
        if _DATACLASSES.get(name) is type(value):
            return {
                _TAG: name,
                "of": {part.name: self.value(getattr(value, part.name), depth) for part in fields(value)},
            }
        return repr(value)[:1000]

    def _whole_or_nothing(self, data: bytes | bytearray | memoryview) -> bytes:
        size = len(memoryview(data).cast("B"))
        if size > self._room:
            return b""  # half a picture is none
        self._room -= size
        return bytes(data)


def read_value(value: Any) -> Any:
    """Read what `write_value` wrote; of a newer acomfy's tags, what stands behind them.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, RecursionError: It did not write that.
    """
    if isinstance(value, list):
        return [read_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: read_value(item) for key, item in value.items()}
    kind, of = value[_TAG], value["of"]
    if kind in _DATACLASSES:
        return _read_dataclass(_DATACLASSES[kind], of)
    return _READERS.get(kind, read_value)(of)


def _read_dataclass(kind: type[Any], of: Mapping[str, Any]) -> Any:
    found = {part.name: read_value(of[part.name]) for part in fields(kind) if part.name in of}
    for part in fields(kind):
        value = found.get(part.name, "")
        if part.type != "Any" and not isinstance(value, str) and not (value is None and part.type == "str | None"):
            raise TypeError(f"{part.name} of a {kind.__name__} is no text")
    return kind(**found)


_READERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda of: {read_value(key): read_value(item) for key, item in of},
    "tuple": lambda of: tuple(read_value(item) for item in of),
    "frozenset": lambda of: frozenset(read_value(item) for item in of),
    "bytes": base64.b64decode,
}
