"""The node classes that check inputs themselves (``VALIDATE_INPUTS``): which those are, and what they say.

The server does not tell which classes have such a check. An input that it names is converted, but not looked up in its
list nor compared with its limits. The ones of ComfyUI itself are in a table here (nodes.py, comfy_extras and
comfy_api_nodes of 0.3.40 to 0.33.0). Of other packs' classes nothing is known: where an input looks like one that has
a check of its own, what the server would say otherwise is doubtful.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..definitions import COMBO, Definitions, InputDefinition, NodeDefinition
from ..errors import ProtocolError
from .findings import Broken, Finding, write_error

Verdict: TypeAlias = str | bool
"""What ``VALIDATE_INPUTS`` gives back: True, or what is wrong."""


_INPUT_FOLDERS = ("3d", "clipspace", "painter", "pasted", "threed", "webcam")


@dataclass(frozen=True, slots=True)
class OwnCheck:
    """The check that a class makes itself.

    Attributes:
        takes: The inputs that it names.
        needs: Those of them without which Python cannot call it.
        everything: It takes all inputs (``**kwargs``).
        any_link: It takes ``input_types``: the server leaves the types of links to it.
        owner: The Python class that has it; "" when that is called as the node class.
        api: "V1" or "V3" where only that form of the class has it; "" when any has.
        verdict: What it says of its inputs, as far as that can be known offline, given the names of files that are
            known to be there; None: nothing can be known.
    """

    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    everything: bool = False
    any_link: bool = False
    owner: str = ""
    api: str = ""
    verdict: Callable[[Mapping[str, Any], frozenset[str]], Verdict] | None = None

    def covers(self, name: str) -> bool:
        """Tell whether the server leaves the limits and the list of an input to this check."""
        return self.everything or name in self.takes


NO_CHECK = OwnCheck()


def _file_there(name: str, kind: str) -> Callable[[Mapping[str, Any], frozenset[str]], Verdict]:
    def verdict(given: Mapping[str, Any], listed: frozenset[str]) -> Verdict:
        value = given[name]
        if not isinstance(value, str):
            raise AttributeError(f"'{type(value).__name__}' object has no attribute 'endswith'")
        return f"Invalid {kind} file: {value}" if listed and _surely_absent(value, listed) else True

    return verdict


def _surely_absent(value: str, listed: frozenset[str]) -> bool:
    """Tell whether a file is not in the input folder.

    Files in other folders (``name.png [output]``) and in subfolders are not listed. Folders pass for files, and "" and
    ".." are such, as are those that ComfyUI itself makes.
    """
    elsewhere = "/" in value or "\\" in value or value.endswith("]")
    folder = not value.strip(". ") or value in _INPUT_FOLDERS
    return not elsewhere and not folder and value not in listed


def _model_there(given: Mapping[str, Any], listed: frozenset[str]) -> Verdict:
    value = given["model_file"]
    return True if not value or value == "none" else _file_there("model_file", "3D model")(given, frozenset())


def _takes_file(name: str, kind: str, *more: str, owner: str = "") -> OwnCheck:
    return OwnCheck((name, *more), (name, *more), owner=owner, verdict=_file_there(name, kind))


_CAMERA = ("horizontal_movement", "vertical_movement", "pan", "tilt", "roll", "zoom")
_DEVICE = OwnCheck(("device",))
_IMAGE_FILE = _takes_file("image", "image", owner="LoadImage")
_MODEL_FILE = OwnCheck(("model_file",), ("model_file",), everything=True, api="V3", verdict=_model_there)
_OWN_CHECKS: Mapping[str, OwnCheck] = {
    "LoadImage": _IMAGE_FILE,
    "LoadImageMask": _IMAGE_FILE,
    "LoadImageOutput": _IMAGE_FILE,
    "WebcamCapture": _IMAGE_FILE,
    "LoadImageSetNode": _takes_file("images", "image", "resize_method"),
    "LoadLatent": _takes_file("latent", "latent"),
    "LoadAudio": _takes_file("audio", "audio"),
    "LoadVideo": _takes_file("file", "video"),
    "Load3D": _MODEL_FILE,
    "Load3DAdvanced": _MODEL_FILE,
    "CustomCombo": OwnCheck(("choice",), ("choice",), everything=True, owner="CustomComboNode"),
    "LoraSave": OwnCheck(("lora_type",), api="V1"),  # no check, but a tuple of choices, which the server passes over
    "ModelAttentionBackend": OwnCheck(("attention",), ("attention",)),
    "SelectModelDevice": _DEVICE,
    "SelectCLIPDevice": _DEVICE,
    "SelectVAEDevice": _DEVICE,
    "FluxProUltraImageNode": OwnCheck(("aspect_ratio",), ("aspect_ratio",)),
    "FluxKontextProImageNode": OwnCheck(("aspect_ratio",)),  # 0.3.40 only
    "FluxKontextMaxImageNode": OwnCheck(("aspect_ratio",)),
    "KlingCameraControls": OwnCheck(_CAMERA, _CAMERA),
    "TripoConversionNode": OwnCheck(any_link=True),
}
_FILE_INPUTS = (
    ("LoadImage", "image"),
    ("LoadImageMask", "image"),
    ("LoadImageSetNode", "images"),
    ("LoadLatent", "latent"),
    ("LoadAudio", "audio"),
    ("LoadVideo", "file"),
)


def is_core(definition: NodeDefinition) -> bool:
    """Tell whether a class is ComfyUI's own, by the module that the server names."""
    return definition.python_module.partition(".")[0] in ("nodes", "comfy_extras", "comfy_api_nodes")


