"""One test for each rule by which the editor makes a prompt of what it saved; the oracle tests have whole files."""

from __future__ import annotations

import copy
import random
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acomfy
from acomfy.conversion import to_api
from acomfy.conversion.text import as_text, dynamic_prompt, file_name, formatted_date
from acomfy.errors import UnknownNodes, WorkflowError, WorkflowFormatError

IMAGE_OUT: dict[str, Any] = {"output": ["IMAGE"], "output_name": ["IMAGE"]}


def info(required: dict[str, Any], optional: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"input": {"required": required, "optional": optional or {}}, **IMAGE_OUT, **more}


OBJECT_INFO: dict[str, Any] = {
    "Source": info({"n": ["INT", {"default": 1}]}, display_name="A source"),
    "Two": info({"a": ["IMAGE"], "b": ["IMAGE"], "n": ["INT", {"default": 2}]}),
    "Text": info({"text": ["STRING", {"multiline": True, "dynamicPrompts": True}], "plain": ["STRING", {}]}),
    "Seed": info({"seed": ["INT", {"default": 0}], "pick": [["x", "y"], {}], "last": ["STRING", {"default": "z"}]}),
    "SaveImage": info({"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}),
    "Any": info({"any": ["*"]}),
    "Mask": {**info({"mask": ["MASK"], "image": ["IMAGE"]}), "output": ["IMAGE", "MASK"]},
    "WebcamCapture": info({"image": ["WEBCAM", {}]}),
    "VHS_Combine": info({"rate": ["FLOAT", {}], "loop": ["INT", {}]}, python_module="custom_nodes.VideoHelperSuite"),
    "Modes": info(
        {
            "mode": [
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "off", "inputs": {"required": {}}},
                        {"key": "on", "inputs": {"required": {"level": ["INT", {"default": 5}], "mask": ["MASK", {}]}}},
                    ]
                },
            ],
            "after": ["INT", {"default": 9}],
        }
    ),
}  # fmt: skip


def node(number: int | str, kind: str, *values: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "type": kind, "widgets_values": list(values), **more}


def sockets(**links: int | None) -> list[dict[str, Any]]:
    return [{"name": name, "type": "IMAGE", "link": link} for name, link in links.items()]


def widget_socket(name: str, link: int | None, kind: str = "INT") -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, "widget": {"name": name}}


