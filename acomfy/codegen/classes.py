"""Node classes read for the generated module: their parameters, types and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..definitions import AUTOGROW, COMBO, DYNAMIC_COMBO, DYNAMIC_SLOT, MATCH_TYPE, InputDefinition, NodeDefinition
from .names import identifier
from .texts import cleaned, default_text, summary, text_of, told, type_of

_MOST_CHOICES = 500  # more make type checkers slow, and are files that come and go

_VALUES = {"INT": "_Int", "FLOAT": "_Float", "STRING": "_String", "BOOLEAN": "_Boolean"}
_PLAIN: dict[str, type | tuple[type, ...]] = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
_UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload", "animated_image_upload")


# --- Aliases -------------------------------------------------------------------------------------------------------


class Aliases:
    """Names for the types that are written often: links, and choices."""

    def __init__(self, made: set[str]) -> None:
        self._made = made
        self._names: dict[str, str] = {}
        self._taken = {"Any", "Boolean", "Float", "Id", "Int", "Literal", "Mapping", "More", "Node", "Output"}
        self._taken |= {"Sequence", "String", "TypeAlias"}

    def lines(self) -> Iterator[str]:
        return (f"{name}: _TypeAlias = {text}" for text, name in self._names.items())

    def is_made(self, kind: str) -> bool:
        """Tell whether any node makes this type, so that there is something to link."""
        return kind in self._made

    def link(self, *kinds: str) -> str:
        if not kinds or any(kind in ("*", "") for kind in kinds):
            return "_Output[_Any]"
        return self._name("_".join(kinds), f"_Output[_Literal[{', '.join(map(repr, kinds))}]]")

    def choices(self, name: str, choices: Iterable[Any]) -> str:
        literals = list(dict.fromkeys(repr(choice) for choice in choices))
        return self._name(name, f"_Literal[{', '.join(literals)}]")

    def _name(self, wish: str, text: str) -> str:
        if text not in self._names:
            self._names[text] = "_" + identifier(wish[:60], self._taken)
        return self._names[text]


# --- Inputs --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Parameter:
    """A keyword argument of a node class; see `building` for what its ways are."""

    name: str
    annotations: list[str]
    texts: list[str]
    ways: list[dict[str, Any]]
    grow: list[str] | None = None
    needed: int = 0

    def merge(self, other: _Parameter) -> None:
        """Add what this input is with another choice of the dynamic combo that it belongs to."""
        self.annotations += [one for one in other.annotations if one not in self.annotations]
        self.texts += [text for text in other.texts if text not in self.texts]
        self.ways += other.ways
        self.grow = self.grow or other.grow

    def table(self) -> dict[str, Any]:
        grow = {} if self.grow is None else {"grow": self.grow, "needed": self.needed}
        return {"name": self.name, "ways": self.ways, **grow}

    def stub(self, key: str) -> str:
        annotation = " | ".join(self.annotations)
        if len(self.ways) > 1 or "when" in self.ways[0]:
            return f"{key}: {annotation} | None = None"
        way = self.ways[0]
        if "default" in way:
            return f"{key}: {annotation} = {default_text(way['default'])}"
        return f"{key}: {annotation}" + ("" if way["required"] else " | None = None")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an input stands: at the top, or under a choice of a dynamic combo (``when``)."""

    prefix: str = ""
    when: list[Any] | None = None

    def way(self, required: bool) -> dict[str, Any]:
        return {"required": required, **({} if self.when is None else {"when": self.when})}


_TOP = _Place()


