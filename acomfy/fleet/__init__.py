"""ComfyUI servers on any number of machines, behind a NATS broker: `Fleet` submits, `Worker` runs beside the servers.

NATS JetStream is the engine: its work queue holds what waits, its leases tell who is dead, its buckets hold outcomes
and files. What is here is how a prompt of ComfyUI lives in it. Needs the extra ``nats``.
"""

try:
    from .streams import Keeping
except ModuleNotFoundError as exc:
    if (exc.name or "").partition(".")[0] != "nats":
        raise
    raise ModuleNotFoundError('a fleet needs nats-py: pip install "acomfy[nats]"', name="nats") from None
from .dead import DeadLetter
from .fleet import Fleet
from .job import FleetJob
from .lanes import Patience
from .worker import Worker
from .workers import WorkerInfo

__all__ = ["DeadLetter", "Fleet", "FleetJob", "Keeping", "Patience", "Worker", "WorkerInfo"]
