"""How long ``import acomfy`` takes, above ``import aiohttp``, which it needs; each in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from ..report import Result, Row, interleaved
from ..scale import Scale

FAMILY = "startup"
_PROGRAM = "import time; start = time.perf_counter(); import {}; print((time.perf_counter() - start) * 1000)"


def _imported(package: str) -> Result:
    command = [sys.executable, "-c", _PROGRAM.format(package)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"ms": float(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)}


def rows(scale: Scale) -> Iterator[Row]:
    """Measure both in turns."""
    _imported("acomfy")  # after this all modules are compiled
    pairs = interleaved(partial(_imported, "acomfy"), partial(_imported, "aiohttp"), scale)
    ours, theirs = (statistics.median(pair[side]["ms"] for pair in pairs) for side in (0, 1))
    yield Row(FAMILY, "import acomfy", ours, "ms", "import aiohttp", theirs)
    above = statistics.median(our["ms"] - their["ms"] for our, their in pairs)
    yield Row(FAMILY, "import acomfy, above import aiohttp", above, "ms", wanted="<= 30")
