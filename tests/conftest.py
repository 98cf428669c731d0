"""What all tests share: the event loop's backend, and the unit of their waits."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

MS = 0.001 * float(os.environ.get("ACOMFY_TEST_SLOWNESS", "1"))
"""A millisecond of waiting, in seconds. ``ACOMFY_TEST_SLOWNESS=10`` makes every wait ten times as long."""

FUZZ = int(os.environ.get("ACOMFY_TEST_FUZZ", "1"))
"""How many times as long to fuzz; 1 is for CI."""

settings.register_profile(
    "acomfy",
    max_examples=100 * FUZZ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("acomfy")


def pytest_collection_finish() -> None:
    """Take all that was imported out of the garbage collector's sight: some tests have it look at everything."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Leave logging as it was: a command sets it up for its own process."""
    root, ours = logging.getLogger(), logging.getLogger("acomfy")
    handlers, level = list(root.handlers), ours.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    ours.setLevel(level)
