"""Errors as JSON and back: never pickle, and an error that the reader does not know becomes its nearest known kind."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from .. import errors
from ..errors import AcomfyError, NodeProblem, UnknownNode

_TAG = "$"
_DEEPEST = 50
_LARGEST_BYTES = 1 << 12

_DATACLASSES: dict[str, type[Any]] = {"NodeProblem": NodeProblem, "UnknownNode": UnknownNode}
_KNOWN = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AcomfyError)}


def write_error(error: BaseException) -> dict[str, Any]:
    """Write an error as JSON: its class and the classes above it, its sentence, its attributes."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, AcomfyError)]
    if not kinds:
        return {"kinds": ["AcomfyError"], "message": f"{type(error).__name__}: {error}", "data": {}}
    return {
        "kinds": kinds,
        "message": str(error),
        "data": {name: write_value(value) for name, value in vars(error).items() if not name.startswith("_")},
    }


def read_error(found: Mapping[str, Any]) -> AcomfyError:
    """Make the error again: of its own class, else of the nearest of those above it that is known here."""
    kind = next((_KNOWN[name] for name in found["kinds"] if name in _KNOWN), AcomfyError)
    error = kind.__new__(kind)
    error.args = (str(found["message"]),)
    error.__dict__.update({str(name): read_value(value) for name, value in found["data"].items()})
    return error


def write_value(value: Any, depth: int = 0) -> Any:
    """Write an attribute so that `read_value` gives its like; what JSON has not is tagged, what is strange is told."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > _DEEPEST:
        return repr(value)[:200]

    def inner(item: Any) -> Any:
        return write_value(item, depth + 1)

    if isinstance(value, list):
        return [inner(item) for item in value]
    if isinstance(value, Mapping):
        if _TAG not in value and all(isinstance(key, str) for key in value):
            return {key: inner(item) for key, item in value.items()}
        return {_TAG: "dict", "of": [[inner(key), inner(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TAG: "tuple", "of": [inner(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {_TAG: "frozenset", "of": [inner(item) for item in sorted(value, key=repr)]}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "of": base64.b64encode(value[:_LARGEST_BYTES]).decode()}
    name = type(value).__name__
    if _DATACLASSES.get(name) is type(value):
        return {_TAG: name, "of": {part.name: inner(getattr(value, part.name)) for part in fields(value)}}
    return repr(value)[:1000]


def read_value(value: Any) -> Any:
    """Read what `write_value` wrote."""
    if isinstance(value, list):
        return [read_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: read_value(item) for key, item in value.items()}
    kind, of = value[_TAG], value["of"]
    if kind in _DATACLASSES:
        known = {part.name for part in fields(_DATACLASSES[kind])}
        return _DATACLASSES[kind](**{name: read_value(item) for name, item in of.items() if name in known})
    return _READERS[kind](of)


_READERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda of: {read_value(key): read_value(item) for key, item in of},
    "tuple": lambda of: tuple(read_value(item) for item in of),
    "frozenset": lambda of: frozenset(read_value(item) for item in of),
    "bytes": base64.b64decode,
}
