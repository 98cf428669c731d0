"""Copy pictures that are in memory, but not twice as long as they stay as they are.

A prompt is sent as it was when it was submitted, so a picture in it is copied then. Fifty prompts with one picture
would hold fifty copies. Nothing tells that a picture was not edited since, so it is compared with the last copy, which
takes about as long as copying it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from .captures import Picture, Pixels, picture_of

_COMPARABLE = ("L", "LA", "RGB", "RGBA")


class Snapshots:
    """The copies of pictures that some prompt still needs."""

    def __init__(self) -> None:
        self._copies: WeakValueDictionary[int, Picture | Pixels] = WeakValueDictionary()

    def copy_picture(self, value: Any) -> Picture | Pixels:
        """Copy a Pillow image or an array; give the copy that was made before if that is the same still."""
        known = self._copies.get(id(value))  # another object may have got its id: what it holds decides
        if isinstance(known, Picture) and _shows(known.image, value):
            return known
        copy = picture_of(value)
        if isinstance(known, Pixels) and isinstance(copy, Pixels) and _same(known, copy):
            return known
        self._copies[id(value)] = copy
        return copy


def _same(one: Pixels, other: Pixels) -> bool:
    return (one.shape, one.typestr) == (other.shape, other.typestr) and one.data == other.data


def _shows(copy: Any, value: Any) -> bool:
    from PIL.Image import Image
    from PIL.ImageChops import difference

    if not isinstance(value, Image) or copy.mode not in _COMPARABLE:
        return False
    alike = (copy.mode, copy.size, copy.info) == (value.mode, value.size, value.info)
    return alike and difference(copy, value).getbbox(alpha_only=False) is None
