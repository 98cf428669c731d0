"""A ComfyUI without a GPU, for tests and for trying things out: `SimulatedServer`.

It is a real server on a real port: what queues, validates, caches and executes is modelled on ComfyUI, and what it
says is compared with recordings of a real one. Pictures are made with Pillow and say that they are simulated.
``server.on`` scripts what the nodes of a class do (`Script`); nodes of your own are a function and a declaration
(`Node`); `odd_nodes` has some that misbehave; ``server.faults`` breaks the server or the network on purpose
(`Faults`); ``version=`` makes it an older or a newer ComfyUI; with ``clock=VirtualClock()`` hours pass at once.
"""

from .cache import CacheMode
from .clock import Clock, VirtualClock
from .cloud import Cloud
from .faults import Faults, Lasting
from .ledger import Entry, Ledger, ProducedImage, read_ledgers
from .nodes import Batch, ExecutionBlocker, Interrupted, Node, NodeContext, NodeResult, OutOfMemoryError
from .scripting import Script
from .server import SimulatedServer

__all__ = [
    "Batch",
    "CacheMode",
    "Clock",
    "Cloud",
    "Entry",
    "ExecutionBlocker",
    "Faults",
    "Interrupted",
    "Lasting",
    "Ledger",
    "Node",
    "NodeContext",
    "NodeResult",
    "OutOfMemoryError",
    "ProducedImage",
    "Script",
    "SimulatedServer",
    "VirtualClock",
    "read_ledgers",
]
