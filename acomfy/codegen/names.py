"""Python identifiers for the names that servers give."""

from __future__ import annotations

import keyword
import unicodedata


def identifier(text: str, taken: set[str]) -> str:
    """Make a Python identifier of a name, one that is not taken yet, and take it.

    What Python does not allow becomes ``_``; it never begins with one, since the builder's own names do.
    """
    name = unicodedata.normalize("NFKC", text)  # as Python itself reads identifiers
    name = "".join(char if ("a" + char).isidentifier() else "_" for char in name).lstrip("_")
    if not name or not name.isidentifier():
        name = f"x{name}"
    if keyword.iskeyword(name) or name == "self":
        name += "_"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique)
    return unique
