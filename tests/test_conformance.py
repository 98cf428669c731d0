"""The simulator says what a real ComfyUI 0.3.64 said: the recordings, replayed against it.

What is normalised, and why, is the table `conformance.NORMALISED`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from acomfy import events
from acomfy.simulator import CacheMode, image_nodes
from acomfy.simulator.execution import Run
from acomfy.simulator.files import encode_png
from acomfy.simulator.queue import PromptQueue

from .conformance import NORMALISED, Recording, Replay, replay

pytestmark = pytest.mark.anyio


def _delete_saved_file(run: Replay) -> None:
    for file in run.server.folders.paths["output"].glob("one_*"):
        file.unlink()


@dataclass(frozen=True)
class Scenario:
    """A recording and how much of it is replayed.

    Attributes:
        until: The note before which the replay ends: after it the recorder raced the server, or kept no frames.
        without: Prompts left out, by label: they need node classes that the simulator does not have.
        paths: Paths left out: routes that no client of prompts needs, and answers about the machine.
        statuses_apart: Requests came while a node ran; ``status`` is compared as a sequence of its own.
    """

    name: str
    until: str | None = None
    without: Collection[str] = ()
    paths: str = ""
    statuses_apart: bool = False
    cache: CacheMode = "classic"
    on_note: Mapping[str, Callable[[Replay], None]] | None = None


_OTHER_ROUTES = (
    r"(/api)?/(experiment|extensions|users|settings|userdata|v2|workflow_templates|i18n|view_metadata|system_stats"
    r"|object_info$|internal/[^l]|internal/logs/raw|view.filename=mask.png|$)"
)
_FOREIGN_CLASSES = (
    *("TestDynamicAsyncGeneration", "TestMixedExpansionReturns"),
    *("SaveLatent", "SaveAnimatedWEBP", "SaveVideo (mp4)", "SaveAudio (flac)"),
)

SCENARIOS = [
    Scenario("a_basic_save"),
    Scenario("a2_preview_batch_two_outputs"),
    Scenario("a3_load_scale_save"),
    Scenario("b_websocket_images"),
    Scenario("c_ksampler_previews"),
    Scenario(
        "d_cached",
        on_note={"a cached file deleted from disk in between: the history still names it": _delete_saved_file},
    ),
    Scenario("d2_cached_edge"),
    Scenario("e_two_clients"),
    Scenario("e2_foreign_client"),
    Scenario("f_eight_at_once"),
    Scenario("g_validation_errors"),
    Scenario("g2_worker_killed"),
    Scenario("h_runtime_errors"),
    Scenario("i_interrupt", until="interrupt right after the POST"),
    Scenario("j_queue_delete", statuses_apart=True),
    Scenario("k_prompt_ids"),
    Scenario("l_prompt_options"),
    Scenario("m_reconnect", until="clean close, then reconnect"),
    Scenario("m2_deaf_socket", until="close, reconnect after 0 s"),
    Scenario("n_no_client_id"),
    Scenario("o_feature_flags"),
    Scenario("p_endpoints", paths=_OTHER_ROUTES),
    Scenario("p2_upload_names", until="orjson reads"),
    Scenario("t_not_connected"),
    Scenario("u_v_progress_text_and_state", without=_FOREIGN_CLASSES),
    Scenario("z_cache_lru", cache="lru"),
    Scenario("z_cache_none", cache="none"),
]


async def _replay(scenario: Scenario) -> Replay:
    recording = Recording.load(
        f"0.3.64/{scenario.name}.jsonl", until=scenario.until, without=scenario.without, paths=scenario.paths
    )
    return await replay(recording, cache=scenario.cache, on_note=scenario.on_note)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_simulator_says_what_the_real_server_said(scenario: Scenario) -> None:
    run = await _replay(scenario)
    differences = run.differences(statuses_apart=scenario.statuses_apart)
    assert not differences, "\n".join(differences[:10])
    assert run.real.answers or run.real.frames


async def test_replay_notices_a_missing_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def say_all_but_success(self: Run, event: events.Event) -> None:
        if not isinstance(event, events.ExecutionSuccess):
            say(self, event)

    say = Run._say
    monkeypatch.setattr(Run, "_say", say_all_but_success)
    differences = (await _replay(Scenario("a_basic_save"))).differences()
    assert any("execution_success" in difference for difference in differences)


async def test_replay_notices_messages_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def node_is_finished_before_it_is_shown(self: Run, node_id: str, output: Any) -> None:
        self._finish(node_id)
        say_executed(self, node_id, output)

    say_executed = Run._say_executed
    monkeypatch.setattr(Run, "_say_executed", node_is_finished_before_it_is_shown)
    assert (await _replay(Scenario("a_basic_save"))).differences()


async def test_replay_notices_a_wrong_history(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(self: PromptQueue, key: int, entry: dict[str, Any], prompt: list[Any]) -> None:
        real_finish(self, key, {**entry, "meta": {}}, prompt)

    real_finish = PromptQueue.finish
    monkeypatch.setattr(PromptQueue, "finish", finish)
    differences = (await _replay(Scenario("a_basic_save"))).differences()
    assert len(differences) == 1 and "/history" in differences[0]


async def test_replay_notices_a_picture_with_other_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def white_png(image: Image.Image, *args: Any) -> bytes:
        return encode_png(Image.new("RGB", image.size, "white"), *args)

    monkeypatch.setattr(image_nodes, "encode_png", white_png)
    differences = (await _replay(Scenario("a_basic_save"))).differences()
    assert len(differences) == 1 and "/view" in differences[0]


def test_table_of_what_is_normalised_gives_a_reason_for_each() -> None:
    assert all(NORMALISED.values())