def workflow(*nodes: dict[str, Any], links: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": links or [], "version": 0.4, **more}


def convert(*nodes: dict[str, Any], links: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return to_api(workflow(*nodes, links=links, **more), OBJECT_INFO)


def inputs(graph: dict[str, Any], node_id: str) -> dict[str, Any]:
    found: dict[str, Any] = graph[node_id]["inputs"]
    return found


# --- Reading the file ----------------------------------------------------------------------------------------------


def test_links_are_read_as_lists_and_as_objects() -> None:
    nodes = (node(1, "Source"), node(2, "Any", inputs=sockets(any=7)))
    as_object = {"id": 7, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "IMAGE"}
    for link in ([7, 1, 0, 2, 0, "IMAGE"], as_object):
        assert inputs(convert(*nodes, links=[link]), "2") == {"any": ["1", 0]}


def test_ids_become_text_whatever_they_were() -> None:
    graph = convert(
        node("x", "Source"), node(-7, "Any", inputs=sockets(any=1)), links=[["1", "x", 0, -7.0, 0, "IMAGE"]]
    )
    assert inputs(graph, "-7") == {"any": ["x", 0]}


def test_a_second_node_of_an_id_gets_a_new_one() -> None:
    graph = convert(node(1, "Source", 5), node(4, "Source", 6), node(1, "Source", 7))
    assert {key: entry["inputs"]["n"] for key, entry in graph.items()} == {"1": 5, "4": 6, "5": 7}


def test_missing_keys_are_no_matter() -> None:
    assert convert({"id": 1, "type": "Source"}) == {
        "1": {"inputs": {"n": 1}, "class_type": "Source", "_meta": {"title": "A source"}}
    }


@pytest.mark.parametrize(
    ("ui", "said"),
    [
        ([], "no list of nodes"),
        ({"1": {"class_type": "Source", "inputs": {}}}, "no list of nodes"),
        ({"nodes": [5]}, "entry 0"),
        ({"nodes": [{"id": 1}]}, "entry 0"),
        ({"nodes": [{"id": None, "type": "Source"}]}, "id"),
        ({"nodes": [{"id": True, "type": "Source"}]}, "id"),
        ({"nodes": [], "links": {}}, "links"),
        ({"nodes": [], "links": [None]}, "links"),
        ({"nodes": [], "links": [[1, 2]]}, "links"),
        ({"nodes": [{"id": 1, "type": "Source", "inputs": [{}]}]}, "no name"),
        ({"nodes": [], "definitions": {"subgraphs": [{"nodes": []}]}}, "no id"),
        ({"nodes": [], "definitions": {"subgraphs": [{"id": "a", "nodes": 5}]}}, "not a list"),
    ],
)
def test_what_is_no_workflow_is_refused_with_a_reason(ui: Any, said: str) -> None:
    with pytest.raises(WorkflowFormatError, match=said):
        to_api(ui, OBJECT_INFO)


def test_what_is_not_object_info_is_refused() -> None:
    with pytest.raises(acomfy.ProtocolError, match="object_info"):
        to_api(workflow(), workflow())


# --- Nodes ---------------------------------------------------------------------------------------------------------


def test_muted_and_bypassed_nodes_are_left_out_and_all_other_modes_run() -> None:
    modes: list[Any] = [0, 1, 2, 3, 4, None, 99]
    nodes = [node(number, "Source", mode=mode) for number, mode in enumerate(modes)]
    assert sorted(convert(*nodes)) == ["0", "1", "3", "5", "6"]


def test_what_only_the_editor_has_never_appears() -> None:
    kinds = ["Note", "MarkdownNote", "Reroute", "PrimitiveNode", "Label (rgthree)", "Fast Groups Muter (rgthree)"]
    assert convert(*(node(number, kind) for number, kind in enumerate(kinds))) == {}


def test_a_class_that_the_server_has_is_real_whatever_its_name() -> None:
    assert "1" in to_api(workflow(node(1, "Note")), {"Note": info({})})


@pytest.mark.parametrize("title", ["", None, "absent"])
def test_an_empty_title_gives_way_to_the_display_name(title: str | None) -> None:
    more = {} if title == "absent" else {"title": title}
    assert convert(node(1, "Source", **more))["1"]["_meta"]["title"] == "A source"


def test_a_given_title_is_kept_even_when_it_is_blank() -> None:
    assert convert(node(1, "Source", title="  "))["1"]["_meta"]["title"] == "  "


def test_old_class_names_are_renamed() -> None:
    graph = to_api(workflow(node(1, "T2IAdapterLoader")), {"ControlNetLoader": info({})})
    assert graph["1"]["class_type"] == "ControlNetLoader"


def test_live_capture_is_refused_by_name() -> None:
    with pytest.raises(WorkflowFormatError, match="browser") as caught:
        convert(node(5, "WebcamCapture"))
    assert (caught.value.node_id, caught.value.input_name) == ("5", "image")
    assert convert(node(5, "WebcamCapture", mode=2)) == {}


# --- Unknown classes -----------------------------------------------------------------------------------------------


def test_unknown_classes_are_all_listed_with_their_titles() -> None:
    with pytest.raises(UnknownNodes) as caught:
        convert(node(1, "Nope", title="My node"), node(2, "Source"), node(3, "Gone"), node(4, "Nope", mode=4))
    assert [(found.node_id, found.class_type, found.title) for found in caught.value.nodes] == [
        ("1", "Nope", "My node"),
        ("3", "Gone", None),
    ]
    assert "node 1 (Nope, 'My node')" in str(caught.value)
    assert caught.value.node_id == "1"
    assert isinstance(caught.value, WorkflowError)


def test_unknown_nodes_survive_pickling() -> None:
    with pytest.raises(UnknownNodes) as caught:
        convert(node(1, "Nope"))
    again = copy.copy(caught.value)
    assert again.nodes == caught.value.nodes
    assert str(again) == str(caught.value)


def test_bypassed_unknown_nodes_pass_on_by_their_saved_sockets() -> None:
    passing = node(2, "Nope", inputs=sockets(a=1), outputs=[{"name": "o", "type": "IMAGE"}], mode=4)
    graph = convert(
        node(1, "Source"), passing, node(3, "SaveImage", inputs=sockets(images=2)),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    )  # fmt: skip
    assert inputs(graph, "3")["images"] == ["1", 0]


def test_kept_unknown_nodes_have_links_and_the_values_whose_names_are_known() -> None:
    named = [*sockets(image=1), widget_socket("seed", None), widget_socket("size", None)]
    ui = workflow(
        node(1, "Source"),
        node(2, "Nope", 7, "randomize", [3, 4], inputs=named, title="T"),
        {"id": 3, "type": "Nope", "widgets_values": {"a": 1}},
        node(4, "Nope", 1, 2, 3, inputs=named[1:]),
        links=[[1, 1, 0, 2, 0, "IMAGE"]],
    )
    graph = to_api(ui, OBJECT_INFO, keep_unknown=True)
    assert graph["2"] == {
        "inputs": {"seed": 7, "size": {"__value__": [3, 4]}, "image": ["1", 0]},
        "class_type": "Nope",
        "_meta": {"title": "T"},
    }
    assert inputs(graph, "3") == {"a": 1}
    assert "seed" not in inputs(graph, "4")  # three values for two widgets: nobody knows which is whose


# --- Values of widgets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5, "fixed", "y", "w"], (5, "y", "w")),
        ([5, True, "y", "w"], (5, "y", "w")),
        ([5], (5, "x", "z")),
        ([5, "fixed", "y", "w", "more", 6], (5, "y", "w")),
        ([], (0, "x", "z")),
        (None, (0, "x", "z")),
        ([None, None, None, None], (None, "x", None)),
        (["5", "fixed", "not listed", 7.5], ("5", "not listed", 7.5)),
        ({"seed": 5}, (0, "x", "z")),
        ([2**64 + 1, "fixed", "y", "w"], (2**64 + 1, "y", "w")),
    ],
)
def test_values_are_dealt_by_place_and_never_repaired(values: Any, expected: tuple[Any, ...]) -> None:
    assert tuple(inputs(convert({"id": 1, "type": "Seed", "widgets_values": values}), "1").values()) == expected


@pytest.mark.parametrize(
    ("control", "values"),
    [
        ({"control_after_generate": True}, [7, "fixed", 8]),
        ({"control_after_generate": "randomize"}, [7, "fixed", 8]),
        ({"control_after_generate": False}, [7, 8]),
    ],
)
def test_control_after_generate_takes_a_place_when_it_says_so(control: dict[str, Any], values: list[Any]) -> None:
    classes = {"C": info({"seed": ["INT", control], "n": ["INT", {}]})}
    assert to_api(workflow(node(1, "C", *values)), classes)["1"]["inputs"] == {"seed": 7, "n": 8}


