"""A ComfyUI without a GPU, for tests and for trying things out: `SimulatedServer`."""

from .cache import CacheMode
from .ledger import Entry, Ledger, ProducedImage
from .nodes import Batch, ExecutionBlocker, Interrupted, Node, NodeContext, NodeResult, OutOfMemoryError
from .server import SimulatedServer

__all__ = [
    "Batch",
    "CacheMode",
    "Entry",
    "ExecutionBlocker",
    "Interrupted",
    "Ledger",
    "Node",
    "NodeContext",
    "NodeResult",
    "OutOfMemoryError",
    "ProducedImage",
    "SimulatedServer",
]
