"""What is well and what is not between us and a server, judged from what was measured: one `Finding` for each.

Everything is measured elsewhere (`acomfy doctor`); here are the rules, and what to do about what is wrong. ``way`` is
about getting there, ``server`` about what the server is and has, ``hearing`` about the WebSocket, ``transfers`` about
files and the queue. (ComfyUI server.py, execution.py, 0.3.40 to 0.38; the defaults of nginx.)
"""

from .finding import Finding, Level, exit_code
from .hearing import SocketTrial, judge_again, judge_socket
from .server import judge_features, judge_memory, judge_users, judge_version
from .transfers import Download, judge_download, judge_queue, judge_uploads
from .way import (
    Answer,
    clock_offset,
    judge_answer,
    judge_clock,
    judge_elsewhere,
    judge_failure,
    judge_latency,
    judge_proxy,
    judge_unchecked,
    other_addresses,
)

__all__ = [
    "Answer",
    "Download",
    "Finding",
    "Level",
    "SocketTrial",
    "clock_offset",
    "exit_code",
    "judge_again",
    "judge_answer",
    "judge_clock",
    "judge_download",
    "judge_elsewhere",
    "judge_failure",
    "judge_features",
    "judge_latency",
    "judge_memory",
    "judge_proxy",
    "judge_queue",
    "judge_socket",
    "judge_unchecked",
    "judge_uploads",
    "judge_users",
    "judge_version",
    "other_addresses",
]