def test_a_controlled_combo_takes_two_places_more() -> None:
    classes = {"C": info({"pick": [["a"], {"control_after_generate": True}], "n": ["INT", {}]})}
    assert to_api(workflow(node(1, "C", "a", "fixed", "", 8)), classes)["1"]["inputs"] == {"pick": "a", "n": 8}


def test_the_order_of_widgets_is_input_order() -> None:
    classes = {"C": info({"b": ["INT"], "a": ["INT"]}, {"c": ["INT"]}, input_order={"required": ["a", "b"]})}
    assert to_api(workflow(node(1, "C", 1, 2, 3)), classes)["1"]["inputs"] == {"a": 1, "b": 2, "c": 3}


def test_forced_inputs_are_sockets_and_their_old_dummy_values_are_dropped() -> None:
    classes = {"C": info({"t": ["STRING", {"forceInput": True}], "n": ["INT", {}]})}
    for values in (["dummy", 3], [3]):
        assert to_api(workflow(node(1, "C", *values)), classes)["1"]["inputs"] == {"n": 3}


def test_a_widget_type_makes_a_widget_of_any_type() -> None:
    classes = {"C": info({"w": ["*", {"widgetType": "STRING"}], "s": ["*", {}]})}
    assert to_api(workflow(node(1, "C", "v")), classes)["1"]["inputs"] == {"w": "v"}


def test_lists_are_wrapped_and_objects_are_not() -> None:
    assert inputs(convert(node(1, "Text", "", [1, 2])), "1")["plain"] == {"__value__": [1, 2]}
    assert inputs(convert(node(1, "Text", "", {"k": 1})), "1")["plain"] == {"k": 1}


@pytest.mark.parametrize(
    ("value", "text"),
    [(123, "123"), (None, ""), (True, "true"), (["a", None, "b"], "a,,b"), ({}, "[object Object]"), (1.0, "1")],
)
def test_a_text_box_makes_text_of_everything(value: Any, text: str) -> None:
    assert inputs(convert(node(1, "Text", value, "p")), "1")["text"] == text


def test_video_helper_suite_saves_values_by_name() -> None:
    ui = workflow({"id": 1, "type": "VHS_Combine", "widgets_values": {"loop": 3, "rate": 8.0, "videopreview": {}}})
    assert to_api(ui, OBJECT_INFO)["1"]["inputs"] == {"rate": 8.0, "loop": 3}


def test_a_dynamic_combo_brings_the_widgets_of_its_choice() -> None:
    assert inputs(convert(node(1, "Modes", "off", 4)), "1") == {"mode": "off", "after": 4}
    assert inputs(convert(node(1, "Modes", "on", 3, 4)), "1") == {"mode": "on", "mode.level": 3, "after": 4}
    assert inputs(convert(node(1, "Modes")), "1") == {"mode": "off", "after": 9}


def test_a_primitive_that_chooses_other_inputs_than_were_saved_is_refused() -> None:
    consumer = node(2, "Modes", "off", 4, inputs=[widget_socket("mode", 8, "COMBO")])
    links = [[8, 1, 0, 2, 0, "COMBO"]]
    assert inputs(convert(node(1, "PrimitiveNode", "off"), consumer, links=links), "2")["mode"] == "off"
    with pytest.raises(WorkflowFormatError, match="inputs of 'off'"):
        convert(node(1, "PrimitiveNode", "on"), consumer, links=links)


def test_curves_comparisons_and_views_have_their_own_forms() -> None:
    classes = {
        "Curve": info({"curve": ["CURVE", {}]}),
        "Compare": info({"view": ["IMAGECOMPARE", {}], "n": ["INT", {}]}),
        "View": info({"viewport_state": ["LOAD_3D", {}], "n": ["INT", {}]}, output=["LOAD3D_CAMERA", "INT"]),
        "Any": OBJECT_INFO["Any"],
    }
    points = [[0, 0], [1, 1]]
    graph = to_api(workflow(node(1, "Curve", points), node(2, "Compare", 5), node(3, "View", "", 6)), classes)
    assert inputs(graph, "1") == {"curve": {"__type__": "CURVE", "__value__": points}}
    assert inputs(graph, "2") == {"view": {"__value__": ["", ""]}, "n": 5}
    assert inputs(graph, "3") == {"viewport_state": {}, "n": 6}
    for slot in (0, 1):
        linked = workflow(node(3, "View"), node(4, "Any", inputs=sockets(any=1)), links=[[1, 3, slot, 4, 0, "*"]])
        if slot == 1:
            assert inputs(to_api(linked, classes), "4") == {"any": ["3", 1]}
        else:
            with pytest.raises(WorkflowFormatError, match="only a browser has"):
                to_api(linked, classes)


def test_inputs_behind_a_dynamic_combo_are_linked_by_their_full_names() -> None:
    linked = node(2, "Modes", "on", 3, 4, inputs=[{"name": "mode.mask", "type": "MASK", "link": 1}])
    graph = convert(node(1, "Mask"), linked, links=[[1, 1, 1, 2, 0, "MASK"]])
    assert inputs(graph, "2")["mode.mask"] == ["1", 1]


