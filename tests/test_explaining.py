"""A refusal without the choices of a long list is told with them, and never at the cost of the refusal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import acomfy
from acomfy import explaining
from acomfy.simulator import Node, SimulatedServer

from .conftest import MS
from .graphs import gated, sampled, saved
from .shell import client, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

MODELS = [f"model_{number:03}.safetensors" for number in range(100)]
ASKED = ("GET", "/object_info/{class_type}")


@pytest.fixture
def misspelt(server: SimulatedServer) -> dict[str, Any]:
    load = Node("Load", lambda context, model: 1, required={"model": (MODELS,)}, output_node=True)
    server.add_node(load)
    return {
        "7": {"class_type": "Load", "inputs": {"model": "modle_077.safetensors"}, "_meta": {"title": "Mine"}},
        "8": {"class_type": "Load", "inputs": {"model": "model_01.safetensors"}},
    }


async def refusal(client: acomfy.Client, graph: dict[str, Any]) -> acomfy.PromptRejected:
    with pytest.raises(acomfy.PromptRejected) as caught:
        await client.run(graph)
    return caught.value


async def test_the_choices_that_a_server_left_out_are_asked_for_once(
    server: SimulatedServer, client: acomfy.Client, misspelt: dict[str, Any]
) -> None:
    said = await refusal(client, misspelt)
    assert [problem.allowed for problem in said.problems] == [MODELS, MODELS]
    assert "node 7 (Load, 'Mine')" in str(said) and "did you mean 'model_077.safetensors'?" in str(said)
    assert server.requests[ASKED] == 1


async def test_a_part_that_was_dropped_is_explained_too(client: acomfy.Client, misspelt: dict[str, Any]) -> None:
    said = await refusal(client, misspelt | gated("shut"))
    assert said.partial and said.problems[0].nearest == "model_077.safetensors"


async def test_nothing_is_asked_when_all_is_well_or_all_is_said(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.run(saved())
    graph = sampled()
    graph["4"]["inputs"]["ckpt_name"] = "gone.safetensors"  # of a short list
    assert (await refusal(client, graph)).problems[0].allowed
    assert server.requests[ASKED] == 0


@pytest.mark.parametrize("answer", ["hangs", "refuses", "is nonsense"])
async def test_whatever_becomes_of_the_question_the_refusal_stands(
    answer: str, client: acomfy.Client, misspelt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answered(self: Any, class_type: str) -> Any:
        if answer == "hangs":
            await asyncio.Event().wait()
        if answer == "refuses":
            raise acomfy.HTTPError(404, "GET", "http://x", "")
        return {class_type: {"input": 5}}

    monkeypatch.setattr(type(client.api), "get_object_info", answered)
    monkeypatch.setattr(explaining, "_PATIENCE", 50 * MS)
    said = await refusal(client, misspelt)
    assert [(problem.node_id, problem.allowed) for problem in said.problems] == [("7", None), ("8", None)]
