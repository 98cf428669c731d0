"""What a server's node classes take and give: a typed view of ``GET /object_info``, of any version of ComfyUI.

Theory of operation. The server describes a class with a JSON object whose ``input`` holds the groups ``required``,
``optional`` and ``hidden``; each input is a list of its type and, mostly, of its settings. Versions write the same
thing differently: a combo is ``[["a", "b"], {...}]`` or ``["COMBO", {"options": ["a", "b"]}]``, keys come and go.
Here they are one. Some types stand for other inputs, which depend on what a prompt gives (``COMFY_DYNAMICCOMBO_V3``,
``COMFY_AUTOGROW_V3``, ``COMFY_DYNAMICSLOT_V3``, ComfyUI 0.8 and newer): `NodeDefinition.inputs_for` replaces them by
those, named ``"outer.inner"`` as in a prompt (comfy_api/latest/_io.py get_finalized_class_inputs, 0.33.0).

A class is read when it is asked for: an answer has hundreds, a prompt uses ten, and a broken one hurts nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ProtocolError

COMBO = "COMBO"
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
DYNAMIC_SLOT = "COMFY_DYNAMICSLOT_V3"
MATCH_TYPE = "COMFY_MATCHTYPE_V3"

_MOST_GROWN = 100  # ComfyUI's own bound (Autogrow._MaxNames)
_DEEPEST = 20
_GROUPS = (("required", True), ("optional", False))


@dataclass(frozen=True, slots=True)
class InputDefinition:
    """One input of a node class.

    Attributes:
        name: Its name; of an input behind a dynamic one ``"outer.inner"``, as prompts name it.
        required: Whether the server refuses a prompt without it.
        type: ``INT``, ``IMAGE``, ``*``, ``INT,FLOAT``, ...; ``COMBO`` for every list of choices, however written.
        choices: The values of a combo (or the keys of a dynamic one); None when it is none, or when only the editor
            knows them (``remote``).
        settings: ``default``, ``min``, ``multiline`` and all else that the server says of it; ``{}`` when nothing.
        raw: The input as the server wrote it: ``[type, settings]``.
    """

    name: str
    required: bool
    type: str
    choices: tuple[Any, ...] | None
    settings: Mapping[str, Any]
    raw: Any = field(repr=False)

    @property
    def default(self) -> Any:
        """The value that the editor begins with; None when the server names none."""
        return self.settings.get("default")

    @property
    def minimum(self) -> float | None:
        """The smallest value that the server takes; None when there is no bound."""
        return _number(self.settings.get("min"))

    @property
    def maximum(self) -> float | None:
        """The greatest value that the server takes; None when there is no bound."""
        return _number(self.settings.get("max"))

    @property
    def step(self) -> float | None:
        """The editor's step between values; the server does not look at it. None when there is none."""
        return _number(self.settings.get("step"))

    @property
    def force_input(self) -> bool:
        """Whether the editor shows a socket and no widget, so that only a link can fill it."""
        return bool(self.settings.get("forceInput"))

    @property
    def multiselect(self) -> bool:
        """Whether a list of choices may be given (``{"__value__": [...]}`` in a prompt)."""
        return bool(self.settings.get("multiselect"))

    @property
    def control_after_generate(self) -> Any:
        """What the server says of the editor's seed control: a bool, a word, or None when it says nothing."""
        return self.settings.get("control_after_generate")

    @property
    def lazy(self) -> bool:
        """Whether what is linked here only runs when the node asks for it."""
        return bool(self.settings.get("lazy"))

    @property
    def remote(self) -> bool:
        """Whether the editor fetches the choices from a route; the server does not check the value."""
        return bool(self.settings.get("remote"))

    @property
    def tooltip(self) -> str:
        """The server's explanation; "" when there is none."""
        return _text(self.settings.get("tooltip"))

    @property
    def alternatives(self) -> dict[Any, dict[str, InputDefinition]]:
        """What each key of a dynamic combo adds, by inner name (no prefix, may be dynamic too); else ``{}``.

        Raises:
            ProtocolError: It is written as no ComfyUI writes it.
        """
        if self.type != DYNAMIC_COMBO or not isinstance(self.settings.get("options"), list):
            return {}
        return {
            option["key"]: read_inputs(option.get("inputs"), f"input {self.name!r}")
            for option in self.settings["options"]
            if isinstance(option, Mapping) and isinstance(option.get("key"), str | int | float)
        }

    @property
    def grown(self) -> dict[str, InputDefinition]:
        """All inputs that an autogrow input may grow to, by inner name (no prefix); the first ones may be required.

        ``{}`` when it is none, or is described in a way that is not known (0.3.64 had another, which no node used).

        Raises:
            ProtocolError: It is written as no ComfyUI writes it.
        """
        template = self.settings.get("template")
        if self.type != AUTOGROW or not isinstance(template, Mapping):
            return {}
        models = list(read_inputs(template.get("input"), f"input {self.name!r}").values())
        names = _grown_names(template)
        if not models:
            return {}
        least = template.get("min", 1) if models[0].required else 0
        least = least if isinstance(least, int) else 1
        return {name: models[0].named(name, required=number < least) for number, name in enumerate(names)}

    @property
    def slot_inputs(self) -> dict[str, InputDefinition]:
        """What a dynamic slot adds once it is linked, by inner name (no prefix); ``{}`` when it is none."""
        return read_inputs(self.settings.get("inputs"), f"input {self.name!r}") if self.type == DYNAMIC_SLOT else {}

    def named(self, name: str, *, required: bool | None = None) -> InputDefinition:
        """Give the same input under another name."""
        must = self.required if required is None else required
        return InputDefinition(name, must, self.type, self.choices, self.settings, self.raw)