# --- Texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {b|c} d", "a b d"),
        ("{one}", "one"),
        ("{{a|b}|c}", "a"),
        ("x {unclosed | y", "x unclosed "),
        ("} | x", "} | x"),
        (r"\{a\|b\}", "{a|b}"),
        ("a // comment\nb", "a \nb"),
        ("a /* c\nd */ b", "a  b"),
        ("http://x", "http:"),
        ("a /* open", "a /* open"),
        ("a /*/ b // c", "a /*/ b "),
        ("/* a // b */ c // d", " c "),
        ("{|x}", ""),
        ("trailing \\", "trailing \\"),
        (r"(a\(b\):1.2)", r"(a\(b\):1.2)"),
    ],
)
def test_dynamic_prompts_lose_comments_and_take_the_first_choice(prompt: str, expected: str) -> None:
    assert inputs(convert(node(1, "Text", prompt, prompt)), "1") == {"text": expected, "plain": prompt}


def test_choices_are_picked_by_the_given_generator_alone() -> None:
    ui = workflow(node(1, "Text", "{a|b|c|d}{e|f|g|h}{i|j|k|l}"))
    picked = [to_api(ui, OBJECT_INFO, rng=random.Random(seed))["1"]["inputs"]["text"] for seed in (1, 1, 2)]
    assert picked[0] == picked[1] != picked[2]
    assert to_api(ui, OBJECT_INFO)["1"]["inputs"]["text"] == "aei"


def test_the_outer_choice_is_picked_first_and_only_what_was_picked_is_read_on() -> None:
    asked: list[int] = []

    def last(count: int) -> int:
        asked.append(count)
        return count - 1

    assert dynamic_prompt("{a|b|{c|d}} {x|y|z|w}", last) == "d w"
    assert asked == [3, 2, 4]


def test_deep_and_long_prompts_take_no_recursion_and_no_time() -> None:
    assert dynamic_prompt("{" * 20_000, lambda count: 0) == ""
    assert dynamic_prompt("{a|" * 20_000, lambda count: count - 1) == ""
    assert dynamic_prompt("/* " * 20_000, lambda count: 0) == "/* " * 20_000


def test_file_names_are_filled_in_for_savers_only() -> None:
    prefix = "%Source.n%_%No.n%_%Source.no%_%width%_%A source.n%_%date:yyyy%"
    ui = workflow(node(1, "Source", 5), node(2, "SaveImage", prefix), node(3, "Text", "", prefix))
    graph = to_api(ui, OBJECT_INFO, now=datetime(2026, 1, 2))
    assert inputs(graph, "2")["filename_prefix"] == "5_%No.n%_%Source.no%_%width%_5_2026"
    assert inputs(graph, "3")["plain"] == prefix


def test_the_search_name_counts_before_the_title() -> None:
    named = node(1, "Source", 5, title="X", properties={"Node name for S&R": "Y"})
    other = node(2, "Source", 6, title="Y")
    graph = convert(other, named, node(3, "SaveImage", "%Y.n%"))
    assert inputs(graph, "3")["filename_prefix"] == "5"


def test_what_no_file_name_may_have_is_replaced() -> None:
    graph = convert(node(1, "Text", 'a/b:c?"<>|\\*\n', "p"), node(2, "SaveImage", "%Text.text%"))
    assert inputs(graph, "2")["filename_prefix"] == "a_b_c________"


def test_a_date_without_a_clock_is_an_error_and_other_tokens_are_not() -> None:
    with pytest.raises(WorkflowFormatError, match="now="):
        convert(node(1, "SaveImage", "%date:yyyy%"))
    assert inputs(convert(node(1, "SaveImage", "%date%")), "1")["filename_prefix"] == "%date%"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("yyyy-MM-dd", "2026-01-02"), ("yy_M_d", "26_1_2"), ("hh:mm:ss h m s", "03:04:05 3 4 5"), ("yyy", "yyy")],
)
def test_dates_are_written_as_the_editor_does(pattern: str, text: str) -> None:
    assert formatted_date(pattern, datetime(2026, 1, 2, 3, 4, 5)) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.5, "1.5"), (1e21, "1e+21"), (1e20, "100000000000000000000"), (1e-7, "1e-7"), (1.5e-6, "0.0000015")]
    + [(-2.5e-5, "-0.000025"), (1.25e25, "1.25e+25"), (-3.0, "-3"), (12, "12"), (False, "false"), (None, "null")],
)
def test_numbers_become_text_as_in_javascript(number: Any, text: str) -> None:
    assert as_text(number) == text


def test_file_name_leaves_what_it_does_not_know() -> None:
    def nothing(node_name: str, widget_name: str) -> Any:
        raise LookupError(node_name)

    assert file_name("%a.b%%c%d%", nothing, lambda: datetime(2026, 1, 1)) == "%a.b%%c%d%"


# --- Links ---------------------------------------------------------------------------------------------------------


def chain(*between: dict[str, Any], links: list[Any], last: str = "SaveImage") -> dict[str, Any]:
    name = "any" if last == "Any" else "images"
    return convert(node(1, "Source"), *between, node(9, last, inputs=sockets(**{name: 90})), links=links)


def test_reroutes_are_followed_at_any_depth() -> None:
    numbers = range(1000, 4000)
    reroutes = [node(n, "Reroute", inputs=[{"name": "", "type": "*", "link": n}]) for n in numbers]
    links: list[Any] = [[n, n - 1, 0, n, 0, "*"] for n in numbers[1:]]
    graph = chain(*reroutes, links=[[1000, 1, 0, 1000, 0, "*"], *links, [90, 3999, 0, 9, 0, "*"]])
    assert inputs(graph, "9")["images"] == ["1", 0]


