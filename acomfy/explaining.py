"""Tell of a refused prompt what the server left out: it names no choices of a list longer than 20 (execution.py).

Of a misspelt model that leaves only "not in list". So the definitions of the classes concerned are asked for, after
the refusal and never before a prompt is sent.
"""

from __future__ import annotations

import asyncio
import logging

from .api import Api
from .errors import PromptRejected

_MOST_CLASSES = 4
_PATIENCE = 2.0  # seconds; the refusal itself is known already
_LOGGER = logging.getLogger(__name__)


async def with_choices(api: Api, rejection: PromptRejected) -> PromptRejected:
    """Add the choices that a refusal lacks, by a request (``GET /object_info/{class}``) for each class concerned.

    What goes wrong with that, or takes more than two seconds, leaves the refusal as it is.
    """
    lacking = [one for one in rejection.problems if one.type == "value_not_in_list" and one.allowed is None]
    classes = list(dict.fromkeys(one.class_type for one in lacking if one.class_type))[:_MOST_CLASSES]
    if not classes:
        return rejection
    from .checking import explained  # a refusal is rare, and importing it takes a while

    try:
        async with asyncio.timeout(_PATIENCE):
            answers = [await api.get_object_info(class_type) for class_type in classes]
        return explained(rejection, {name: info for answer in answers for name, info in answer.items()})
    except Exception as exc:  # whatever it is: the refusal says more
        _LOGGER.debug("the choices that the server refused to list could not be had: %r", exc)
        return rejection