def is_v3(definition: NodeDefinition) -> bool:
    """Tell whether a class is written for the V3 API (0.3.50): those always tell these, others when they are true."""
    return definition.raw.keys() >= {"deprecated", "experimental", "api_node"}


def own_check(definition: NodeDefinition) -> OwnCheck:
    """Give the check that a class of ComfyUI's own makes itself; `NO_CHECK` when there is none, or it is not known."""
    check = _OWN_CHECKS.get(definition.class_type, NO_CHECK) if is_core(definition) else NO_CHECK
    return check if check.api in ("", "V3" if is_v3(definition) else "V1") else NO_CHECK


def may_check_links(definition: NodeDefinition) -> bool:
    """Tell whether a class of some pack looks like one that checks the types of its links itself.

    Packs do that to take several types where the server's own check would not let them.
    """
    return not is_core(definition) and any(_of_several_types(item) for item in definition.inputs.values())


def may_check_value(definition: NodeDefinition, item: InputDefinition) -> bool:
    """Tell whether an input of some pack's class looks like one that the class checks itself.

    Packs do that for choices that the server does not know yet: files that are uploaded, what the pack's own part of
    the editor fills in.
    """
    if is_core(definition):
        return False
    if item.type != COMBO:
        return _of_several_types(item)
    return item.choices is None or len(item.choices) < 2 or item.remote or any("upload" in key for key in item.settings)


def _of_several_types(item: InputDefinition) -> bool:
    return "*" in item.type or "," in item.type


def listed_files(definitions: Definitions) -> frozenset[str]:
    """Name the files in the server's input folder that some loader of ComfyUI's own lists."""
    found: set[str] = set()
    for class_type, name in _FILE_INPUTS:
        try:
            definition = definitions.get(class_type)
        except ProtocolError:
            continue
        item = definition.inputs.get(name) if definition is not None else None
        found.update(choice for choice in (item.choices or () if item else ()) if isinstance(choice, str))
    return frozenset(found)


def ask(
    definition: NodeDefinition, inputs: Mapping[str, InputDefinition], values: Mapping[str, Any], listed: frozenset[str]
) -> list[Finding] | Broken:
    """Give what the class's own check would say of a node's values (links are None to it)."""
    check = own_check(definition)
    given = {name: value for name, value in values.items() if name in inputs and check.covers(name)}
    absent = [name for name in check.needs if name not in given]
    if absent:
        names = " and ".join(repr(name) for name in absent)
        count = f"{len(absent)} required positional argument{'s' if len(absent) > 1 else ''}"
        function = "validate_inputs" if is_v3(definition) else "VALIDATE_INPUTS"
        text = f"{check.owner or definition.class_type}.{function}() missing {count}: {names}"
        return Broken("TypeError", text, f"it needs input {names}")
    try:
        verdict = True if check.verdict is None else check.verdict(given, listed)
    except Exception as exc:
        return Broken.by(exc, f"its own check of {', '.join(map(repr, given))} cannot read what was given")
    if verdict is True:
        return []
    return [_refused(name, verdict, inputs[name], given[name]) for name in given]


def _refused(name: str, verdict: Verdict, declared: InputDefinition, value: Any) -> Finding:
    message = "Custom validation failed for node"
    error = write_error("custom_validation_failed", message, f"{name} - {verdict}", input_name=name)
    return Finding(error, choices=declared.choices or None, received=value)
