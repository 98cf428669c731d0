"""The prompt that everybody sends: the guide's text to image."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]

SAMPLER, SAVE, STREAM = "3", "9", "save_image_websocket_node"
"""Node ids: the sampler, and the two nodes that give the picture."""


def workflow(*, stream: bool) -> Graph:
    """Make a graph of its own: a picture that is saved, or streamed; its nodes in the order in which they run."""
    graph: Graph = {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "masterpiece best quality man", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad hands", "clip": ["4", 1]}},
        SAMPLER: {
            "class_type": "KSampler",
            "inputs": {
                "seed": 5,
                "steps": 20,
                "cfg": 8,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": [SAMPLER, 0], "vae": ["4", 2]}},
    }
    if stream:
        graph[STREAM] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["8", 0]}}
    else:
        graph[SAVE] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "ComfyUI"}}
    return graph
