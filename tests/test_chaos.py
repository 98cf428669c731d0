"""A short chaos run with a fixed seed; ``python -m tests.chaos`` is the long one."""

from __future__ import annotations

import time

import pytest

from .chaos import Chaos
from .pool_chaos import Chaos as PoolChaos

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("version", ["0.3.64", "0.38.1"])
async def test_in_the_midst_of_trouble_every_job_ends_once_and_right(version: str) -> None:
    account = await Chaos(seed=7, version=version).run(jobs=30, until=time.monotonic() + 4)
    assert account.violations == [], "\n".join(account.lines())
    assert account.outcomes["success"] > 10


async def test_under_trouble_of_its_servers_a_pool_ends_every_job_once_and_right() -> None:
    chaos = PoolChaos(seed=3, count=4, strangers=True)
    await chaos.go(jobs=80)
    assert chaos.books.violations == [], "\n".join(chaos.books.lines())
    assert chaos.books.outcomes["success"] > 40
