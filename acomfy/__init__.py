"""The asyncio client for ComfyUI: many prompts over one WebSocket, each awaited like a coroutine."""

import typing

from .api import Upload
from .captures import Masked
from .client import Client
from .errors import (
    AcomfyError,
    AuthenticationError,
    ClientClosed,
    HTTPError,
    JobCancelled,
    JobError,
    JobFailed,
    JobInterrupted,
    JobLost,
    JobStalled,
    MetadataError,
    NodeProblem,
    NoServerAvailable,
    OutOfMemory,
    OutputMissing,
    PayloadTooLarge,
    PromptRejected,
    ProtocolError,
    QueueFull,
    ServerError,
    ServerUnreachable,
    UnknownNode,
    UnknownNodes,
    WorkflowError,
    WorkflowFormatError,
)
from .events import (
    Event,
    Executed,
    Executing,
    ExecutionCached,
    ExecutionError,
    ExecutionInterrupted,
    ExecutionStart,
    ExecutionSuccess,
    FeatureFlags,
    Logs,
    NodeProgress,
    PreviewImage,
    Progress,
    ProgressState,
    Status,
    Text,
    Unknown,
)
from .job import Job
from .look import QueueItem, QueueSnapshot
from .result import Output, Result
from .retry import RetryPolicy
from .stream import EventStream
from .verdict import JobState
from .workflow import Node, Workflow

if typing.TYPE_CHECKING:
    from .listings import HistoryEntry, JobInfo, JobPage
    from .placement import Placement, ServerState
    from .pool import Pool
    from .pool_job import PoolJob
    from .pool_stats import PoolStats, ServerStats
    from .server_info import Asset, Device, LogEntry, SystemStats, UserFile
else:
    from .late import __getattr__ as __getattr__

__all__ = [
    "AcomfyError",
    "Asset",
    "AuthenticationError",
    "Client",
    "ClientClosed",
    "Device",
    "Event",
    "EventStream",
    "Executed",
    "Executing",
    "ExecutionCached",
    "ExecutionError",
    "ExecutionInterrupted",
    "ExecutionStart",
    "ExecutionSuccess",
    "FeatureFlags",
    "HTTPError",
    "HistoryEntry",
    "Job",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobInfo",
    "JobInterrupted",
    "JobLost",
    "JobPage",
    "JobStalled",
    "JobState",
    "LogEntry",
    "Logs",
    "Masked",
    "MetadataError",
    "NoServerAvailable",
    "Node",
    "NodeProblem",
    "NodeProgress",
    "OutOfMemory",
    "Output",
    "OutputMissing",
    "PayloadTooLarge",
    "Placement",
    "Pool",
    "PoolJob",
    "PoolStats",
    "PreviewImage",
    "Progress",
    "ProgressState",
    "PromptRejected",
    "ProtocolError",
    "QueueFull",
    "QueueItem",
    "QueueSnapshot",
    "Result",
    "RetryPolicy",
    "ServerError",
    "ServerState",
    "ServerStats",
    "ServerUnreachable",
    "Status",
    "SystemStats",
    "Text",
    "Unknown",
    "UnknownNode",
    "UnknownNodes",
    "Upload",
    "UserFile",
    "Workflow",
    "WorkflowError",
    "WorkflowFormatError",
]
