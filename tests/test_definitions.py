"""The typed view of object_info: every version's way of writing a class, and nonsense refused by name."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.definitions import Definitions, InputDefinition, NodeDefinition
from acomfy.errors import ProtocolError

SAMPLER: dict[str, Any] = {
    "input": {
        "optional": {"scale": ["FLOAT", {"default": 1.0, "tooltip": "How much", "lazy": True}]},
        "required": {
            "seed": ["INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}],
            "model": ["MODEL"],
            "sampler": [["euler", "ddim"], {"default": "ddim"}],
            "scheduler": ["COMBO", {"options": ["normal", 2], "multiselect": True}],
        },
        "hidden": {"prompt": "PROMPT", "unique_id": ["UNIQUE_ID"]},
    },
    "input_order": {"required": ["model", "seed", "gone", "sampler", "scheduler"], "optional": ["scale"]},
    "output": ["LATENT", ["a", "b"]],
    "output_is_list": [False, True],
    "output_name": ["latent", ["a", "b"]],
    "name": "Sampler",
    "display_name": "A sampler",
    "description": "Samples.",
    "python_module": "nodes",
    "category": "sampling",
    "output_node": False,
    "deprecated": True,
}
RESIZE: dict[str, Any] = {
    "input": {
        "required": {
            "image": ["COMFY_MATCHTYPE_V3", {"template": {"template_id": "t", "allowed_types": "IMAGE,MASK"}}],
            "by": [
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "size", "inputs": {"required": {"width": ["INT", {"min": 1}], "height": ["INT", {}]}}},
                        {
                            "key": "names",
                            "inputs": {
                                "optional": {
                                    "kind": [
                                        "COMFY_DYNAMICCOMBO_V3",
                                        {"options": [{"key": 1, "inputs": {"required": {"deep": ["STRING"]}}}]},
                                    ]
                                }
                            },
                        },
                    ]
                },
            ],
            "images": [
                "COMFY_AUTOGROW_V3",
                {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 1, "max": 3}},
            ],
        },
        "optional": {
            "masks": [
                "COMFY_AUTOGROW_V3",
                {"template": {"input": {"optional": {"m": ["MASK", {}]}}, "names": ["one", "two"], "min": 1}},
            ],
            "slot": ["COMFY_DYNAMICSLOT_V3", {"slotType": "VAE", "inputs": {"required": {"tile": ["INT", {}]}}}],
        },
    },
    "output": ["COMFY_MATCHTYPE_V3"],
    "output_matchtypes": ["t"],
}


def sampler() -> NodeDefinition:
    return Definitions({"Sampler": SAMPLER})["Sampler"]


def resize() -> NodeDefinition:
    return Definitions({"Resize": RESIZE})["Resize"]


def input_of(raw: Any) -> InputDefinition:
    return Definitions({"X": {"input": {"required": {"it": raw}}}})["X"].inputs["it"]


def test_inputs_come_in_the_servers_order_required_ones_first() -> None:
    assert list(sampler().inputs) == ["model", "seed", "sampler", "scheduler", "scale"]
    assert [item.required for item in sampler().inputs.values()] == [True, True, True, True, False]


def test_without_input_order_the_order_is_that_of_the_groups() -> None:
    definition = Definitions({"Sampler": {key: SAMPLER[key] for key in ("input", "output")}})["Sampler"]
    assert list(definition.inputs) == ["seed", "model", "sampler", "scheduler", "scale"]


def test_inputs_that_the_order_forgets_come_last() -> None:
    definition = Definitions({"Sampler": {**SAMPLER, "input_order": {"required": ["scheduler"]}}})["Sampler"]
    assert list(definition.inputs) == ["scheduler", "seed", "model", "sampler", "scale"]


def test_settings_are_read_as_limits_and_flags() -> None:
    seed, scale = sampler().inputs["seed"], sampler().inputs["scale"]
    assert (seed.type, seed.default, seed.minimum, seed.maximum, seed.step) == ("INT", 0, 0, 2**64 - 1, None)
    assert seed.control_after_generate is True
    assert (scale.lazy, scale.tooltip, scale.force_input, scale.multiselect) == (True, "How much", False, False)
    assert sampler().inputs["model"].settings == {}
    assert input_of(["STRING", {"forceInput": True}]).force_input


def test_a_combo_is_the_same_in_the_old_form_and_in_the_new() -> None:
    old, new = sampler().inputs["sampler"], sampler().inputs["scheduler"]
    assert (old.type, old.choices, old.default) == ("COMBO", ("euler", "ddim"), "ddim")
    assert (new.type, new.choices, new.multiselect) == ("COMBO", ("normal", 2), True)
    assert old.raw == [["euler", "ddim"], {"default": "ddim"}]


def test_an_empty_combo_has_no_choice_and_a_remote_one_is_not_known() -> None:
    assert input_of([[], {}]).choices == ()
    remote = input_of(["COMBO", {"remote": {"route": "/x"}}])
    assert (remote.type, remote.choices, remote.remote) == ("COMBO", None, True)


def test_a_type_without_its_list_is_the_type() -> None:
    assert input_of("IMAGE").type == "IMAGE"


def test_an_input_declared_twice_is_required() -> None:
    raw = {"input": {"optional": {"a": ["INT"]}, "required": {"a": ["FLOAT"]}}}
    definition = Definitions({"X": raw})["X"].inputs["a"]
    assert (definition.required, definition.type) == (True, "FLOAT")


def test_outputs_have_types_names_and_flags() -> None:
    definition = sampler()
    assert definition.output_types == ("LATENT", ("a", "b"))
    assert definition.output_names == ("latent", "COMBO")
    assert definition.output_is_list == (False, True)
    assert definition.hidden == {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"}
    assert (definition.display_name, definition.category, definition.python_module) == (
        "A sampler",
        "sampling",
        "nodes",
    )
    assert (definition.deprecated, definition.experimental, definition.output_node) == (True, False, False)


def test_a_class_of_which_little_is_said_is_read_all_the_same() -> None:
    definition = Definitions({"Bare": {"output": ["IMAGE", "MASK"], "output_name": ["picture"]}})["Bare"]
    assert (definition.display_name, dict(definition.inputs), dict(definition.hidden)) == ("Bare", {}, {})
    assert (definition.output_names, definition.output_is_list) == (("picture", "MASK"), (False, False))
    assert definition.output_matchtypes == (None, None)


def test_a_dynamic_combo_gives_its_keys_and_what_each_adds() -> None:
    by = resize().inputs["by"]
    assert (by.type, by.choices) == ("COMFY_DYNAMICCOMBO_V3", ("size", "names"))
    assert list(by.alternatives["size"]) == ["width", "height"]
    assert by.alternatives["size"]["width"].minimum == 1
    assert list(by.alternatives["names"]["kind"].alternatives[1]) == ["deep"]


def test_an_autogrow_input_gives_all_that_it_may_grow_to() -> None:
    grown = resize().inputs["images"].grown
    assert [(name, item.type, item.required) for name, item in grown.items()] == [
        ("image0", "IMAGE", True),
        ("image1", "IMAGE", False),
        ("image2", "IMAGE", False),
    ]
    assert [item.required for item in resize().inputs["masks"].grown.values()] == [False, False]


def test_values_select_the_inputs_of_a_node() -> None:
    fixed = {"image", "images.image0", "images.image1", "images.image2", "masks.one", "masks.two"}
    assert set(resize().inputs_for({})) == fixed
    assert set(resize().inputs_for({"by": "size"})) == fixed | {"by", "by.width", "by.height"}
    nested = resize().inputs_for({"by": "names", "by.kind": 1, "slot": ["1", 0]})
    assert set(nested) == fixed | {"by", "by.kind", "by.kind.deep", "slot", "slot.tile"}
    assert (nested["by.kind.deep"].name, nested["by.kind.deep"].required) == ("by.kind.deep", True)


@pytest.mark.parametrize("value", [["1", 0], {"a": 1}, None, "other"])
def test_a_dynamic_combo_that_selects_nothing_is_left_out(value: Any) -> None:
    assert "by" not in resize().inputs_for({"by": value})


def test_a_static_class_has_the_same_inputs_whatever_is_given() -> None:
    assert sampler().inputs_for({"seed": 1, "more": 2}) == dict(sampler().inputs)


def test_dynamic_inputs_that_grow_without_bound_are_cut_off() -> None:
    template = {"input": {"required": {"x": ["INT"]}}, "prefix": "x", "min": 10**9, "max": 10**9}
    assert len(input_of(["COMFY_AUTOGROW_V3", {"template": template}]).grown) == 100


def test_dynamic_inputs_that_nest_without_bound_are_refused() -> None:
    raw: list[Any] = ["INT"]
    for _ in range(100):
        template = {"input": {"required": {"x": raw}}, "names": ["x"], "min": 1}
        raw = ["COMFY_AUTOGROW_V3", {"template": template}]
    definition = Definitions({"X": {"input": {"required": {"x": raw}}}})["X"]
    with pytest.raises(ProtocolError, match="deeper than 20 levels"):
        definition.inputs_for({})


def test_an_autogrow_input_of_another_form_stays_as_it_is() -> None:
    definition = Definitions({"X": {"input": {"required": {"x": ["COMFY_AUTOGROW_V3", {"min": 1}]}}}})["X"]
    assert list(definition.inputs_for({})) == ["x"]


def test_definitions_are_a_mapping_that_reads_a_class_when_it_is_asked_for() -> None:
    definitions = Definitions({"Sampler": SAMPLER, "Broken": 5})
    assert list(definitions) == ["Sampler", "Broken"]
    assert "Sampler" in definitions and "Other" not in definitions
    no_name: Any = 5
    assert no_name not in definitions
    assert definitions["Sampler"] is definitions["Sampler"]
    assert definitions.get("Other") is None
    assert repr(definitions) == "<Definitions of 2 node classes>"
    with pytest.raises(ProtocolError, match="object_info of class 'Broken' is int, not an object"):
        definitions["Broken"]


def test_definitions_of_definitions_are_the_same() -> None:
    definitions = Definitions({"Sampler": SAMPLER})
    assert Definitions.of(definitions) is definitions
    assert "Sampler" in Definitions.of({"Sampler": SAMPLER})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "this is list"),
        ({"nodes": [], "links": []}, "a workflow of the editor"),
        ({"1": {"class_type": "KSampler", "inputs": {}}}, "a workflow in API format"),
        (SAMPLER, "the description of one class"),
    ],
)
def test_something_else_than_definitions_is_named(wrong: Any, said: str) -> None:
    with pytest.raises(ProtocolError, match=f"{said}.*; needed is the JSON object that GET /object_info answers"):
        Definitions.of(wrong)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"input": []}, "its inputs are list"),
        ({"input": {"required": ["a"]}}, "its required inputs are list"),
        ({"input": {"optional": {"a": None}}}, "input 'a' is None, not \\[type, settings\\]"),
        ({"input": {"required": {"a": []}}}, "input 'a' is \\[\\]"),
        ({"input": {"required": {"a": [None]}}}, "the type of input 'a' is None"),
        ({"output": "IMAGE"}, "its 'output' is 'IMAGE', not a list"),
        ({"output": [None]}, "an output's type is None"),
        ({"output_name": "x" * 500}, "its 'output_name' is 'x+…, not a list"),
    ],
)
def test_nonsense_is_refused_with_the_class_and_the_place(raw: Any, said: str) -> None:
    with pytest.raises(ProtocolError, match=f"object_info of class 'Odd'.*{said}"):
        Definitions({"Odd": raw})["Odd"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
dynamic_specs: st.SearchStrategy[list[Any]] = st.deferred(
    lambda: st.tuples(
        st.sampled_from(["COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3", "COMBO", "INT"]),
        st.fixed_dictionaries(
            {},
            optional={
                "template": json_values
                | st.fixed_dictionaries(
                    {"input": groups | json_values},
                    optional={
                        "names": json_values | st.lists(st.text(max_size=2)),
                        "prefix": json_values | st.just("p"),
                        "min": json_values,
                        "max": json_values | st.integers(0, 5),
                    },
                ),
                "options": json_values
                | st.lists(st.fixed_dictionaries({"key": json_values, "inputs": groups | json_values}), max_size=2),
                "inputs": groups | json_values,
            },
        ),
    ).map(list)
)
groups: st.SearchStrategy[Any] = st.dictionaries(
    st.sampled_from(["required", "optional", "hidden"]),
    st.dictionaries(st.sampled_from("ab"), dynamic_specs | json_values, max_size=2) | json_values,
    max_size=2,
)
classes = json_values | st.fixed_dictionaries(
    {},
    optional={
        "input": groups | json_values,
        "input_order": json_values | st.dictionaries(st.sampled_from(["required", "optional"]), json_values),
        "output": json_values | st.lists(st.text(max_size=3) | json_values, max_size=3),
        "output_name": json_values,
        "output_is_list": json_values,
        "output_matchtypes": json_values,
        "display_name": json_values,
        "output_node": json_values,
    },
)


@given(classes, st.dictionaries(st.sampled_from(["a", "b", "a.a", "a.b", "b.a"]), json_values))
def test_any_json_is_a_definition_or_a_protocol_error(raw: Any, values: dict[str, Any]) -> None:
    with contextlib.suppress(ProtocolError):
        definition = Definitions({"X": raw, "Y": 0})["X"]
        assert isinstance(definition, NodeDefinition)
        count = len(definition.output_types)
        assert count == len(definition.output_names) == len(definition.output_is_list)
        assert count == len(definition.output_matchtypes)
        assert all(isinstance(name, str) for name in definition.output_names)
        for name, item in definition.inputs_for(values).items():
            assert name == item.name
            assert item.choices is None or isinstance(item.choices, tuple)
            assert item.minimum is None or isinstance(item.minimum, int | float)


@given(json_values)
def test_any_json_is_definitions_or_a_protocol_error(raw: Any) -> None:
    with contextlib.suppress(ProtocolError):
        definitions = Definitions.of(raw)
        for class_type in definitions:
            with contextlib.suppress(ProtocolError):
                assert definitions[class_type].class_type == class_type