def test_a_cycle_of_reroutes_is_nothing() -> None:
    reroutes = [node(2, "Reroute", inputs=sockets(**{"": 5})), node(3, "Reroute", inputs=sockets(**{"": 6}))]
    graph = chain(*reroutes, links=[[5, 3, 0, 2, 0, "*"], [6, 2, 0, 3, 0, "*"], [90, 2, 0, 9, 0, "*"]])
    assert "images" not in inputs(graph, "9")


def test_a_cycle_through_bypassed_nodes_is_an_error() -> None:
    passing = [node(n, "Any", mode=4, inputs=sockets(any=link)) for n, link in ((2, 5), (3, 6))]
    with pytest.raises(WorkflowFormatError, match="back to itself"):
        chain(*passing, links=[[5, 3, 0, 2, 0, "*"], [6, 2, 0, 3, 0, "*"], [90, 2, 0, 9, 0, "*"]])


def test_a_bypassed_node_passes_on_the_input_at_the_same_place_if_it_fits() -> None:
    passing = node(2, "Two", mode=4, inputs=sockets(a=5, b=6))
    graph = chain(
        node(4, "Source"),
        passing,
        links=[[5, 4, 0, 2, 0, "IMAGE"], [6, 1, 0, 2, 1, "IMAGE"], [90, 2, 0, 9, 0, "IMAGE"]],
    )
    assert inputs(graph, "9")["images"] == ["4", 0]


def test_a_bypassed_node_without_inputs_cannot_pass_anything_on_to_a_wildcard() -> None:
    with pytest.raises(WorkflowFormatError, match="no input to pass on"):
        to_api(
            workflow(node(1, "None", mode=4), node(9, "Any", inputs=sockets(any=90)), links=[[90, 1, 0, 9, 0, "*"]]),
            {"None": info({}), "Any": OBJECT_INFO["Any"]},
        )


def test_otherwise_the_first_input_of_the_type_and_no_second_try() -> None:
    passing = node(2, "Mask", mode=4, inputs=[{"name": "mask", "type": "MASK", "link": 5}, *sockets(image=None)])
    graph = chain(node(4, "Mask"), passing, links=[[5, 4, 1, 2, 0, "MASK"], [90, 2, 0, 9, 0, "IMAGE"]])
    assert "images" not in inputs(graph, "9")


def test_a_muted_source_takes_the_input_away_even_from_a_widget() -> None:
    muted = node(2, "Source", mode=2)
    consumer = node(3, "Two", 5, inputs=[*sockets(a=None, b=7), widget_socket("n", 8)])
    graph = convert(muted, consumer, links=[[7, 2, 0, 3, 1, "IMAGE"], [8, 2, 0, 3, 2, "INT"]])
    assert inputs(graph, "3") == {}


def test_a_link_takes_the_place_of_a_widget_and_an_open_reroute_leaves_its_value() -> None:
    consumer = node(3, "Two", 5, inputs=[*sockets(a=None, b=None), widget_socket("n", 8)])
    assert inputs(convert(node(1, "Source"), consumer, links=[[8, 1, 0, 3, 2, "INT"]]), "3") == {"n": ["1", 0]}
    assert inputs(convert(node(1, "Reroute"), consumer, links=[[8, 1, 0, 3, 2, "INT"]]), "3") == {"n": 5}


def test_inputs_of_another_version_are_sent_under_their_saved_names() -> None:
    consumer = node(2, "Any", inputs=sockets(any=None, old=5))
    assert inputs(convert(node(1, "Source"), consumer, links=[[5, 1, 0, 2, 1, "IMAGE"]]), "2") == {"old": ["1", 0]}


def test_a_link_that_no_input_claims_is_taken_for_its_slot() -> None:
    graph = convert(node(1, "Source"), node(2, "Any", inputs=sockets(any=None)), links=[[5, 1, 0, 2, 0, "IMAGE"]])
    assert inputs(graph, "2") == {"any": ["1", 0]}


@pytest.mark.parametrize(
    ("links", "said"),
    [
        ([], "not in the links"),
        ([[90, 77, 0, 9, 0, "IMAGE"]], "does not exist"),
        ([[90, 1, 0, 1, 0, "IMAGE"]], "leads to node 1"),
        ([[90, 1, 5, 9, 0, "IMAGE"]], "no output 5"),
        ([[90, 1, None, 9, 0, "IMAGE"]], "no output -1"),
    ],
)
def test_a_link_that_leads_nowhere_is_an_error_with_node_and_input(links: list[Any], said: str) -> None:
    with pytest.raises(WorkflowFormatError, match=said) as caught:
        chain(links=links)
    assert caught.value.node_id in ("1", "9")


def test_two_links_to_one_slot_are_an_error_when_both_are_claimed() -> None:
    consumer = node(2, "Two", inputs=sockets(a=5, b=6))
    with pytest.raises(WorkflowFormatError, match="one slot"):
        convert(node(1, "Source"), consumer, links=[[5, 1, 0, 2, 0, "IMAGE"], [6, 1, 0, 2, 0, "IMAGE"]])


def test_a_primitive_gives_its_value_to_the_widgets_that_it_is_linked_to() -> None:
    primitive = node(1, "PrimitiveNode", 42, "fixed", mode=2, outputs=[{"name": "INT", "type": "INT"}])
    consumer = node(2, "Source", 5, inputs=[widget_socket("n", 8)])
    assert inputs(convert(primitive, consumer, links=[[8, 1, 0, 2, 0, "INT"]]), "2") == {"n": 42}
    empty = node(1, "PrimitiveNode")
    assert inputs(convert(empty, consumer, links=[[8, 1, 0, 2, 0, "INT"]]), "2") == {"n": 5}