@dataclass(frozen=True, slots=True)
class NodeDefinition:
    """One node class.

    Attributes:
        class_type: The name that prompts use.
        display_name: The title that the editor gives to a new node.
        inputs: By name, in the server's order: required ones, then optional ones. Dynamic ones as they are declared.
        hidden: What the server itself fills in (``PROMPT``, ``UNIQUE_ID``), by input name.
        output_types: One for each output: a type, or a tuple of choices where a class gives out a combo's value.
        output_names: One for each output; its type where the server names none.
        output_is_list: One for each output.
        output_matchtypes: For each output the template whose type it takes over; None where it has its own.
        is_input_list: Whether the node is given all items of a list at once.
        output_node: Whether it is a reason to run a prompt, as SaveImage is.
        python_module: Where it comes from: ``nodes``, ``comfy_extras.…``, ``custom_nodes.…``; "" when not told.
        raw: The class as the server described it.
    """

    class_type: str
    display_name: str
    inputs: Mapping[str, InputDefinition]
    hidden: Mapping[str, str]
    output_types: tuple[str | tuple[Any, ...], ...]
    output_names: tuple[str, ...]
    output_is_list: tuple[bool, ...]
    output_matchtypes: tuple[str | None, ...]
    is_input_list: bool
    output_node: bool
    category: str
    description: str
    python_module: str
    deprecated: bool
    experimental: bool
    api_node: bool
    raw: Mapping[str, Any] = field(repr=False)

    def inputs_for(self, values: Mapping[str, Any]) -> dict[str, InputDefinition]:
        """Give the inputs that a node has which is given these values, dynamic ones replaced by what they stand for.

        A dynamic combo or slot stays, before what it adds, when its value selects something; otherwise it is left
        out, as the server leaves it out. An autogrow input never stays. All that it may grow to is given.

        Raises:
            ProtocolError: A dynamic input is written as no ComfyUI writes it.
        """
        found: dict[str, InputDefinition] = {}
        _expand(self.inputs, "", values, found, depth=0)
        return found


class Definitions(Mapping[str, NodeDefinition]):
    """The node classes of a server, by class name, each read when it is first asked for.

    Example::

        definitions = Definitions(json.loads(Path("object_info.json").read_text()))
        definitions["KSampler"].inputs["steps"].maximum
    """

    __slots__ = ("_raw", "_read")

    def __init__(self, object_info: Mapping[str, Any]) -> None:
        """View an answer of ``GET /object_info`` (or ``/object_info/CLASS``); it is not copied.

        Raises:
            ProtocolError: It is something else.
        """
        if (wrong := _something_else(object_info)) is not None:
            raise ProtocolError(f"{wrong}; needed is the JSON object that GET /object_info answers")
        self._raw = object_info
        self._read: dict[str, NodeDefinition] = {}

    @classmethod
    def of(cls, object_info: Mapping[str, Any] | Definitions) -> Definitions:
        """Take definitions as they are, or view an answer of ``GET /object_info``; raises as the constructor."""
        return object_info if isinstance(object_info, Definitions) else cls(object_info)

    def __getitem__(self, class_type: str) -> NodeDefinition:
        """Give a class.

        Raises:
            KeyError: The server has no such class.
            ProtocolError: Its description is nonsense; the message says what of it.
        """
        if class_type not in self._read:
            self._read[class_type] = _read_class(class_type, self._raw[class_type])
        return self._read[class_type]

    def __contains__(self, class_type: object) -> bool:
        return isinstance(class_type, str) and class_type in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def mention(self, key: str) -> bool:
        """Tell whether the description of some class has a key, which tells newer servers from older ones."""
        return any(isinstance(raw, Mapping) and key in raw for raw in self._raw.values())

    def __repr__(self) -> str:
        return f"<Definitions of {len(self)} node classes>"


