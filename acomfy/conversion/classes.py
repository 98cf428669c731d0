"""What the editor makes of a node class of ``object_info``: which inputs are widgets, in which order, and what they
hold.

Rules of frontend 1.27.10 and 1.58.1, observed and looked up: the order of inputs is ``input_order`` (required, then
optional, then whatever it leaves out); an input is a widget by its type, unless ``forceInput`` says socket or
``widgetType`` names another type; INT, FLOAT, STRING, BOOLEAN and COMBO (or a list of choices) are the widgets of all
versions, the others came with frontends 1.2x to 1.58.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..definitions import DYNAMIC_COMBO, MATCH_TYPE, InputDefinition, NodeDefinition

_WIDGET_TYPES = frozenset(
    {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO, "MARKDOWN", "TEXTAREA", "COLOR", "COLORS"}
    | {"BOUNDING_BOX", "BOUNDING_BOXES", "CURVE", "RANGE", "CHART", "GALLERIA", "IMAGECOMPARE", "PAINTER"}
    | {"COMPOSITOR", "VIDEO_EDIT", "RESOLUTION_PREVIEW", "LIGHT_INFO_PREVIEW", "IMAGEUPLOAD"}
    | {"AUDIO_RECORD", "PREVIEW_3D"}
)
_LIVE_TYPES = frozenset({"WEBCAM", "LOAD_3D", "LOAD_3D_ANIMATION"})
"""Widgets whose value the browser makes at the moment of queueing: a picture of the camera, a rendered view."""
RECORDER = "AUDIO_RECORD"
"""A recorder; what it recorded is not saved, and the editor sends "" then."""
COMPARISON = "IMAGECOMPARE"
"""A view of two pictures, without a place among the saved values; the editor sends their two addresses, or ""."""
CURVE = "CURVE"
VIEWPORT = "viewport_state"
"""A live view's angle; the server takes an empty one for its own (comfy_extras/nodes_load_3d.py, 0.33.0)."""
_PREVIEW = "PREVIEW_3D"
"""A widget that the editor adds to some classes; the server ignores it."""

LOADING = "Loading..."
"""What a list shows, and even saves, until its route has answered; it stands for no choice."""

_SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True, eq=False)
class Input:
    """One input of a class, as the editor sees it.

    Attributes:
        name: With what stands before it when a dynamic combo brings it, for example "mode.strength".
        type: The type that its socket has; COMBO for a list of choices.
    """

    name: str
    type: str
    _definition: InputDefinition

    @property
    def options(self) -> Mapping[str, Any]:
        return self._definition.settings

    @property
    def choices(self) -> tuple[Any, ...] | None:
        return self._definition.choices

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest number that the widget lets through; without ends 0 to 2048."""
        least, most = self._definition.minimum, self._definition.maximum
        return (0 if least is None else least, 2048 if most is None else most)

    @property
    def step(self) -> float | None:
        step = self._definition.step
        return step if step is not None and step > 0 else None

    @cached_property
    def widget_type(self) -> str:
        kind = self.options.get("widgetType")
        return kind if isinstance(kind, str) and kind else self.type

    @cached_property
    def is_widget(self) -> bool:
        return not self.options.get("forceInput") and (
            self.widget_type in _WIDGET_TYPES or self.widget_type in _LIVE_TYPES
        )

    @property
    def is_text_box(self) -> bool:
        """Whether the value lives in a text box of many lines, which makes text of everything."""
        return self.widget_type == "STRING" and bool(self.options.get("multiline"))

    @property
    def is_live(self) -> bool:
        """Whether only a browser can give the value that the server needs."""
        return self.is_widget and self.widget_type in _LIVE_TYPES and self.name != VIEWPORT

    @property
    def places(self) -> int:
        """Count the places in ``widgets_values`` that the widget takes, with the helpers right after it.

        ``control_after_generate`` (explicit, or by the names seed and noise_seed) takes one, and one more for the
        filter of a combo; a list that is fetched by a route has a refresh button and, with
        ``control_after_refresh``, a switch.
        """
        control = self.options.get("control_after_generate")
        if self.widget_type == COMPARISON:
            return 0
        if self.widget_type == RECORDER:
            return 2
        if self.widget_type == "INT":
            return 2 if (self.name in _SEEDS if control is None else control) else 1
        if self.widget_type != "COMBO":
            return 1
        remote = self.options.get("remote")
        remote = remote if isinstance(remote, Mapping) else {}
        helpers = bool(remote.get("refresh_button")) + bool(remote.get("control_after_refresh"))
        return 1 + helpers + (2 if control else 0)

    @cached_property
    def default(self) -> Any:
        """What the widget shows when the file has no value for it."""
        given = self.options.get("default")
        if self.widget_type == "COMBO":
            if self.options.get("multi_select"):
                return []
            return given or (self.choices[0] if self.choices else LOADING if self.is_fetched else None)
        if self.widget_type == DYNAMIC_COMBO:
            return next(iter(self.branches), None)
        if self.widget_type == COMPARISON:
            return ["", ""]
        if given is not None:
            return given
        return {"INT": 0, "FLOAT": 0, "BOOLEAN": False}.get(self.widget_type, "")

    @property
    def is_fetched(self) -> bool:
        """Whether the choices come from a route of the server, so that `object_info` has none."""
        return self._definition.remote

    @cached_property
    def branches(self) -> dict[Any, list[Input]]:
        """The further inputs that each choice of a dynamic combo brings, by the choice."""
        return {key: list(_inputs(inputs, f"{self.name}.")) for key, inputs in self._definition.alternatives.items()}

    def like(self, name: str, **options: Any) -> Input:
        """Give an input of the same kind under another name, as a PrimitiveNode's widget is."""
        definition = replace(self._definition, settings={**self.options, **options})
        return Input(name, self.type, definition)

    @cached_property
    def socket_type(self) -> str:
        """The type that decides what passes through a bypassed node."""
        if self.type == MATCH_TYPE:
            template = self.options.get("template")
            allowed = template.get("allowed_types") if isinstance(template, Mapping) else None
            return allowed if isinstance(allowed, str) else "*"
        return self.type


class NodeClass:
    """One class of ``object_info``, as the editor sees it."""

    def __init__(self, definition: NodeDefinition) -> None:
        self._definition = definition

    @property
    def display_name(self) -> str:
        return self._definition.display_name

    @cached_property
    def inputs(self) -> list[Input]:
        inputs = list(_inputs(self._definition.inputs, ""))
        if self._definition.class_type in ("Preview3D", "SaveGLB"):
            inputs.append(_preview())
        return inputs

    @cached_property
    def outputs(self) -> list[str]:
        return [_output_type(output) for output in self._definition.output_types]

    @cached_property
    def has_matched_outputs(self) -> bool:
        """Whether types of outputs follow what is connected, so that the saved ones say more than the class's."""
        return any(spec.type == MATCH_TYPE for spec in self.inputs)

    @cached_property
    def has_view(self) -> bool:
        """Whether what the node says of camera and model follows a live view in the browser."""
        return any(spec.name == VIEWPORT for spec in self.inputs)

    @cached_property
    def is_pack_of_named_values(self) -> bool:
        """Whether the class is of VideoHelperSuite, whose own script saves widget values by name."""
        return "videohelpersuite" in self._definition.python_module.lower()


def _preview() -> Input:
    return Input("image", _PREVIEW, InputDefinition("image", False, _PREVIEW, None, {}, [_PREVIEW]))


def _output_type(output: str | tuple[Any, ...]) -> str:
    if isinstance(output, tuple):
        return "COMBO"
    return "*" if output == MATCH_TYPE else output


def _inputs(definitions: Mapping[str, InputDefinition], prefix: str) -> Iterator[Input]:
    for name, definition in definitions.items():
        yield Input(prefix + name, definition.type, definition)


REROUTE_INPUT = Input("", "*", InputDefinition("", False, "*", None, {}, ["*"]))
"""The one input of a Reroute, which is in no ``object_info``."""
