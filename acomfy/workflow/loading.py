"""A graph out of whatever it is kept in: a file, JSON text, a dict."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WorkflowFormatError
from .graph import Graph


def read(source: str | bytes | os.PathLike[str] | Graph) -> Any:
    """Read a graph from a file's path, from JSON text or bytes, or from a dict."""
    if isinstance(source, Mapping):
        return source
    if isinstance(source, str) and (text := source.lstrip("\ufeff \t\r\n")).startswith("{"):
        return _parsed(text, "the text")
    if isinstance(source, bytes | bytearray):
        return _parsed(source, "the data")
    return _parsed(Path(source).read_bytes(), os.fspath(source))


def _parsed(text: str | bytes | bytearray, name: str) -> Any:
    try:
        return json.loads(text)  # not orjson: integers of any size stay exact
    except (ValueError, RecursionError) as exc:
        raise WorkflowFormatError(f"{name} is not JSON: {exc}") from None
