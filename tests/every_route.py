"""Every method of `acomfy.api.Api`, called once for each route that it serves; and the README's table of them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acomfy.api import Api

README = Path(__file__).parent.parent / "README.md"
ID = "00000000-0000-4000-8000-000000000000"
HASH = "blake3:" + "0" * 64

Call = Callable[[Api], Awaitable[Any]]


async def read(context: AbstractAsyncContextManager[Any]) -> bytes:
    async with context as response:
        body: bytes = await response.read()
        return body


CALLS: list[tuple[str, Call]] = [
    ("get_prompt", lambda api: api.get_prompt()),
    ("post_prompt", lambda api: api.post_prompt(b"{}")),
    ("get_queue", lambda api: api.get_queue()),
    ("post_queue", lambda api: api.post_queue(delete=[ID])),
    ("post_interrupt", lambda api: api.post_interrupt(ID)),
    ("get_histories", lambda api: api.get_histories(max_items=1)),
    ("get_history", lambda api: api.get_history(ID)),
    ("post_history", lambda api: api.post_history(delete=[ID])),
    ("post_free", lambda api: api.post_free()),
    ("get_jobs", lambda api: api.get_jobs(limit=1)),
    ("get_job", lambda api: api.get_job(ID)),
    ("post_job_cancel", lambda api: api.post_job_cancel(ID)),
    ("post_jobs_cancel", lambda api: api.post_jobs_cancel([ID])),
    ("upload_image", lambda api: api.upload_image(b"x", "acomfy.txt", overwrite=True)),
    ("upload_mask", lambda api: api.upload_mask(b"x", "acomfy.png", {"filename": "none.png"})),
    ("view", lambda api: read(api.view("none.png"))),
    ("get_view_metadata", lambda api: api.get_view_metadata("PART", "none.safetensors")),
    ("get_object_info", lambda api: api.get_object_info()),
    ("get_object_info", lambda api: api.get_object_info("PART")),
    ("get_system_stats", lambda api: api.get_system_stats()),
    ("get_features", lambda api: api.get_features()),
    ("get_embeddings", lambda api: api.get_embeddings()),
    ("get_models", lambda api: api.get_models()),
    ("get_models", lambda api: api.get_models("PART")),
    ("get_model_folders", lambda api: api.get_model_folders()),
    ("get_model_files", lambda api: api.get_model_files("PART")),
    ("get_model_preview", lambda api: api.get_model_preview("PART", 0, "PART")),
    ("get_extensions", lambda api: api.get_extensions()),
    ("get_workflow_templates", lambda api: api.get_workflow_templates()),
    ("get_i18n", lambda api: api.get_i18n()),
    ("get_global_subgraphs", lambda api: api.get_global_subgraphs()),
    ("get_global_subgraph", lambda api: api.get_global_subgraph("PART")),
    ("get_node_replacements", lambda api: api.get_node_replacements()),
    ("get_users", lambda api: api.get_users()),
    ("post_user", lambda api: api.post_user("acomfy")),
    ("get_settings", lambda api: api.get_settings()),
    ("get_setting", lambda api: api.get_setting("PART")),
    ("post_settings", lambda api: api.post_settings({"acomfy.a": 1})),
    ("post_setting", lambda api: api.post_setting("PART", 1)),
    ("get_userdata_list", lambda api: api.get_userdata_list("acomfy")),
    ("get_userdata_tree", lambda api: api.get_userdata_tree()),
    ("get_userdata", lambda api: api.get_userdata("PART")),
    ("view_userdata", lambda api: read(api.view_userdata("PART"))),
    ("post_userdata", lambda api: api.post_userdata("PART", b"x")),
    ("move_userdata", lambda api: api.move_userdata("PART", "PART")),
    ("delete_userdata", lambda api: api.delete_userdata("PART")),
    ("head_asset_hash", lambda api: api.head_asset_hash(HASH)),
    ("get_assets", lambda api: api.get_assets()),
    ("get_asset", lambda api: api.get_asset(ID)),
    ("view_asset", lambda api: read(api.view_asset(ID))),
    ("post_asset", lambda api: api.post_asset(b"x", "x.txt", tags=["input"])),
    ("post_asset_from_hash", lambda api: api.post_asset_from_hash(HASH)),
    ("put_asset", lambda api: api.put_asset(ID, name="x")),
    ("delete_asset", lambda api: api.delete_asset(ID)),
    ("post_asset_tags", lambda api: api.post_asset_tags(ID, ["x"])),
    ("delete_asset_tags", lambda api: api.delete_asset_tags(ID, ["x"])),
    ("get_tags", lambda api: api.get_tags()),
    ("get_asset_tags_refine", lambda api: api.get_asset_tags_refine()),
    ("post_assets_seed", lambda api: api.post_assets_seed(["input"])),
    ("get_assets_seed_status", lambda api: api.get_assets_seed_status()),
    ("post_assets_seed_cancel", lambda api: api.post_assets_seed_cancel()),
    ("post_assets_prune", lambda api: api.post_assets_prune()),
    ("post_assets_download", lambda api: api.post_assets_download("http://127.0.0.1:9/x", tags=["models"])),
    ("get_task", lambda api: api.get_task("PART")),
    ("delete_task", lambda api: api.delete_task("PART")),
    ("get_logs", lambda api: api.get_logs()),
    ("get_raw_logs", lambda api: api.get_raw_logs()),
    ("patch_logs_subscribe", lambda api: api.patch_logs_subscribe("acomfy", False)),
    ("get_folder_paths", lambda api: api.get_folder_paths()),
    ("get_files", lambda api: api.get_files("PART")),
]


@dataclass(frozen=True)
class Row:
    """A row of the README's table.

    Attributes:
        route: Method and path, each name in it written as ``{}``.
        since: The version that has it first; () for what was always there, None for what no known version has.
    """

    route: str
    since: tuple[int, ...] | None
    methods: tuple[str, ...]
    client: tuple[str, ...]


def rows() -> list[Row]:
    """Parse the README's table."""
    table = README.read_text(encoding="utf-8").partition("## Every route")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [
        Row(shape(route.strip("`")), _since(since), _names(methods), _names(client))
        for route, since, methods, client in cells[2:]
    ]


def shape(route: str) -> str:
    """Write a route with ``{}`` for each part that is a name."""
    route = re.sub(rf"\{{[^}}]*\}}|PART|{ID}|{HASH.replace(':', '%3A')}", "{}", route)
    return re.sub(r"/preview/\{\}/0/", "/preview/{}/{}/", route)


def _since(text: str) -> tuple[int, ...] | None:
    if text.startswith(">"):
        return None
    return tuple(int(part) for part in text.split(".")) if text else ()


def _names(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`(\w+)`", text))


async def answers(api: Api) -> AsyncIterator[tuple[str, Any]]:
    """Call everything; yield what each call gave, or raised."""
    for name, call in CALLS:
        try:
            yield name, await call(api)
        except Exception as exc:
            yield name, exc