def _something_else(object_info: object) -> str | None:
    """Say what was given instead of node definitions; None when it may be them."""
    if not isinstance(object_info, Mapping):
        return f"this is {type(object_info).__name__}"
    if isinstance(object_info.get("nodes"), list):
        return "this is a workflow of the editor"
    entries = list(object_info.values())
    if entries and all(isinstance(entry, Mapping) and "class_type" in entry for entry in entries):
        return "this is a workflow in API format"
    if any(isinstance(object_info.get(key), list) for key in ("output", "output_name", "output_is_list")):
        return "this is the description of one class, not of classes by name"
    return None


# --- Reading ---------------------------------------------------------------------------------------------------------


def _read_class(class_type: str, raw: Any) -> NodeDefinition:
    where = f"object_info of class {class_type!r}"
    if not isinstance(raw, Mapping):
        raise ProtocolError(f"{where} is {type(raw).__name__}, not an object")
    types = tuple(_output_type(kind, where) for kind in _list(raw, "output", where))
    count = len(types)
    return NodeDefinition(
        class_type=class_type,
        display_name=_text(raw.get("display_name")) or class_type,
        inputs=read_inputs(raw.get("input"), where, raw.get("input_order")),
        hidden=_hidden(raw.get("input")),
        output_types=types,
        output_names=_output_names(_list(raw, "output_name", where), types),
        output_is_list=_padded([value is True for value in _list(raw, "output_is_list", where)], count, False),
        output_matchtypes=_padded(
            [value if isinstance(value, str) else None for value in _list(raw, "output_matchtypes", where)], count, None
        ),
        is_input_list=raw.get("is_input_list") is True,
        output_node=raw.get("output_node") is True,
        category=_text(raw.get("category")),
        description=_text(raw.get("description")),
        python_module=_text(raw.get("python_module")),
        deprecated=raw.get("deprecated") is True,
        experimental=raw.get("experimental") is True,
        api_node=raw.get("api_node") is True,
        raw=raw,
    )


def read_inputs(groups: Any, where: str, order: Any = None) -> dict[str, InputDefinition]:
    """Read ``{"required": {name: [type, settings]}, "optional": {...}}`` into inputs by name, in order.

    Args:
        groups: What the server wrote; None is no input.
        where: What it describes, for the error.
        order: The server's ``input_order``; None is the order of the groups themselves.

    Raises:
        ProtocolError: It has another form.
    """
    if not isinstance(groups, Mapping):
        if groups is None:
            return {}
        raise ProtocolError(f"{where}: its inputs are {type(groups).__name__}, not an object")
    found: dict[str, InputDefinition] = {}
    for group, required in _GROUPS:
        inputs = groups.get(group)
        if inputs is None:
            continue
        if not isinstance(inputs, Mapping):
            raise ProtocolError(f"{where}: its {group} inputs are {type(inputs).__name__}, not an object")
        for name in _in_order(inputs, order.get(group) if isinstance(order, Mapping) else None):
            if name not in found:  # declared twice, it is required (comfy_execution/graph.py get_input_info)
                found[name] = read_input(name, inputs[name], required=required, where=where)
    return found


