"""Public names of the package that are loaded when they are first asked for: most programs have one server, and submit.

``acomfy`` takes over `__getattr__` from here; type checkers see the names by imports that only they read.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

HOMES = {
    "Asset": "server_info",
    "Device": "server_info",
    "HistoryEntry": "listings",
    "JobInfo": "listings",
    "JobPage": "listings",
    "LogEntry": "server_info",
    "Placement": "placement",
    "Pool": "pool",
    "PoolJob": "pool_job",
    "PoolStats": "pool_stats",
    "ServerState": "placement",
    "ServerStats": "pool_stats",
    "SystemStats": "server_info",
    "UserFile": "server_info",
}
"""The module of each."""


def __getattr__(name: str) -> Any:
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__package__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __package__), name)
    setattr(sys.modules[str(__package__)], name, value)
    return value
