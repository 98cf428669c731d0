"""Workflows and small programs that come with acomfy.

``python -m acomfy.examples.saved_images`` and ``python -m acomfy.examples.streamed_images`` are the two ways to get
pictures from ComfyUI, each as a complete program.
"""

from __future__ import annotations

from importlib import resources

from ..workflow import Workflow

WORKFLOWS = ("text_to_image", "text_to_image_stream")
"""What `load` knows: text to image with SaveImage, and with SaveImageWebsocket."""


def load(name: str) -> Workflow:
    """Load a workflow of this package by its name.

    Raises:
        KeyError: There is none of that name.
    """
    if name not in WORKFLOWS:
        raise KeyError(name)
    return Workflow.load(resources.files(__name__).joinpath(f"{name}.json").read_bytes())