@pytest.mark.parametrize(
    ("kind", "options", "value", "expected"),
    [
        ("INT", {"min": 1, "max": 100}, 5000, 100),
        ("INT", {}, -3, 0),
        ("INT", {"min": 16, "max": 8192, "step": 8}, 513, 512),
        ("INT", {"max": 2**64}, 2**60 + 1, 2**60 + 1),
        ("INT", {}, 2.5, 3),
        ("FLOAT", {"min": 0.0, "max": 1.0, "step": 0.01}, 187, 1.0),
        ("FLOAT", {"max": 10.0, "step": 0.1, "round": 0.01}, 7.126, 7.1),
        ("FLOAT", {"max": 10.0, "round": False}, 7.126, 7.1),
        ("FLOAT", {"max": 10.0, "step": 1}, 7.126, 7.126),
        ("STRING", {}, 5, 5),
        ("INT", {}, True, True),
    ],
)
def test_a_number_from_a_primitive_is_settled_for_the_widget(
    kind: str, options: dict[str, Any], value: Any, expected: Any
) -> None:
    classes = {"C": info({"n": [kind, options]})}
    nodes = (node(1, "PrimitiveNode", value, "fixed"), node(2, "C", 0, inputs=[widget_socket("n", 8, kind)]))
    graph = to_api(workflow(*nodes, links=[[8, 1, 0, 2, 0, kind]]), classes)
    assert graph["2"]["inputs"] == {"n": expected}


def test_a_primitive_does_nothing_through_a_reroute_or_to_a_socket() -> None:
    primitive = node(1, "PrimitiveNode", 42)
    reroute = node(3, "Reroute", inputs=sockets(**{"": 7}))
    consumer = node(2, "Source", 5, inputs=[widget_socket("n", 8)])
    links = [[7, 1, 0, 3, 0, "INT"], [8, 3, 0, 2, 0, "INT"]]
    assert inputs(convert(primitive, reroute, consumer, links=links), "2") == {"n": 5}
    socket = node(2, "Any", inputs=sockets(any=8))
    assert inputs(convert(primitive, socket, links=[[8, 1, 0, 2, 0, "*"]]), "2") == {}


def test_text_from_a_primitive_is_processed_like_the_widgets_own() -> None:
    consumer = node(2, "Text", "", "", inputs=[widget_socket("text", 8, "STRING")])
    graph = convert(node(1, "PrimitiveNode", "{a|b}"), consumer, links=[[8, 1, 0, 2, 0, "STRING"]])
    assert inputs(graph, "2")["text"] == "a"


def test_get_nodes_find_the_set_node_of_their_name() -> None:
    setter = node(2, "SetNode", "x", inputs=sockets(IMAGE=5))
    links: list[Any] = [[5, 1, 0, 2, 0, "IMAGE"], [90, 3, 0, 9, 0, "IMAGE"]]
    assert inputs(chain(setter, node(3, "GetNode", "x"), links=links), "9")["images"] == ["1", 0]
    with pytest.raises(WorkflowFormatError, match="no SetNode named 'y'"):
        chain(setter, node(3, "GetNode", "y"), links=links)
    with pytest.raises(WorkflowFormatError, match="2 SetNodes"):
        chain(setter, node(4, "SetNode", "x"), node(3, "GetNode", "x"), links=links)


# --- Subgraphs -----------------------------------------------------------------------------------------------------

SUB = "11111111-2222-4333-8444-555555555555"


def definition(
    *nodes: dict[str, Any], links: list[tuple[int, int, int, int, int]], name: str = SUB, **ports: list[list[Any]]
) -> dict[str, Any]:
    named = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return {
        "id": name,
        "name": "Sub",
        "nodes": list(nodes),
        "links": [dict(zip(named, link, strict=True)) for link in links],
        **{
            side: [{"name": port, "type": kind, "linkIds": ids} for port, kind, *ids in ports.get(side, [])]
            for side in ("inputs", "outputs")
        },
    }


def inner_source(*values: Any, link: int | None = 1, number: int = 5) -> dict[str, Any]:
    return node(number, "Source", *values, inputs=[widget_socket("n", link)])


PROMOTING = definition(
    inner_source(3),
    links=[(1, -10, 0, 5, 0), (2, 5, 0, -20, 0)],
    inputs=[["n", "INT", 1]],
    outputs=[["IMAGE", "IMAGE", 2]],
)


def with_definitions(*nodes: dict[str, Any], definitions: list[Any], links: list[Any] | None = None) -> dict[str, Any]:
    return convert(*nodes, links=links, definitions={"subgraphs": definitions})


@pytest.mark.parametrize(
    ("values", "expected"), [([7], 7), ([], 3), ([None], None), ([[1]], {"__value__": [1]}), (["x", 9], "x")]
)
def test_an_instance_has_its_own_value_for_a_promoted_widget(values: list[Any], expected: Any) -> None:
    graph = with_definitions(node(8, SUB, *values, inputs=[widget_socket("n", None)]), definitions=[PROMOTING])
    assert graph["8:5"]["inputs"] == {"n": expected}
    assert "8" not in graph


def test_the_instance_needs_no_saved_inputs_for_that() -> None:
    assert with_definitions(node(8, SUB, 7), definitions=[PROMOTING])["8:5"]["inputs"] == {"n": 7}


