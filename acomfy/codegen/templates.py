"""The two generated files, around what is generated."""

from __future__ import annotations

MADE_BY = "made by `acomfy nodes`"
"""Stands in the docstring of both files."""

MODULE = '''"""The {count} node classes of a ComfyUI server, made by `acomfy nodes`; the types are in the .pyi."""

from typing import Any as _Any


def __getattr__(name: str) -> _Any:  # the classes are made when the first is asked for
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    if "_made" not in globals():
        from acomfy.building import node_classes

        classes = node_classes(__name__, _TABLE)
        globals().update(classes, __all__=list(classes), _made=True)
    try:
        return globals()[name]
    except KeyError:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}") from None


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__all__", "__doc__", "__name__"]


_TABLE = r\'\'\'{table}\'\'\'
'''

STUB = '''"""The {count} node classes of a ComfyUI server, made by `acomfy nodes`."""

from collections.abc import Mapping as _Mapping
from collections.abc import Sequence as _Sequence
from typing import Any as _Any
from typing import Literal as _Literal
from typing import TypeAlias as _TypeAlias

from acomfy.building import Boolean as _Boolean
from acomfy.building import Float as _Float
from acomfy.building import Int as _Int
from acomfy.building import Node as _Node
from acomfy.building import Output as _Output
from acomfy.building import String as _String

_Id: _TypeAlias = str | None
_More: _TypeAlias = _Mapping[str, _Any] | None
{aliases}
{classes}'''
