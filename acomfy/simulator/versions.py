"""What a ComfyUI server of a given version can do: one table, so that no other module compares versions.

Dates and releases are those of the changes that acomfy has to live with; each line names the first release that has
them, and the ComfyUI pull request or issue where one is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TypeAlias

Version: TypeAlias = tuple[int, ...]

_NEVER: Version = (10**6,)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The behaviours of one version; the names say what is true when one is set."""

    feature_flags: bool
    progress_state: bool
    progress_state_to_all: bool
    chosen_prompt_id: bool
    prompt_id_is_uuid: bool
    partial_targets: bool
    targeted_interrupt: bool
    history_offset: bool
    tokens_hidden_in_history: bool
    tokens_hidden_in_queue: bool
    create_time: bool
    jobs_api: bool
    jobs_know_cancelled: bool
    throttled_progress: bool
    missing_node_type: bool
    history_of_reached_nodes: bool
    history_needs_client_for_cached: bool
    refuses_cross_site: bool
    dependency_cycle_error: bool
    any_type_fits: bool
    options_checked: bool
    several_choices: bool
    cancel_routes: bool
    global_subgraphs: bool
    node_replacements: bool
    marked_file_names: bool
    userdata_in_milliseconds: bool
    asset_cursors: bool
    model_extensions: bool
    asset_tag_names: bool
    guarded_view: bool


# Name: the first version that has it, and the first that has it no more.
_SINCE: dict[str, tuple[Version, Version]] = {
    "feature_flags": ((0, 3, 45), _NEVER),  # the handshake, GET /features, binary event 4
    "progress_state": ((0, 3, 45), _NEVER),
    "progress_state_to_all": ((0, 3, 45), (0, 3, 57)),  # leaked to every socket (#9706)
    "chosen_prompt_id": ((0, 3, 45), _NEVER),  # ignored before: the server makes its own
    "tokens_hidden_in_history": ((0, 3, 45), _NEVER),  # api_key_comfy_org and auth_token_comfy_org (#8889)
    "partial_targets": ((0, 3, 48), _NEVER),
    "targeted_interrupt": ((0, 3, 57), _NEVER),  # before, the prompt_id is not looked at: a global interrupt
    "history_offset": ((0, 3, 60), _NEVER),
    "tokens_hidden_in_queue": ((0, 3, 68), _NEVER),  # #10502
    "history_of_reached_nodes": ((0, 3, 68), _NEVER),  # before: whatever the cache shows of the prompt's nodes
    "history_needs_client_for_cached": ((0, 3, 68), (0, 28, 0)),  # #14939
    "create_time": ((0, 3, 69), _NEVER),
    "jobs_api": ((0, 6, 0), _NEVER),  # #11054
    "jobs_know_cancelled": ((0, 9, 0), _NEVER),  # before: failed (#11680)
    "throttled_progress": ((0, 9, 2), _NEVER),  # #11504
    "any_type_fits": ((0, 4, 0), _NEVER),  # links of "*" (#10832)
    "options_checked": ((0, 8, 0), _NEVER),  # the choices of inputs of type COMBO (#11345)
    "missing_node_type": ((0, 12, 0), _NEVER),  # before: invalid_prompt (#12194)
    "refuses_cross_site": ((0, 19, 0), _NEVER),  # Sec-Fetch-Site (#13261)
    "dependency_cycle_error": ((0, 20, 0), _NEVER),
    "prompt_id_is_uuid": ((0, 25, 0), _NEVER),
    "cancel_routes": ((0, 26, 0), _NEVER),  # #14493
    "global_subgraphs": ((0, 3, 67), _NEVER),
    "node_replacements": ((0, 14, 0), _NEVER),
    "marked_file_names": ((0, 20, 0), _NEVER),  # GET /internal/files: "x.png [output]"
    "several_choices": ((0, 21, 0), _NEVER),  # multiselect (#13484)
    "userdata_in_milliseconds": ((0, 21, 0), _NEVER),  # full_info; before: seconds
    "asset_cursors": ((0, 25, 0), _NEVER),
    "model_extensions": ((0, 28, 0), _NEVER),  # GET /experiment/models
    "asset_tag_names": ((0, 32, 0), _NEVER),  # tags_all, tags_any, tags_none; before: include_tags, exclude_tags
    "guarded_view": ((0, 33, 0), _NEVER),  # nosniff, and attachments of what may hold scripts; not in 0.26
}


def capabilities(version: str) -> Capabilities:
    """Look up what a version can do.

    Raises:
        ValueError: It is no version like ``0.3.64``.
    """
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise ValueError(f"{version!r} is no ComfyUI version; write it like 0.3.64")
    number = tuple(int(part) for part in version.split("."))
    return Capabilities(**{item.name: _has(item.name, number) for item in fields(Capabilities)})


def _has(name: str, number: Version) -> bool:
    since, until = _SINCE[name]
    return since <= number < until