def test_links_cross_the_border_both_ways() -> None:
    graph = with_definitions(
        node(1, "Source"),
        node(8, SUB, 7, inputs=[widget_socket("n", 20)]),
        node(9, "Any", inputs=sockets(any=21)),
        links=[[20, 1, 0, 8, 0, "INT"], [21, 8, 0, 9, 0, "IMAGE"]],
        definitions=[PROMOTING],
    )
    assert graph["8:5"]["inputs"] == {"n": ["1", 0]}
    assert graph["9"]["inputs"] == {"any": ["8:5", 0]}


@pytest.mark.parametrize("mode", [2, 4])
def test_a_muted_or_bypassed_instance_takes_its_inner_nodes_out(mode: int) -> None:
    graph = with_definitions(
        node(8, SUB, 7, mode=mode), node(9, "Any", inputs=sockets(any=21)),
        links=[[21, 8, 0, 9, 0, "IMAGE"]], definitions=[PROMOTING],
    )  # fmt: skip
    assert graph == {"9": {"inputs": {}, "class_type": "Any", "_meta": {"title": "Any"}}}


def test_the_outermost_of_nested_instances_decides() -> None:
    outer = definition(
        node(6, SUB, 50, inputs=[widget_socket("n", 1)]),
        links=[(1, -10, 0, 6, 0)], name="outer", inputs=[["n", "INT", 1]],
    )  # fmt: skip
    graph = with_definitions(node(8, "outer", 70), node(9, "outer"), definitions=[outer, PROMOTING])
    assert graph["8:6:5"]["inputs"] == {"n": 70}
    assert graph["9:6:5"]["inputs"] == {"n": 50}


def test_definitions_may_be_nested_in_definitions() -> None:
    outer = definition(node(6, SUB, 50), links=[], name="outer") | {"definitions": {"subgraphs": [PROMOTING]}}
    assert with_definitions(node(8, "outer"), definitions=[outer])["8:6:5"]["inputs"] == {"n": 50}


def test_promoted_text_is_not_processed() -> None:
    texts = definition(
        node(5, "Text", "{a|b}", "", inputs=[widget_socket("text", 1, "STRING")]),
        links=[(1, -10, 0, 5, 0)], inputs=[["text", "STRING", 1]],
    )  # fmt: skip
    graph = with_definitions(node(8, SUB, "{c|d}"), node(9, SUB), definitions=[texts])
    assert [graph[key]["inputs"]["text"] for key in ("8:5", "9:5")] == ["{c|d}", "{a|b}"]


def test_proxy_widgets_name_whose_each_value_is() -> None:
    seeds = definition(
        node(5, "Seed", 1, "fixed", "x", "inner", inputs=[widget_socket("seed", 1), widget_socket("pick", 2, "COMBO")]),
        links=[(1, -10, 0, 5, 0), (2, -10, 1, 5, 1)], inputs=[["seed", "INT", 1], ["pick", "COMBO", 2]],
    )  # fmt: skip
    proxies = [["5", "last"], ["5", "control_after_generate"], ["5", "pick"], ["-1", "seed"]]
    instance = node(8, SUB, "mine", "fixed", "y", 77, properties={"proxyWidgets": proxies})
    graph = with_definitions(instance, definitions=[seeds])
    assert graph["8:5"]["inputs"] == {"seed": 77, "pick": "y", "last": "mine"}


def test_inner_ids_that_occur_twice_are_numbered_on() -> None:
    again = {**PROMOTING, "id": "again", "nodes": [inner_source(4, number=5)]}
    graph = with_definitions(node(8, SUB, 1), node(9, "again", 2), definitions=[PROMOTING, again])
    assert {key: entry["inputs"]["n"] for key, entry in graph.items()} == {"8:5": 1, "9:6": 2}


def test_a_primitive_works_across_the_border() -> None:
    graph = with_definitions(
        node(1, "PrimitiveNode", 42), node(8, SUB, 7, inputs=[widget_socket("n", 20)]),
        links=[[20, 1, 0, 8, 0, "INT"]], definitions=[PROMOTING],
    )  # fmt: skip
    assert graph["8:5"]["inputs"] == {"n": 42}


def test_an_input_wired_straight_to_an_output_is_an_error() -> None:
    straight = definition(links=[(1, -10, 0, -20, 0)], inputs=[["i", "IMAGE", 1]], outputs=[["o", "IMAGE", 1]])
    with pytest.raises(WorkflowFormatError, match="straight"):
        with_definitions(
            node(8, SUB), node(9, "Any", inputs=sockets(any=21)),
            links=[[21, 8, 0, 9, 0, "IMAGE"]], definitions=[straight],
        )  # fmt: skip


def test_a_subgraph_in_itself_is_an_error() -> None:
    with pytest.raises(WorkflowFormatError, match="contains itself"):
        with_definitions(node(1, SUB), definitions=[definition(node(2, SUB), links=[])])


def test_definitions_that_double_themselves_are_bounded() -> None:
    levels = [definition(node(1, f"d{n + 1}"), node(2, f"d{n + 1}"), links=[], name=f"d{n}") for n in range(24)]
    with pytest.raises(WorkflowFormatError, match="more than"):
        with_definitions(node(1, "d0"), definitions=[*levels, definition(node(1, "Source"), links=[], name="d24")])


# --- Group nodes ---------------------------------------------------------------------------------------------------


def grouped(config: dict[str, Any], *nodes: dict[str, Any], links: list[Any] | None = None) -> dict[str, Any]:
    return convert(*nodes, links=links, extra={"groupNodes": {"G": config}})


GROUP = {
    "nodes": [
        {"type": "Seed", "inputs": [], "outputs": []},
        {"type": "Two", "inputs": sockets(a=None, b=None), "outputs": []},
    ],
    "links": [[0, 0, 1, 0, 5, "IMAGE"]],
    "external": [],
}