def read_input(name: str, raw: Any, *, required: bool, where: str = "object_info") -> InputDefinition:
    """Read one input, ``[type, settings]``; ``where`` says in the error what it belongs to.

    Raises:
        ProtocolError: It has another form.
    """
    if isinstance(raw, str):  # ("IMAGE") in Python, which lacks the comma of a tuple
        raw = [raw]
    if not isinstance(raw, list | tuple) or len(raw) == 0:
        raise ProtocolError(f"{where}: input {name!r} is {_shown(raw)}, not [type, settings]")
    settings = raw[1] if len(raw) > 1 and isinstance(raw[1], Mapping) else {}
    kind = raw[0]
    if isinstance(kind, list | tuple):
        return InputDefinition(name, required, COMBO, tuple(kind), settings, raw)
    if not isinstance(kind, str):
        raise ProtocolError(f"{where}: the type of input {name!r} is {_shown(kind)}, not a text or a list of choices")
    return InputDefinition(name, required, kind, _choices(kind, settings), settings, raw)


def _choices(kind: str, settings: Mapping[str, Any]) -> tuple[Any, ...] | None:
    options = settings.get("options")
    if not isinstance(options, list | tuple):
        return None
    if kind == DYNAMIC_COMBO:
        return tuple(option["key"] for option in options if isinstance(option, Mapping) and "key" in option)
    return tuple(options) if kind == COMBO else None


def _hidden(groups: Any) -> dict[str, str]:
    hidden = groups.get("hidden") if isinstance(groups, Mapping) else None
    found = {}
    for name, kind in hidden.items() if isinstance(hidden, Mapping) else ():
        kind = kind[0] if isinstance(kind, list | tuple) and kind else kind  # V3 classes write ["PROMPT"]
        found[name] = kind if isinstance(kind, str) else ""
    return found


def _output_type(kind: Any, where: str) -> str | tuple[Any, ...]:
    if isinstance(kind, str):
        return kind
    if isinstance(kind, list | tuple):
        return tuple(kind)
    raise ProtocolError(f"{where}: an output's type is {_shown(kind)}, not a text or a list of choices")


def _output_names(names: list[Any], types: tuple[str | tuple[Any, ...], ...]) -> tuple[str, ...]:
    given = [name if isinstance(name, str) else COMBO if isinstance(name, list) else "" for name in names[: len(types)]]
    rest = [kind if isinstance(kind, str) else COMBO for kind in types[len(given) :]]
    return tuple(given + rest)


def _in_order(inputs: Mapping[str, Any], order: Any) -> list[str]:
    first = [name for name in order if isinstance(name, str) and name in inputs] if isinstance(order, list) else []
    return list(dict.fromkeys([*first, *inputs]))


def _list(raw: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ProtocolError(f"{where}: its {key!r} is {_shown(value)}, not a list")
    return list(value)


def _padded(values: list[Any], count: int, filler: Any) -> tuple[Any, ...]:
    return tuple(values[:count] + [filler] * (count - len(values)))


# --- Dynamic inputs --------------------------------------------------------------------------------------------------


def _expand(
    inputs: Mapping[str, InputDefinition],
    prefix: str,
    values: Mapping[str, Any],
    found: dict[str, InputDefinition],
    *,
    depth: int,
) -> None:
    """Add inputs under a prefix to those found, dynamic ones by what they stand for."""
    if depth > _DEEPEST:
        raise ProtocolError(f"object_info: the dynamic inputs under {prefix!r} lie deeper than {_DEEPEST} levels")
    for name, declared in inputs.items():
        full = prefix + name
        if declared.type == AUTOGROW and declared.grown:
            _expand(declared.grown, f"{full}.", values, found, depth=depth + 1)
            continue
        if declared.type == DYNAMIC_COMBO:
            added = _selected(declared, values.get(full))
        elif declared.type == DYNAMIC_SLOT:
            added = declared.slot_inputs if full in values else None
        else:
            added = {}
        if added is not None:
            found[full] = declared.named(full)
            _expand(added, f"{full}.", values, found, depth=depth + 1)


def _selected(declared: InputDefinition, key: Any) -> dict[str, InputDefinition] | None:
    return declared.alternatives.get(key) if isinstance(key, str | int | float) else None


def _grown_names(template: Mapping[str, Any]) -> list[str]:
    names, prefix, most = template.get("names"), template.get("prefix"), template.get("max")
    if isinstance(names, list):
        return [name for name in names[:_MOST_GROWN] if isinstance(name, str)]
    if isinstance(prefix, str) and isinstance(most, int):
        return [f"{prefix}{number}" for number in range(min(most, _MOST_GROWN))]
    return []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
