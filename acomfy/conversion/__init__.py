"""Convert what the editor saves (UI format) to what the server runs (API format), offline and without guessing.

It does what the web editor does when it queues a prompt: follows links through reroutes, bypassed nodes and subgraphs,
deals the saved values to the widgets by ``object_info``, and processes texts. Observed with
comfyui-frontend-package 1.27.10 and 1.58.1 against server 0.3.64 and 0.33.0; where the two differ, the later one counts
unless it is plainly wrong (comments say where). Pure: no file, no clock, no randomness of its own.

Read from the top: `saved` reads the file; `classes` knows which inputs of a class are widgets; `values` deals the saved
values; `groups` opens group nodes; `scopes` shows each node as the editor has it; `promoted` and `resolve` find what
feeds an input; `text` processes prompts and file names; `prompt` writes the result.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from ..definitions import Definitions
from .prompt import Choices, Writer
from .saved import read
from .scopes import Editor
from .text import Moment

__all__ = ["to_api"]


def to_api(
    ui: Mapping[str, Any],
    object_info: Mapping[str, Any] | Definitions,
    *,
    keep_unknown: bool = False,
    rng: random.Random | None = None,
    now: Moment | None = None,
) -> dict[str, Any]:
    """Convert a workflow that the editor saved to the graph that ``POST /prompt`` takes.

    Neither argument is changed, and the result shares nothing with them. Integers stay exact, also those that the
    editor would round (above 2**53); ``control_after_generate`` is never acted upon.

    Args:
        ui: The saved JSON, version 0.4 or 1.
        object_info: The answer of ``GET /object_info`` of the server that is to run it, or `Definitions` of it, which
            remember what they read from one conversion to the next.
        keep_unknown: Keep nodes of classes that `object_info` has not: with their class, title, links, and those
            widget values whose names the file tells (``widgets_values`` as an object, or saved inputs that name a
            widget for each value). Without it they are an error.
        rng: Picks among ``{a|b}`` in dynamic prompts; None takes the first option each time.
        now: The time for ``%date:...%`` in file names (a `datetime`); None makes such a token an error.

    Returns:
        A graph in API format with ``_meta.title``. Nested ids read "12:3". Inputs that only the editor uses (upload
        buttons, audio players, previews) are left out; lists are wrapped as ``{"__value__": [...]}``.

    Raises:
        UnknownNodes: Nodes that would run are of classes that `object_info` has not; it lists them all.
        WorkflowFormatError: `ui` is not the editor's JSON, or contradicts itself where it matters (the editor throws
            there, or would make a prompt other than the one it shows), or needs the browser (a webcam's picture).
        ProtocolError: `object_info` is something else, or describes a class that is used in no known way.
    """
    editor = Editor(read(ui), Definitions.of(object_info))
    return Writer(editor, Choices(rng, now)).prompt(keep_unknown=keep_unknown)
