"""How the versions of ComfyUI differ in what they check, and which version an ``object_info`` is of.

The rules are those of execution.py (validate_prompt, validate_inputs) and comfy_execution/validation.py, compared in
0.3.40, 0.3.50, 0.3.64, 0.8.0, 0.19.1, 0.26.0 and 0.33.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from ..definitions import Definitions

Version: TypeAlias = tuple[int, ...]

# A key that newer servers add to the description of some or all classes, and the first release that has it. The node
# descriptions do not name the version, but it is no older than that.
_MARKS: tuple[tuple[str, Version], ...] = (
    ("has_intermediate_output", (0, 19)),
    ("is_input_list", (0, 12)),
    ("price_badge", (0, 9, 2)),
)
_NEW_IN_0_8 = "BatchImagesNode"  # came with the check of COMBO (#11345)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a version checks.

    Attributes:
        any_fits: ``*`` and ``COMFY_MATCHTYPE_V3`` fit every type (0.4.0, #10832). Before, it depends on the Python
            class that stands behind the ``*``, which nobody tells.
        checks_options: A value is looked up in the list of a combo that is written as ``COMBO`` (0.8.0, #11345), not
            only of one whose type is the list itself.
        several_choices: A combo with ``multiselect`` takes a list of its choices (0.21.0, #13484).
        names_missing_class: An unknown class is ``missing_node_type`` (0.12.0, #12194); before, ``invalid_prompt``.
        names_cycles: A cycle is an error of its nodes (0.20.0, #13169). Before, an output behind one is dropped without
            a word, and a prompt of which nothing else is left is refused without naming a node.
        renames: Classes that were renamed are replaced before the check (0.14.0).
        takes_targets: ``partial_execution_targets`` is looked at (0.3.48).
    """

    any_fits: bool
    checks_options: bool
    several_choices: bool
    names_missing_class: bool
    names_cycles: bool
    renames: bool
    takes_targets: bool


def rules_for(version: str | None, definitions: Definitions) -> Rules:
    """Give the rules of a version; with None, those of which the definitions leave no doubt.

    Raises:
        ValueError: It is no version like ``0.3.64``.
    """
    known = read_version(version) if version is not None else _oldest_possible(definitions)
    return Rules(
        any_fits=known >= (0, 4),
        checks_options=known >= (0, 8),
        several_choices=known >= ((0, 19) if version is None else (0, 21)),
        names_missing_class=known >= (0, 12),
        names_cycles=known >= ((0, 19) if version is None else (0, 20)),
        renames=known >= (0, 14),
        takes_targets=known >= (0, 3, 48) or version is None,
    )


def read_version(text: str) -> Version:
    """Read ``0.3.64`` (also ``v0.3.64-dirty``).

    Raises:
        ValueError: It is no version.
    """
    match = re.match(r"v?(\d{1,9}(?:\.\d{1,9})+)", text)
    if match is None:
        raise ValueError(f"{text!r} is no ComfyUI version; write it like 0.3.64")
    return tuple(int(part) for part in match[1].split("."))


def _oldest_possible(definitions: Definitions) -> Version:
    marked = next((version for key, version in _MARKS if definitions.mention(key)), None)
    if marked is None and _NEW_IN_0_8 in definitions:
        return (0, 8)
    return marked or ((0, 4) if definitions.mention("output_matchtypes") else (0,))
