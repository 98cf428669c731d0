"""Prompts for tests, in API format."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def saved(color: int = 0, *, size: int = 64, batch: int = 1, node: str = "SaveImage") -> dict[str, Any]:
    """A picture of one colour, saved (or, by another node, shown or streamed)."""
    inputs: dict[str, Any] = {"images": ["1", 0]}
    if node == "SaveImage":
        inputs["filename_prefix"] = "test"
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": size, "batch_size": batch, "color": color},
        },
        "2": {"class_type": node, "inputs": inputs},
    }


def streamed(color: int = 0, *, size: int = 64, batch: int = 1) -> dict[str, Any]:
    return saved(color, size=size, batch=batch, node="SaveImageWebsocket")


def sampled(seed: int = 0, *, steps: int = 4, text: str = "a fox", node: str = "SaveImage") -> dict[str, Any]:
    """The guide's text-to-image prompt, small."""
    output: dict[str, Any] = {"images": ["8", 0]}
    if node == "SaveImage":
        output["filename_prefix"] = "sampled"
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": seed,
                "steps": steps,
                "cfg": 8.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"},
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": text, "clip": ["4", 1]},
            "_meta": {"title": "Positive"},
        },
        "7": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "blurry", "clip": ["4", 1]},
            "_meta": {"title": "Negative"},
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": node, "inputs": output},
    }


def gated(name: str, *, node: str = "SaveImage") -> dict[str, Any]:
    """A prompt that runs until the test opens its gate (see ``gates`` in conftest)."""
    graph = saved(node=node)
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["3"] = {"class_type": "Gate", "inputs": {"image": ["1", 0], "name": name}}
    return graph


def color_of(data: bytes) -> int:
    """The colour of a picture's first pixel, as EmptyImage takes it."""
    pixel = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    red, green, blue = (int(value) for value in pixel)
    return red << 16 | green << 8 | blue
