"""What the simulator does as an older and as a newer ComfyUI: PROTOCOL's changes, one test each."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from acomfy.simulator import NodeContext, SimulatedServer, odd_nodes
from acomfy.simulator.versions import capabilities

from .wire import Client, Graph, chain, empty_image, with_output

pytestmark = pytest.mark.anyio

GRAPH = with_output(empty_image())
FLAGS = {"supports_preview_metadata": True}


def between(old: str, new: str) -> pytest.MarkDecorator:
    """Run a test as the last version before a change and as the first with it; ``new`` tells it which."""
    return pytest.mark.parametrize(("version", "new"), [(old, False), (new, True)], ids=[old, new])


def test_version_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'nightly' is no ComfyUI version"):
        SimulatedServer(version="nightly")


def test_newer_versions_lose_only_what_was_mended() -> None:
    oldest, newest = capabilities("0.3.40"), capabilities("0.38.1")
    lost = {"progress_state_to_all", "history_needs_client_for_cached"}
    assert all(getattr(newest, name) for name in newest.__slots__ if name not in lost)
    assert not any(getattr(oldest, name) for name in oldest.__slots__)
    assert not any(getattr(newest, name) for name in lost)


@pytest.mark.parametrize("version", ["0.3.40", "0.3.45", "0.3.57", "0.3.64", "0.6.0", "0.9.2", "0.20.0", "0.38.1"])
async def test_every_version_runs_a_prompt_and_tells_its_number(version: str) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        await client.connect(flags=FLAGS)
        entry = await client.run(GRAPH)
        assert entry["status"]["completed"]
        assert (await client.get("/system_stats"))["system"]["comfyui_version"] == version


@between("0.3.44", "0.3.45")
async def test_chosen_prompt_id(version: str, new: bool) -> None:
    chosen = str(uuid.uuid4())
    async with SimulatedServer(version=version) as server, Client(server) as client:
        assert (await client.post(GRAPH, prompt_id=chosen) == chosen) is new


@between("0.3.44", "0.3.45")
async def test_feature_flags_and_progress_state(version: str, new: bool) -> None:
    graph = {**empty_image(), "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
    async with SimulatedServer(version=version) as server, Client(server) as client:
        await client.connect(flags=FLAGS)
        await client.ping()
        await client.run(graph)
        kinds = [kind for kind, _ in client.messages]
        assert ("feature_flags" in kinds, "progress_state" in kinds) == (new, new)
        pictures = [frame for frame in client.frames if isinstance(frame, bytes)]
        assert [frame[3] for frame in pictures] == [4 if new else 1]
        async with client.session.get(f"{client.url}/features") as response:
            assert (response.status == 200) is new


@between("0.3.56", "0.3.57")
async def test_progress_state_goes_to_the_prompts_client_alone(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client, Client(server) as stranger:
        await client.connect()
        await stranger.connect()
        await client.run(GRAPH)
        await stranger.ping()
        assert ("progress_state" not in [kind for kind, _ in stranger.messages]) is new


@between("0.3.47", "0.3.48")
async def test_partial_execution_targets(version: str, new: bool) -> None:
    graph = {**GRAPH, "8": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    async with SimulatedServer(version=version) as server, Client(server) as client:
        entry = await client.run(graph, partial_execution_targets=["8"])
        assert list(entry["outputs"]) == (["8"] if new else ["9", "8"])


@between("0.3.56", "0.3.57")
async def test_interrupt_of_another_prompt_is_global_on_old_servers(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        asked = asyncio.Event()

        @server.node("Wait", required={"value": ("*", {})}, outputs=("*",))
        async def wait(context: NodeContext, value: Any) -> Any:
            await asked.wait()
            context.check_interrupted()
            return value

        prompt_id = await client.post(chain(empty_image(), "Wait"))
        await server.wait_for(lambda: server.sockets.executing_node == "2")
        await client.send("/interrupt", {"prompt_id": str(uuid.uuid4())})
        asked.set()
        entry = await client.ended(prompt_id)
        assert (entry["status"]["status_str"] == "success") is new


@between("0.3.59", "0.3.60")
async def test_history_offset(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        ids = [await client.post(with_output(empty_image(color=color))) for color in range(3)]
        await server.wait_idle()
        assert list(await client.get("/history?max_items=1&offset=0")) == [ids[0] if new else ids[2]]


@pytest.mark.parametrize(
    ("version", "in_queue", "in_history"), [("0.3.44", True, True), ("0.3.45", True, False), ("0.3.68", False, False)]
)
async def test_account_tokens_are_shown(version: str, in_queue: bool, in_history: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        server.hold()
        prompt_id = await client.post(GRAPH, extra_data={"api_key_comfy_org": "secret", "tag": 1})
        assert ("secret" in json.dumps(await client.get("/queue"))) is in_queue
        server.release()
        entry = await client.ended(prompt_id)
        assert ("secret" in json.dumps(entry)) is in_history
        assert entry["prompt"][3]["tag"] == 1


@between("0.3.67", "0.3.68")
async def test_history_tells_cached_outputs_that_were_not_asked_for(version: str, new: bool) -> None:
    graph = {**GRAPH, "8": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    async with SimulatedServer(version=version) as server, Client(server) as client:
        await client.run(graph)
        entry = await client.run(graph, partial_execution_targets=["8"])
        assert ("9" not in entry["outputs"]) is new


@between("0.27.0", "0.28.0")
async def test_history_of_cached_outputs_without_client_id(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        await client.run(GRAPH)
        _, text = await client.send("/prompt", {"prompt": GRAPH})
        await server.wait_idle()
        prompt_id = json.loads(text)["prompt_id"]
        assert ("9" in (await client.get(f"/history/{prompt_id}"))[prompt_id]["outputs"]) is new


@between("0.3.68", "0.3.69")
async def test_create_time(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        entry = await client.run(GRAPH)
        assert ("create_time" in entry["prompt"][3]) is new


@between("0.9.1", "0.9.2")
async def test_steps_that_come_too_soon_are_not_told(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        await client.connect()

        @server.node("Count", output_node=True)
        def count(context: NodeContext) -> None:
            for step in range(1001):
                context.progress(step, 1000)

        await client.run({"1": {"class_type": "Count", "inputs": {}}})
        steps = [data["value"] for kind, data in client.messages if kind == "progress"]
        assert steps[0] == 0 and steps[-1] == 1000
        assert (len(steps) < 300) is new


@between("0.11.1", "0.12.0")
async def test_unknown_class_is_named(version: str, new: bool) -> None:
    graph: Graph = {**GRAPH, "5": {"class_type": "NoSuchNode", "inputs": {}, "_meta": {"title": "Mine"}}}
    async with SimulatedServer(version=version) as server, Client(server) as client:
        status, text = await client.send("/prompt", {"prompt": graph})
        refusal = json.loads(text)["error"]
        assert (status, refusal["type"]) == (400, "missing_node_type" if new else "invalid_prompt")
        named = {"node_id": "5", "class_type": "NoSuchNode", "node_title": "Mine"}
        assert refusal["extra_info"] == (named if new else {})


@between("0.19.1", "0.20.0")
async def test_cycle_is_named(version: str, new: bool) -> None:
    scale = {"upscale_method": "area", "width": 8, "height": 8, "crop": "disabled"}
    graph: Graph = {
        "1": {"class_type": "ImageScale", "inputs": {"image": ["2", 0], **scale}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **scale}},
    }
    async with SimulatedServer(version=version) as server, Client(server) as client:
        status, text = await client.send("/prompt", {"prompt": with_output(graph, "2")})
        errors = [item["type"] for node in json.loads(text)["node_errors"].values() for item in node["errors"]]
        assert (status, errors) == (400, ["dependency_cycle"] * 2 if new else [])  # one at each of its nodes


@between("0.18.0", "0.19.0")
async def test_cross_site_requests_are_refused(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        headers = {"Sec-Fetch-Site": "cross-site"}
        async with client.session.get(f"{client.url}/prompt", headers=headers) as response:
            assert (response.status == 403) is new


UUID = "6a5a60d4-f00b-4615-a4ad-991a4c0ad1ba"


@between("0.24.0", "0.25.0")
@pytest.mark.parametrize("chosen", ["short", UUID.upper(), UUID.replace("-", "")])
async def test_prompt_id_must_be_a_canonical_uuid(version: str, new: bool, chosen: str) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        status, text = await client.send("/prompt", {"prompt": GRAPH, "prompt_id": chosen})
        assert status == (400 if new else 200)
        if new:
            assert json.loads(text)["error"]["type"] == "invalid_prompt_id"
            assert (await client.send("/prompt", {"prompt": GRAPH, "prompt_id": None}))[0] == 200


# --- The jobs API --------------------------------------------------------------------------------------------------


@between("0.5.0", "0.6.0")
async def test_jobs_api_is_there(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        for path, found in (("/api/jobs", new), ("/jobs", False)):
            async with client.session.get(client.url + path) as response:
                assert response.status == (200 if found else 404)


async def test_jobs_are_listed_by_state_time_and_workflow() -> None:
    async with SimulatedServer(version="0.20.0") as server, Client(server) as client:
        server.add_node(*odd_nodes.ALL)
        info = {"extra_pnginfo": {"workflow": {"id": "wf-1"}}}
        done = await client.post(GRAPH, extra_data=info)
        failed = await client.post(chain(empty_image(), "Raise", message="no"))
        await server.wait_idle()
        running = await client.post(chain(empty_image(), "Sleep", seconds=60.0))
        await server.wait_for(lambda: server.queue.running)
        waiting = await client.post(GRAPH)

        async def ids(query: str) -> list[str]:
            return [job["id"] for job in (await client.get(f"/api/jobs?{query}"))["jobs"]]

        assert set(await ids("")) == {done, failed, running, waiting}
        assert await ids("status=in_progress,pending&sort_order=asc") == [running, waiting]  # in the same ms, too
        assert await ids("status=failed") == [failed]
        assert await ids("workflow_id=wf-1") == [done]
        page = await client.get("/api/jobs?limit=1&offset=1&sort_order=asc")
        assert [job["id"] for job in page["jobs"]] == (await ids("sort_order=asc"))[1:2]
        assert page["pagination"] == {"offset": 1, "limit": 1, "total": 4, "has_more": True}
        assert set(await ids("sort_by=execution_duration")) == {done, failed, running, waiting}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "status=bogus",
            "Invalid status value(s): bogus. Valid values: pending, in_progress, completed, failed, cancelled",
        ),
        ("limit=0", "limit must be a positive integer"),
        ("limit=x", "limit must be an integer"),
        ("sort_by=x", "sort_by must be 'created_at' or 'execution_duration'"),
    ],
)
async def test_bad_query_is_refused_with_the_servers_words(query: str, message: str) -> None:
    async with SimulatedServer(version="0.20.0") as server, Client(server) as client:
        response = await client.session.get(f"{client.url}/api/jobs?{query}")
        assert (response.status, await response.json()) == (400, {"error": message})


async def test_job_has_its_outputs_and_its_workflow() -> None:
    async with SimulatedServer(version="0.20.0") as server, Client(server) as client:
        prompt_id = await client.post(GRAPH)
        entry = await client.ended(prompt_id)
        job = await client.get(f"/api/jobs/{prompt_id}")
        assert (job["status"], job["outputs_count"], job["outputs"]) == ("completed", 1, entry["outputs"])
        assert job["preview_output"] == {**entry["outputs"]["9"]["images"][0], "nodeId": "9", "mediaType": "images"}
        assert job["workflow"]["prompt"] == GRAPH and job["execution_status"] == entry["status"]
        assert job["execution_start_time"] <= job["execution_end_time"]
        async with client.session.get(f"{client.url}/api/jobs/unknown") as response:
            assert (response.status, await response.json()) == (404, {"error": "Job not found"})


@between("0.8.0", "0.9.0")
async def test_interrupted_job_is_cancelled_and_was_failed(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        server.add_node(*odd_nodes.ALL)
        prompt_id = await client.post(chain(empty_image(), "Sleep", seconds=60.0))
        await server.wait_for(lambda: server.sockets.executing_node == "2")
        assert (await client.get(f"/api/jobs/{prompt_id}"))["status"] == "in_progress"
        await client.send("/interrupt", {"prompt_id": prompt_id})
        await client.ended(prompt_id)
        assert (await client.get(f"/api/jobs/{prompt_id}"))["status"] == ("cancelled" if new else "failed")


@between("0.25.0", "0.26.0")
async def test_cancel_route(version: str, new: bool) -> None:
    async with SimulatedServer(version=version) as server, Client(server) as client:
        status, _ = await client.send(f"/api/jobs/{uuid.uuid4()}/cancel", {})
        assert status == (200 if new else 405)


async def test_cancel_takes_what_waits_and_interrupts_what_runs() -> None:
    async with SimulatedServer(version="0.38.1") as server, Client(server) as client:
        server.add_node(*odd_nodes.ALL)
        running = await client.post(chain(empty_image(), "Sleep", seconds=60.0))
        await server.wait_for(lambda: server.sockets.executing_node == "2")
        waiting = await client.post(GRAPH)
        for prompt_id, cancelled in ((waiting, True), (waiting, False), (running, True)):
            status, text = await client.send(f"/api/jobs/{prompt_id}/cancel", {})
            assert (status, json.loads(text)) == (200, {"cancelled": cancelled})
        await client.ended(running)
        assert server.ledger[waiting].state == "deleted" and server.ledger[running].state == "cancelled"


async def test_many_are_cancelled_at_once_and_malformed_ids_cancel_nothing() -> None:
    async with SimulatedServer(version="0.38.1") as server, Client(server) as client:
        server.hold()
        ids = [await client.post(GRAPH) for _ in range(2)]
        status, text = await client.send("/api/jobs/cancel", {"job_ids": [ids[0], "x"]})
        assert (status, json.loads(text)["invalid_ids"], len(server.queue)) == (400, ["x"], 2)
        assert (await client.send("/api/jobs/cancel", {"job_ids": []}))[0] == 400
        status, text = await client.send("/api/jobs/cancel", {"job_ids": [*ids, str(uuid.uuid4())]})
        assert (status, json.loads(text), len(server.queue)) == (200, {"cancelled": True}, 0)
