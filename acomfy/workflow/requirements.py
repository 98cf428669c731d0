"""The files that a graph needs on the server: models, and pictures or other inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .graph import describe, is_link
from .query import Nodes

if TYPE_CHECKING:
    from ..definitions import Definitions, InputDefinition

MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".torchscript")
_UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload", "animated_image_upload")
_ELSEWHERE = re.compile(r" \[(input|output|temp)\]$")
_EMBEDDING = re.compile(r"embedding:([^\s,:()]+)")

# Where ComfyUI's own loaders look (nodes.py and comfy_extras, 0.33.0); the class decides before the input's name does.
_FOLDERS_BY_CLASS = {
    "CLIPVisionLoader": "clip_vision",
    "StyleModelLoader": "style_models",
    "UpscaleModelLoader": "upscale_models",
    "LatentUpscaleModelLoader": "latent_upscale_models",
    "ModelPatchLoader": "model_patches",
    "AudioEncoderLoader": "audio_encoders",
    "HypernetworkLoader": "hypernetworks",
    "PhotoMakerLoader": "photomaker",
    "GLIGENLoader": "gligen",
    "DiffusersLoader": "diffusers",
}
_FOLDERS_BY_INPUT = {
    "ckpt_name": "checkpoints",
    "config_name": "configs",
    "lora_name": "loras",
    "vae_name": "vae",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "text_encoder": "text_encoders",
    "control_net_name": "controlnet",
    "hypernetwork_name": "hypernetworks",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """A file that a workflow needs on the server.

    Attributes:
        node_id: The node that needs it.
        node: The node for people: ``node 4 (CheckpointLoaderSimple)``.
        input_name: The input that names it.
        value: Its name, as the input has it.
        folder: The server's kind of folder: ``checkpoints``, ``loras``, ..., ``input`` for what is uploaded; None when
            it is not known.
        available: Whether the server lists it; None when that cannot be told.
    """

    node_id: str
    node: str
    input_name: str
    value: str
    folder: str | None
    available: bool | None

    def __str__(self) -> str:
        state = {True: "", False: ", missing on the server", None: ""}[self.available]
        folder = f" in {self.folder}" if self.folder else ""
        return f"{self.value}{folder}{state} ({self.node}, {self.input_name})"


def requirements(nodes: Nodes, definitions: Definitions | None) -> Iterator[Requirement]:
    """Yield the files that a graph names, in the order of its nodes."""
    for node_id, node in nodes.items():
        declared = _declared(node, definitions)
        for name, value in node["inputs"].items():
            if is_link(value):
                continue
            for one in _listed(value):
                yield from _needed(node_id, node, name, one, declared.get(name))


def _declared(node: Mapping[str, Any], definitions: Definitions | None) -> Mapping[str, InputDefinition]:
    if definitions is None or node["class_type"] not in definitions:
        return {}
    return definitions[node["class_type"]].inputs_for(node["inputs"])


def _listed(value: Any) -> list[str]:
    """Give the texts that a value holds, of a list of choices each."""
    if isinstance(value, Mapping) and isinstance(value.get("__value__"), list):
        value = value["__value__"]
    return [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, str)]


def _needed(
    node_id: str, node: Mapping[str, Any], name: str, value: str, declared: InputDefinition | None
) -> Iterator[Requirement]:
    def required(what: str, folder: str | None, available: bool | None) -> Requirement:
        return Requirement(node_id, describe(node_id, node), name, what, folder, available)

    if declared is not None and any(declared.settings.get(upload) for upload in _UPLOADS):
        elsewhere = _ELSEWHERE.search(value)
        if value:
            yield required(value, elsewhere[1] if elsewhere else "input", None if elsewhere else _has(declared, value))
    elif declared is not None and declared.type == "COMBO":
        if _names_files(declared) or (value.lower().endswith(MODEL_FILES) and value not in (declared.choices or ())):
            yield required(value, folder_of(node["class_type"], name), _has(declared, value))
    elif declared is None and value.lower().endswith(MODEL_FILES):
        yield required(value, folder_of(node["class_type"], name), None)
    else:
        for embedding in _EMBEDDING.findall(value):
            yield required(embedding, "embeddings", None)


def _names_files(declared: InputDefinition) -> bool:
    """Tell whether a combo lists files; that of an empty folder lists none, and nothing but its name tells."""
    choices = declared.choices or ()
    if any(isinstance(choice, str) and choice.lower().endswith(MODEL_FILES) for choice in choices):
        return True
    return not choices and _by_input(declared.name) is not None


def _has(declared: InputDefinition, value: str) -> bool | None:
    return None if declared.choices is None else value in declared.choices


def folder_of(class_type: str, input_name: str) -> str | None:
    """Give the kind of folder that an input names a file of; None when it is not known."""
    return _FOLDERS_BY_CLASS.get(class_type) or _by_input(input_name)


def _by_input(input_name: str) -> str | None:
    return _FOLDERS_BY_INPUT.get(input_name.rpartition(".")[2].rstrip("0123456789"))
