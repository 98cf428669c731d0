"""The conversion against what the real editor made of the same files (tests/oracle)."""

from __future__ import annotations

import copy
from datetime import datetime

import pytest

from acomfy.conversion import to_api
from acomfy.definitions import Definitions
from acomfy.errors import UnknownNodes, WorkflowFormatError
from tests.definitions import object_info
from tests.oracle import cases, differences, newer_cases

# Frontend 1.27 threw because `version` is missing or not that of the links; 1.58 dropped all links without a word.
# Here the links themselves say what they are, so these come out like the same workflow with the right version.
LINKS_OF_ANOTHER_FORM = (
    "hmj_v04_with_object_links",
    "hmj_v10_with_array_links",
    "hmj_version_missing",
    "hmj_version_string",
)

# Loading fails (a null among the links), and the editor makes an empty prompt of the empty canvas.
NOT_LOADED = ("hmj_links_null_entries",)

# Saved for a class that had a `sampling` widget: both editors give all promoted values after it to wrong widgets.
MISPLACED_BY_BOTH = ("tplj_3d_hunyuan3d_image_to_model",)

DEFINITIONS = Definitions(object_info())
ELSEWHERE = (*LINKS_OF_ANOTHER_FORM, *NOT_LOADED, *MISPLACED_BY_BOTH)
COMPARED = sorted(name for name, case in cases().items() if name not in ELSEWHERE and "missing" not in case)


@pytest.mark.parametrize("name", [name for name in COMPARED if cases()[name]["1.27"] is not None])
def test_the_prompt_is_the_one_that_the_editor_makes(name: str) -> None:
    case = cases()[name]
    graph = to_api(case["ui"], DEFINITIONS, now=datetime(2026, 5, 4, 3, 2, 1))
    found = {version: differences(graph, case[version]) for version in ("1.27", "1.58") if version in case}
    assert not all(found.values()), found


NEWER = Definitions(object_info("0.33.0"))


@pytest.mark.parametrize("name", sorted(newer_cases()))
def test_dynamic_inputs_of_a_newer_server_are_the_ones_that_the_editor_sends(name: str) -> None:
    case = newer_cases()[name]
    assert not differences(to_api(case["ui"], NEWER), case["1.58"])


@pytest.mark.parametrize("name", [name for name in COMPARED if cases()[name]["1.27"] is None])
def test_where_the_editor_throws_an_error_names_the_node(name: str) -> None:
    case = cases()[name]
    try:
        graph = to_api(case["ui"], DEFINITIONS)
    except WorkflowFormatError as error:
        assert error.node_id is not None
    else:
        assert not differences(graph, case["1.58"])  # which no longer throws


@pytest.mark.parametrize("name", [name for name, case in cases().items() if "missing" in case])
def test_unknown_classes_that_would_run_are_listed(name: str) -> None:
    case = cases()[name]
    unmuted = {node["type"] for node in case["ui"]["nodes"] if node.get("mode") not in (2, 4)}
    if not unmuted.isdisjoint(case["missing"]):
        with pytest.raises(UnknownNodes) as caught:
            to_api(case["ui"], DEFINITIONS)
        assert {node.class_type for node in caught.value.nodes} == set(case["missing"])
    else:
        assert not differences(to_api(case["ui"], DEFINITIONS), case["1.27"])


@pytest.mark.parametrize("name", LINKS_OF_ANOTHER_FORM)
def test_links_are_told_by_their_own_form(name: str) -> None:
    graph = to_api(cases()[name]["ui"], DEFINITIONS)
    assert not differences(graph, cases()["hmj_v10_plain"]["1.27"])


@pytest.mark.parametrize("name", NOT_LOADED)
def test_a_file_that_the_editor_cannot_load_is_refused(name: str) -> None:
    with pytest.raises(WorkflowFormatError, match="links"):
        to_api(cases()[name]["ui"], DEFINITIONS)


def test_promoted_values_keep_their_widgets_when_the_class_has_lost_one() -> None:
    graph = to_api(cases()["tplj_3d_hunyuan3d_image_to_model"]["ui"], DEFINITIONS)
    sampler = graph["91:3"]["inputs"]
    assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (242832339647017, 20, 8)
    assert (sampler["sampler_name"], sampler["scheduler"]) == ("euler", "normal")
    assert graph["91:81"]["inputs"] == {"algorithm": "surface net", "threshold": 0.6, "voxel": ["91:61", 0]}
    assert graph["91:54"]["inputs"] == {"ckpt_name": "hunyuan3d-dit-v2_fp16.safetensors"}
    assert graph["91:66"]["inputs"]["resolution"] == 3072


def test_titles_are_the_saved_ones_or_the_display_names() -> None:
    for name in COMPARED:
        case = cases()[name]
        if case["1.27"] is not None and "1.58" not in case:
            graph = to_api(case["ui"], DEFINITIONS, now=datetime(2026, 5, 4))
            # The editor's own translation renames these two.
            odd = {"ImageScaleToTotalPixels", "ImageBlur"}
            titles = {key: entry["_meta"]["title"] for key, entry in graph.items() if entry["class_type"] not in odd}
            assert titles == {key: case["1.27"][key]["title"] for key in titles}, name


def test_neither_the_file_nor_the_definitions_are_changed_or_shared() -> None:
    for name in ("hm_combos_multi_select", "hm_subgraph_promoted_nested", "hmj_group_node_legacy", "hm_txt2img"):
        ui = cases()[name]["ui"]
        before = copy.deepcopy(ui)
        graph = to_api(ui, object_info())
        for entry in graph.values():
            for value in entry["inputs"].values():
                if isinstance(value, dict):
                    value["__value__"].append("changed")
        assert ui == before
