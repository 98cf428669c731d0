"""The editor's values without names, named where ComfyUI's common classes are known, so that they can be shown.

The editor saves a node's values by their places alone; what they are called, the server's node classes tell. For a look
at a file without a server, the classes that nearly every workflow has are listed here. To run it, this is not enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ..embedded import read_embedded_file
from ..workflow import Workflow, is_link

_CONTROLS = ("fixed", "increment", "decrement", "randomize")  # what stands behind a seed, never sent
_DEEPEST = 20  # a subgraph that contains itself ends there
_LATENT = ("width", "height", "batch_size")
_NAMES = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CLIPLoader": ("clip_name", "type", "device"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "CLIPTextEncode": ("text",),
    "CLIPVisionLoader": ("clip_name",),
    "ControlNetLoader": ("control_net_name",),
    "DualCLIPLoader": ("clip_name1", "clip_name2", "type", "device"),
    "EmptyLatentImage": _LATENT,
    "EmptySD3LatentImage": _LATENT,
    "FluxGuidance": ("guidance",),
    "KSampler": ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerSelect": ("sampler_name",),
    "LoadImage": ("image",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "RandomNoise": ("noise_seed",),
    "SaveImage": ("filename_prefix",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "UpscaleModelLoader": ("model_name",),
    "VAELoader": ("vae_name",),
}


def with_unnamed(workflow: Workflow, source: Path | bytes) -> Workflow:
    """Add the values that a file of the editor holds to nodes of which nothing but the links is known.

    A value whose name is not known is named by its place: ``value 1``.
    """
    filled = workflow.copy()
    for node_id, node in _saved_nodes(_editor_json(source)):
        values = node.get("widgets_values")
        if node_id not in filled or not isinstance(values, list):
            continue
        inputs = filled[node_id]["inputs"]
        if all(is_link(value) for value in inputs.values()):
            for name, value in _named(filled[node_id]["class_type"], values).items():
                inputs.setdefault(name, value)
    return filled


def _editor_json(source: Path | bytes) -> Mapping[str, Any]:
    with source.open("rb") if isinstance(source, Path) else BytesIO(source) as file:
        embedded = read_embedded_file(file)
        file.seek(0)
        found = embedded.workflow if embedded.kind else json.loads(file.read())
    return found if isinstance(found, Mapping) else {}


def _saved_nodes(graph: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the nodes as they were saved, those in subgraphs too, by the ids that the conversion gives them."""
    definitions = graph.get("definitions")
    known = _objects(definitions.get("subgraphs") if isinstance(definitions, Mapping) else None)
    subgraphs = {str(one.get("id")): one for one in known}
    waiting = [(node, "", 0) for node in _objects(graph.get("nodes"))]
    while waiting:
        node, before, depth = waiting.pop()
        node_id = f"{before}{node.get('id')}"
        yield node_id, node
        inner = subgraphs.get(str(node.get("type")))
        if inner is not None and depth < _DEEPEST:
            waiting += [(one, f"{node_id}:", depth + 1) for one in _objects(inner.get("nodes"))]


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _named(class_type: str, values: list[Any]) -> dict[str, Any]:
    """Name values by their places; the word behind a seed has no place of its own."""
    known = list(_NAMES.get(class_type, ()))
    named: dict[str, Any] = {}
    for place, value in enumerate(values):
        if place and value in _CONTROLS and isinstance(values[place - 1], int):
            if not known:
                named = {("seed" if name == list(named)[-1] else name): one for name, one in named.items()}
            continue
        if not known or len(named) < len(known):
            named[known[len(named)] if known else f"value {place + 1}"] = value
    return named
