"""What ComfyUI's routes answer with, as types of the JSON itself.

Keys that not every version sends are all optional (``total=False``), and newer servers send more: nothing is taken out
of an answer, and nothing put in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class Queue(TypedDict):
    """``GET /queue``. An item is ``[number, prompt_id, prompt, extra_data, outputs_to_execute]``."""

    queue_running: list[Any]
    queue_pending: list[Any]


class HistoryStatus(TypedDict, total=False):
    """How a prompt ended; ``messages`` are ``[name, data]`` as on the WebSocket."""

    status_str: str
    completed: bool
    messages: list[Any]


class HistoryEntry(TypedDict, total=False):
    """An entry of ``GET /history``; ``prompt`` is an item as in the queue."""

    prompt: Any
    outputs: dict[str, dict[str, Any]]
    status: HistoryStatus | None
    meta: dict[str, Any]


class Job(TypedDict, total=False):
    """A prompt in ``GET /api/jobs``; times are in milliseconds since 1970."""

    id: str
    status: str
    priority: float
    create_time: int
    execution_start_time: int
    execution_end_time: int
    outputs_count: int
    previewable_outputs_count: int
    workflow_id: str
    preview_output: dict[str, Any]
    execution_error: dict[str, Any]


class JobDetail(Job, total=False):
    """``GET /api/jobs/{id}``."""

    outputs: dict[str, dict[str, Any]]
    execution_status: HistoryStatus
    workflow: dict[str, Any]


class Pagination(TypedDict, total=False):
    """Which part of a list this is; ``limit`` None: all."""

    offset: int
    limit: int | None
    total: int
    has_more: bool


class Jobs(TypedDict):
    """``GET /api/jobs``."""

    jobs: list[Job]
    pagination: Pagination


class NodeInfo(TypedDict, total=False):
    """A node class in ``GET /object_info``; inputs are ``[type, options]`` or ``[[choices], options]``."""

    input: dict[str, dict[str, Any]]
    input_order: dict[str, list[str]]
    is_input_list: bool
    output: list[Any]
    output_is_list: list[bool]
    output_name: list[str]
    output_tooltips: list[str]
    name: str
    display_name: str
    description: str
    python_module: Any
    category: str
    output_node: bool
    has_intermediate_output: bool
    deprecated: bool
    experimental: bool
    dev_only: bool
    api_node: bool
    search_aliases: list[str]


class System(TypedDict, total=False):
    """``system`` in ``GET /system_stats``; memory in bytes."""

    os: str
    ram_total: int
    ram_free: int
    comfyui_version: str
    required_frontend_version: str | None
    installed_templates_version: str | None
    required_templates_version: str | None
    comfy_package_versions: list[Any]
    python_version: str
    pytorch_version: str
    embedded_python: bool
    deploy_environment: str
    argv: list[str]


class Device(TypedDict, total=False):
    """A device in ``GET /system_stats``; memory in bytes; ``index`` is None on CPU."""

    name: str
    type: str
    index: int | None
    vram_total: int
    vram_free: int
    torch_vram_total: int
    torch_vram_free: int


class SystemStats(TypedDict):
    """``GET /system_stats``."""

    system: System
    devices: list[Device]


class ModelFolder(TypedDict, total=False):
    """A folder in ``GET /experiment/models``."""

    name: str
    folders: list[str]
    extensions: list[str]


class ModelFile(TypedDict, total=False):
    """A file in ``GET /experiment/models/{folder}``; times in seconds since 1970."""

    name: str
    pathIndex: int
    modified: float
    created: float
    size: int


class UserFile(TypedDict, total=False):
    """A file of a user, with ``full_info``; times in seconds since 1970, newer servers: milliseconds."""

    path: str
    size: int
    modified: float
    created: float


class UserEntry(TypedDict, total=False):
    """An entry of ``GET /v2/userdata``; ``type`` is ``file`` or ``directory``, ``modified`` in seconds since 1970."""

    name: str
    path: str
    type: str
    size: int
    modified: float


class Users(TypedDict, total=False):
    """``GET /users``: ``users`` (names by id) with ``--multi-user``, else ``migrated``."""

    storage: str
    migrated: bool
    users: dict[str, str]


class LogEntry(TypedDict):
    """Something that the server wrote: ``t`` when (ISO 8601, its local time), ``m`` what."""

    t: str
    m: str


class RawLogs(TypedDict):
    """``GET /internal/logs/raw``."""

    entries: list[LogEntry]
    size: Mapping[str, Any] | None


class Asset(TypedDict, total=False):
    """An asset; times are in ISO 8601."""

    id: str
    name: str
    hash: str
    asset_hash: str
    loader_path: str
    display_name: str
    size: int
    mime_type: str
    tags: list[str]
    preview_url: str
    preview_id: str
    user_metadata: dict[str, Any]
    metadata: dict[str, Any]
    is_immutable: bool
    job_id: str
    prompt_id: str
    created_at: str
    updated_at: str
    last_access_time: str


class AssetCreated(Asset, total=False):
    """``POST /api/assets``: ``created_new`` False when the server had it."""

    created_new: bool


class Assets(TypedDict, total=False):
    """``GET /api/assets``; ``next_cursor`` is ``after`` of the next page."""

    assets: list[Asset]
    total: int
    has_more: bool
    next_cursor: str


class Tag(TypedDict, total=False):
    """A tag and how many assets have it."""

    name: str
    count: int


class Tags(TypedDict, total=False):
    """``GET /api/tags``."""

    tags: list[Tag]
    total: int
    has_more: bool


class TagsChanged(TypedDict, total=False):
    """What became of the tags of an asset: ``added``, ``already_present``, or ``removed``, ``not_present``."""

    added: Sequence[str]
    already_present: Sequence[str]
    removed: Sequence[str]
    not_present: Sequence[str]
    total_tags: Sequence[str]


class Scan(TypedDict, total=False):
    """The state of a scan for assets."""

    status: str
    state: str
    progress: dict[str, int] | None
    errors: list[Any]
    marked: int


class Task(TypedDict, total=False):
    """A download that the server makes."""

    task_id: str
    status: str
    progress: float
    error: str
