"""When the end of a prompt was heard, but not all of it: may an output have been missed?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from acomfy.router import Router, TrackedPrompt

GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
UI = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}


@pytest.fixture
def router() -> Router:
    return Router()


def tracked(router: Router, targets: tuple[str, ...] | None = None) -> TrackedPrompt:
    prompt = TrackedPrompt("p", json.dumps(GRAPH).encode(), targets=targets)
    router.register(prompt)
    return prompt


def say(router: Router, kind: str, **data: Any) -> None:
    router.receive(json.dumps({"type": kind, "data": {"prompt_id": "p", **data}}))


def executing(router: Router, node: str) -> None:
    say(router, "executing", node=node, display_node=node)


def executed(router: Router, node: str) -> None:
    say(router, "executed", node=node, display_node=node, output=UI)


def test_an_output_node_that_began_before_the_gap_and_told_nothing_may_have_been_missed(router: Router) -> None:
    prompt = tracked(router)
    executing(router, "2")
    router.lose()
    executing(router, "3")
    executed(router, "3")
    say(router, "execution_success")
    assert prompt.may_lack_outputs()


def test_nothing_is_missed_when_every_output_node_began_after_the_gap(router: Router) -> None:
    prompt = tracked(router)
    executing(router, "1")
    router.lose()
    executing(router, "2")
    executed(router, "2")
    executing(router, "3")
    say(router, "execution_success")
    assert not prompt.may_lack_outputs()


def test_an_output_that_is_here_was_not_missed_whenever_it_came(router: Router) -> None:
    prompt = tracked(router)
    executed(router, "2")
    router.lose()
    executed(router, "3")  # cached: it begins without a word
    say(router, "execution_success")
    assert not prompt.may_lack_outputs()


def test_only_the_outputs_asked_for_are_waited_for(router: Router) -> None:
    prompt = tracked(router, targets=("3",))
    router.lose()
    executing(router, "3")
    say(router, "execution_success")
    assert not prompt.may_lack_outputs()


def test_an_end_without_anything_before_it_may_have_missed_all(router: Router) -> None:
    prompt = tracked(router)
    say(router, "execution_success")
    assert prompt.may_lack_outputs()
