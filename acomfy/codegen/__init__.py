"""Write a Python module with a class for each node class of a server, for `acomfy.building`.

Two files are written: a lean ``.py`` (a table, of which `building.node_classes` makes the classes when the first is
asked for, so that it is imported in no time) and the ``.pyi`` beside it, which tells editors and type checkers
everything: the inputs as keyword arguments with their types, ranges and defaults, the outputs as attributes.

The type of a link is ``Output[Literal["MODEL"]]``, for any name that a type may have. Whatever a server says becomes
identifiers, literals or text in a docstring, never code.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..definitions import Definitions, NodeDefinition
from ..errors import ProtocolError
from .classes import Aliases, NodeClass, output_types
from .names import identifier
from .templates import MADE_BY, MODULE, STUB

__all__ = ["MADE_BY", "Generated", "generate", "identifier"]


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated module.

    Attributes:
        module: The text of the ``.py`` file.
        stub: The text of the ``.pyi`` file of the same name beside it.
        classes: The Python name of each node class, by its ComfyUI name.
        skipped: Why a class could not be read, by its ComfyUI name; empty for a server in order.
    """

    module: str
    stub: str
    classes: dict[str, str]
    skipped: dict[str, str]


def generate(object_info: Mapping[str, Any] | Definitions) -> Generated:
    """Write the module for what ``GET /object_info`` answered; the same answer gives the same text.

    Raises:
        ProtocolError: It is no such answer. (A single class that makes no sense is skipped.)
    """
    definitions, skipped = _readable(Definitions.of(object_info))
    aliases = Aliases({kind for one in definitions for kind in output_types(one)})
    taken = set(vars(builtins))
    classes = [NodeClass.read(identifier(one.class_type, taken), one, aliases) for one in definitions]
    rows = ",\n".join(f"{json.dumps(one.name)}: {json.dumps(one.table())}" for one in classes)
    table = "{\n" + rows.replace("'", "\\u0027") + "\n}"
    stubs = "\n".join(one.stub() for one in classes)
    stub = STUB.format(count=len(classes), aliases="\n".join(aliases.lines()), classes=stubs)
    names = {one.class_type: one.name for one in classes}
    return Generated(MODULE.format(count=len(classes), table=table), stub, names, skipped)


def _readable(definitions: Definitions) -> tuple[list[NodeDefinition], dict[str, str]]:
    """Part the classes that make sense from those that do not, with what is wrong with them."""
    readable, skipped = [], {}
    for class_type in definitions:
        try:
            definition = definitions[class_type]
            definition.inputs_for({})
            readable.append(definition)
        except ProtocolError as exc:
            skipped[class_type] = str(exc)
    return readable, skipped