@dataclass(slots=True)
class NodeClass:
    """A node class, read."""

    name: str
    class_type: str
    summary: str
    outputs: list[tuple[str, str]]
    aliases: Aliases
    parameters: dict[str, _Parameter] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _keys: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, definition: NodeDefinition, aliases: Aliases) -> NodeClass:
        one = cls(name, definition.class_type, summary(definition), _outputs(definition), aliases)
        one._add_all(definition.inputs, _TOP)
        return one

    def _add_all(self, inputs: Mapping[str, InputDefinition], place: _Place) -> None:
        for name, declared in inputs.items():
            full = place.prefix + name
            if full not in self._keys:
                self._keys[full] = identifier(full, self._taken)
            self._add(self._keys[full], declared.named(full), place)

    def _add(self, key: str, declared: InputDefinition, place: _Place) -> None:
        if declared.type == AUTOGROW and declared.grown:
            self._add_growing(key, declared, place)
            return
        way = place.way(declared.required and declared.type != DYNAMIC_SLOT)
        if declared.required and _has_default(declared):
            way["default"] = declared.default
        self._put(key, _Parameter(declared.name, self._annotation(key, declared), [text_of(declared)], [way]))
        for choice, added in declared.alternatives.items():
            self._add_all(added, _Place(f"{declared.name}.", [key, choice]))
        if declared.type == DYNAMIC_SLOT:
            self._add_all(declared.slot_inputs, _Place(f"{declared.name}.", [key]))

    def _add_growing(self, key: str, declared: InputDefinition, place: _Place) -> None:
        """Add an input of which there can be many: ``images.image0``, ``images.image1``, ..."""
        slots = list(declared.grown)
        needed = sum(one.required for one in declared.grown.values())
        model = next(iter(declared.grown.values()))
        item = " | ".join(self._annotation(key, model))
        annotation = f"_Sequence[{item}] | _Mapping[str, {item}]"
        text = f"{needed} to {len(slots)} of {text_of(model)}{told(declared)}"
        way = place.way(declared.required and needed > 0)
        self._put(key, _Parameter(declared.name, [annotation], [text], [way], slots, needed))

    def _put(self, key: str, parameter: _Parameter) -> None:
        if key in self.parameters:
            self.parameters[key].merge(parameter)
        else:
            self.parameters[key] = parameter

    # --- Types ---

    def _annotation(self, key: str, declared: InputDefinition) -> list[str]:
        """Give the types that an input takes, to be joined by ``|``."""
        settings = declared.settings
        if declared.type in (COMBO, DYNAMIC_COMBO):
            if any(settings.get(upload) for upload in _UPLOADS):
                return ["_Any"]  # what will be uploaded is not in the list of today
            return self._choices(key, declared.choices or (), many=_takes_many(declared))
        kinds = _kinds(type_of(declared))
        if "*" in kinds:
            return ["_Any"]
        found = [_VALUES[one] for one in kinds if one in _VALUES]
        links = [one for one in kinds if one not in _VALUES]
        if links and (settings.get("socketless") or not any(map(self.aliases.is_made, links))):
            return ["_Any"]  # nothing makes it: it is a value of a widget
        if isinstance(widget := settings.get("widgetType"), str):
            found += [_VALUES.get(widget, "_Any")]
        if links:
            found += [self.aliases.link(*links), *_types_of_default(declared.default)]
        return ["_Any"] if "_Any" in found else list(dict.fromkeys(found))

    def _choices(self, key: str, choices: tuple[Any, ...], many: bool) -> list[str]:
        if all(isinstance(choice, str) for choice in choices) and not 0 < len(choices) <= _MOST_CHOICES:
            text = "str"
        elif all(isinstance(choice, str | int) or choice is None for choice in choices):
            text = self.aliases.choices(f"{self.name}_{key}", choices)
        else:
            return ["_Any"]
        return [f"_Sequence[{text}]" if many else text, self.aliases.link(COMBO)]

    # --- Texts ---

    def table(self) -> dict[str, Any]:
        return {
            "class_type": self.class_type,
            "inputs": {key: parameter.table() for key, parameter in self.parameters.items()},
            "outputs": self.outputs,
            "doc": self._doc(),
        }

    def _doc(self) -> str:
        lines = [self.summary]
        if self.parameters:
            inputs = [f"    {key}: {'; or '.join(one.texts)}" for key, one in self.parameters.items()]
            lines += ["", "Inputs:", *inputs]
        outputs = [name if name == kind else f"{name} ({cleaned(kind)})" for name, kind in self.outputs]
        if outputs:
            lines += ["", f"Outputs: {', '.join(outputs)}"]
        return "\n".join(lines)

    def stub(self) -> str:
        doc = self._doc().replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\n    ")
        doc = re.sub(r"[ \t]+\n", "\n", doc)
        lines = [f"class {self.name}(_Node):", f'    """{doc}', '    """']
        lines += [f"    {name}: {self.aliases.link(*_kinds(kind))}" for name, kind in self._typed_outputs()]
        lines += ["    def __init__(", "        self,", "        *,"]
        lines += [f"        {one.stub(key)}," for key, one in self.parameters.items()]
        lines += ["        _id: _Id = None,", "        _title: _Id = None,", "        _inputs: _More = None,"]
        return "\n".join([*lines, "    ) -> None: ...", ""])

    def _typed_outputs(self) -> Iterator[tuple[str, str]]:
        """Give the outputs; one of several types is linked anywhere, since only the server knows which it will be."""
        for name, kind in self.outputs:
            yield name, "*" if "," in kind else kind


# --- Reading object_info -------------------------------------------------------------------------------------------


def _kinds(kind: str) -> list[str]:
    return [one for part in kind.split(",") if (one := part.strip())] or ["*"]


def _takes_many(declared: InputDefinition) -> bool:
    return declared.multiselect or bool(declared.settings.get("multi_select"))  # 0.3.64 and older


def _has_default(declared: InputDefinition) -> bool:
    """Tell whether an input has a default that the server would take."""
    default = declared.default
    if default is None:
        return False
    if declared.choices is not None:
        return all(one in declared.choices for one in (default if isinstance(default, list) else [default]))
    return declared.type not in _PLAIN or isinstance(default, _PLAIN[declared.type])


def _types_of_default(default: Any) -> list[str]:
    if default is None:
        return []
    return [{str: "_String", bool: "_Boolean", int: "_Int", float: "_Float"}.get(type(default), "_Any")]


def output_types(definition: NodeDefinition) -> list[str]:
    """Give the type of each output: ``*`` for one that takes over its input's, ``COMBO`` for choices."""
    kinds = [kind if isinstance(kind, str) else COMBO for kind in definition.output_types]
    return ["*" if kind == MATCH_TYPE else kind for kind in kinds]


def _outputs(definition: NodeDefinition) -> list[tuple[str, str]]:
    taken: set[str] = set()
    named = zip(definition.output_names, output_types(definition), strict=True)
    return [(identifier((name or kind).replace("*", "any"), taken), kind) for name, kind in named]