@pytest.mark.parametrize("kind", ["workflow>G", "workflow/G"])
def test_a_group_node_deals_its_values_to_its_inner_nodes(kind: str) -> None:
    graph = grouped(
        GROUP,
        node(1, "Source"),
        node(9, kind, 7, "fixed", "y", "last", 8, inputs=sockets(b=3)),
        node(10, "Any", inputs=sockets(any=4)),
        links=[[3, 1, 0, 9, 0, "IMAGE"], [4, 9, 0, 10, 0, "IMAGE"]],
    )
    assert graph["9:0"]["inputs"] == {"seed": 7, "pick": "y", "last": "last"}
    assert graph["9:1"]["inputs"] == {"a": ["9:0", 0], "b": ["1", 0], "n": 8}
    assert graph["10"]["inputs"] == {"any": ["9:1", 0]}


def test_a_name_that_occurs_twice_in_a_group_gets_the_title_in_front() -> None:
    config = {"nodes": [{"type": "Any"}, {"type": "Any", "title": "T"}, {"type": "Any", "title": "T"}], "links": []}
    linked = sockets(**{"any": 1, "T any": 2, "T 2 any": 3})
    graph = grouped(
        config, node(1, "Source"), node(9, "workflow>G", inputs=linked),
        links=[[n, 1, 0, 9, n - 1, "*"] for n in (1, 2, 3)],
    )  # fmt: skip
    assert [graph[f"9:{n}"]["inputs"] for n in range(3)] == [{"any": ["1", 0]}] * 3


def test_a_primitive_in_a_group_shares_its_value() -> None:
    config = {
        "nodes": [
            {"type": "PrimitiveNode", "title": "Number", "outputs": [{"name": "INT", "type": "INT"}]},
            {"type": "Source", "inputs": [widget_socket("n", None)]},
        ],
        "links": [[0, 0, 1, 0, 5, "INT"]],
    }
    assert grouped(config, node(9, "workflow>G", 42, "fixed"))["9:1"]["inputs"] == {"n": 42}


def test_a_group_with_an_unknown_class_is_unknown_itself() -> None:
    with pytest.raises(UnknownNodes):
        grouped({"nodes": [{"type": "Nope"}], "links": []}, node(9, "workflow>G"))
    with pytest.raises(UnknownNodes):
        convert(node(9, "workflow>Gone"))


def test_a_group_without_nodes_is_refused() -> None:
    with pytest.raises(WorkflowFormatError, match="group node"):
        grouped({"nodes": 5}, node(9, "workflow>G"))


# --- Anything at all -----------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["nodes", "links", "id", "type", "inputs", "outputs", "widgets_values", "mode", "title", "link", "name", "widget"]
    + ["properties", "proxyWidgets", "definitions", "subgraphs", "linkIds", "extra", "groupNodes", "state", "external"]
    + ["origin_id", "origin_slot", "target_id", "target_slot", "lastNodeId", "last_node_id", "config", "G"]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-21, 9), st.floats(allow_nan=False), st.text(max_size=4),
    st.sampled_from([*OBJECT_INFO, "Reroute", "PrimitiveNode", "GetNode", SUB, "workflow>G", "Nope", "-1", "5"]),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=25
)
NODES = st.fixed_dictionaries(
    {"id": st.integers(0, 6), "type": st.sampled_from([*OBJECT_INFO, "Reroute", "PrimitiveNode", SUB, "workflow>G"])},
    optional={
        "mode": st.sampled_from([0, 2, 4]),
        "widgets_values": ANYTHING,
        "inputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["a", "b", "n", "any", "images", "text", ""]), "link": st.integers(0, 9)},
                optional={"type": LEAVES, "widget": st.just({"name": "n"})},
            ),
            max_size=3,
        ),
        "properties": st.dictionaries(KEYS, ANYTHING, max_size=2),
    },
)
LINKS = st.tuples(*[st.integers(0, 9), st.integers(-1, 6), st.integers(0, 2)] + [st.integers(0, 6)] * 2)
GRAPHS = st.fixed_dictionaries(
    {"nodes": st.lists(NODES, max_size=6), "links": st.lists(LINKS.map(list), max_size=8)},
    optional={
        "definitions": st.fixed_dictionaries(
            {
                "subgraphs": st.lists(
                    st.fixed_dictionaries(
                        {"id": st.just(SUB), "nodes": st.lists(NODES, max_size=3), "links": st.lists(LINKS.map(list))},
                        optional={"inputs": ANYTHING, "outputs": ANYTHING},
                    ),
                    max_size=2,
                )
            }
        ),
        "extra": st.dictionaries(KEYS, ANYTHING, max_size=2)
        | st.fixed_dictionaries({"groupNodes": st.fixed_dictionaries({"G": st.just(GROUP) | ANYTHING})}),
    },
)


@settings(max_examples=80, deadline=None)
@given(st.one_of(ANYTHING, GRAPHS), st.booleans())
def test_any_json_is_converted_or_refused(ui: Any, keep: bool) -> None:
    before = copy.deepcopy(ui)
    try:
        graph = to_api(ui, OBJECT_INFO, keep_unknown=keep, now=datetime(2026, 1, 1), rng=random.Random(0))
    except WorkflowError as error:
        assert str(error)
    else:
        for entry in graph.values():
            for value in entry["inputs"].values():
                assert not isinstance(value, list) or value[0] in graph
    assert ui == before
