"""The router under any interleaving, beside a model of it that is too simple to be wrong.

Invariants: no frame, loss, registration, new id or forgetting ever gives an event or an output to another prompt than
its own; no prompt leaves its verdict, and none hears anything after it; a prompt is intact only if nothing of its run
was missed; progress never goes back; and nothing is left once all prompts are forgotten.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from acomfy import events
from acomfy.frames import encode
from acomfy.router import Delivery, Router, TrackedPrompt
from acomfy.verdict import JobState, Verdict

from .conftest import FUZZ
from .strategies import JPEG, metadata_frame, text_frame

GRAPH = {"1": {"inputs": {}}, "5": {"inputs": {"steps": 4}}, "8": {"inputs": {}}, "9": {"inputs": {}}}
STREAMS = frozenset({"8", "9"})

OURS = ["a", 'b"\\ü']
ids = st.sampled_from([*OURS, "stranger"])
nodes = st.sampled_from(list(GRAPH))


@dataclass
class Expected:
    """What one prompt should know."""

    prompt: TrackedPrompt
    started: bool = False
    missed: bool = False
    node: str | None = None
    step_node: str | None = None
    executed: dict[str, str] = field(default_factory=dict)
    streamed: dict[str, list[bytes]] = field(default_factory=dict)
    preview: bytes | None = None
    ended: JobState | None = None
    intact: bool = False
    verdict: Verdict | None = None
    progress: float = 0.0

    def begin(self) -> None:
        self.started, self.missed, self.node, self.step_node, self.preview = True, False, None, None, None
        self.executed, self.streamed = {}, {}


class RouterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.live: dict[str, Expected] = {}
        self.all: list[Expected] = []
        self.window: Expected | None = None
        self.clock = 0

    # --- What the client does --------------------------------------------------------------------------------------

    @initialize(listeners=st.integers(0, 1))
    def register_all(self, listeners: int) -> None:
        for prompt_id in OURS:
            self.register(prompt_id, listeners)

    @rule(prompt_id=st.sampled_from(OURS), listeners=st.integers(0, 1))
    def register(self, prompt_id: str, listeners: int) -> None:
        prompt = TrackedPrompt(prompt_id, json.dumps(GRAPH).encode(), STREAMS)
        prompt.listeners = listeners
        self._drop(prompt_id)
        self.router.register(prompt)
        self.live[prompt_id] = Expected(prompt)
        self.all.append(self.live[prompt_id])

    @rule(prompt_id=ids)
    def forget(self, prompt_id: str) -> None:
        if prompt_id in self.live:
            self.router.forget(self.live[prompt_id].prompt)
        self._drop(prompt_id)

    @rule(prompt_id=ids, new_id=ids)
    def rekey(self, prompt_id: str, new_id: str) -> None:
        expected = self.live.get(prompt_id)
        if expected is not None:
            self._drop(prompt_id)
            self._drop(new_id)
            self.router.rekey(expected.prompt, new_id)
            self.live[new_id] = expected

    @rule()
    def lose(self) -> None:
        self.router.lose()
        self._loss()

    @rule(frame=st.sampled_from(["nonsense", "{}", b"", b"\0\0\0\4\0\0\0\x09{}"]))
    def unreadable(self, frame: str | bytes) -> None:
        assert self.router.receive(frame) is None
        self._loss()

    def _drop(self, prompt_id: str) -> None:
        expected = self.live.pop(prompt_id, None)
        if expected is not None and self.window is expected:
            self.window = None

    def _loss(self) -> None:
        self.window = None
        for expected in self.live.values():
            expected.missed = True

    # --- What the server says --------------------------------------------------------------------------------------

    def _says(self, kind: str, prompt_id: str, **data: Any) -> Expected | None:
        """Send a message; give the prompt that it should have moved."""
        delivery = self.router.receive_text(text_frame(kind, {**data, "prompt_id": prompt_id}))
        expected = self.live.get(prompt_id)
        addressed = expected if expected is not None and expected.ended is None else None
        self.window = addressed
        if addressed is None and not (kind == "executing" and data["node"] is None):
            assert delivery is None
        self._check(delivery, expected, prompt_id)
        if addressed is not None and not addressed.started and kind != "execution_start":
            addressed.started, addressed.missed = True, True  # joined in the middle
        return addressed

    def _check(self, delivery: Delivery | None, expected: Expected | None, prompt_id: str) -> None:
        """Check that what is delivered is this message, to its own prompt or to nobody."""
        if delivery is None:
            assert expected is None or not expected.prompt.listeners or expected.ended is not None
        else:
            assert expected is not None and delivery[0] is expected.prompt
            assert getattr(delivery[1], "prompt_id", prompt_id) == prompt_id

    @rule(prompt_id=ids)
    def execution_start(self, prompt_id: str) -> None:
        self.clock += 1
        expected = self._says("execution_start", prompt_id, timestamp=self.clock)
        if expected is not None:
            expected.begin()

    @rule(prompt_id=ids, cached=st.lists(nodes))
    def execution_cached(self, prompt_id: str, cached: list[str]) -> None:
        self._says("execution_cached", prompt_id, nodes=cached)

    @rule(prompt_id=ids, node=nodes)
    def executing(self, prompt_id: str, node: str) -> None:
        expected = self._says("executing", prompt_id, node=node, display_node=node)
        if expected is not None:
            expected.node, expected.step_node = node, None

    @rule(prompt_id=ids)
    def executing_null(self, prompt_id: str) -> None:
        expected = self.live.get(prompt_id)
        started = expected is not None and expected.started
        self._says("executing", prompt_id, node=None)
        self.window = None
        if expected is not None:
            assert expected.prompt.over
            expected.started = started  # an end alone shows no run

    @rule(prompt_id=ids, node=nodes, value=st.integers(0, 5))
    def progress(self, prompt_id: str, node: str, value: int) -> None:
        expected = self._says("progress", prompt_id, value=value, max=4, node=node)
        if expected is not None:
            expected.step_node = node

    @rule(prompt_id=ids, node=nodes, finished=st.booleans())
    def progress_state(self, prompt_id: str, node: str, finished: bool) -> None:
        about = {"value": 1, "max": 4, "state": "finished" if finished else "running"}
        delivery = self.router.receive_text(
            text_frame("progress_state", {"prompt_id": prompt_id, "nodes": {node: {**about, "prompt_id": prompt_id}}})
        )
        expected = self.live.get(prompt_id)
        self._check(delivery, expected, prompt_id)
        self.window = expected if expected is not None and expected.ended is None else None
        if self.window is not None and not self.window.started:
            self.window.started, self.window.missed = True, True

    @rule(prompt_id=ids, node=nodes, empty=st.booleans())
    def executed(self, prompt_id: str, node: str, empty: bool) -> None:
        self.clock += 1
        token = f"{prompt_id} {self.clock}"
        output = None if empty else {"text": [token]}
        expected = self._says("executed", prompt_id, node=node, display_node=node, output=output)
        if expected is not None and not empty:
            expected.executed[node] = token

    @rule(prompt_id=ids, script=st.lists(st.tuples(st.sampled_from(["executing", "progress", "picture"]), nodes)))
    def many_messages_of_one_prompt(self, prompt_id: str, script: list[tuple[str, str]]) -> None:
        self.execution_start(prompt_id)
        for kind, node in script:
            if kind == "executing":
                self.executing(prompt_id, node)
            elif kind == "progress":
                self.progress(prompt_id, node, 1)
            else:
                self.picture_without_metadata()

    @rule(prompt_id=ids)
    def blocked(self, prompt_id: str) -> None:
        self._says("execution_error", prompt_id, exception_type="ExecutionBlocked")

    @rule(prompt_id=ids, kind=st.sampled_from(["execution_success", "execution_error", "execution_interrupted"]))
    def verdict(self, prompt_id: str, kind: str) -> None:
        expected = self.live.get(prompt_id)
        joined_late = expected is not None and not expected.started
        self._says(kind, prompt_id, exception_type="RuntimeError")
        self.window = None
        if expected is None or expected.ended is not None:
            return
        expected.ended = {
            "execution_success": JobState.COMPLETED,
            "execution_error": JobState.FAILED,
            "execution_interrupted": JobState.CANCELLED,
        }[kind]
        expected.intact = not joined_late and not expected.missed
        expected.started = not joined_late  # a verdict alone shows no run
        expected.verdict = expected.prompt.verdict

    @rule(prompt_id=ids, kind=st.sampled_from(["execution_cached", "executed", "executing", "execution_error"]))
    def malformed(self, prompt_id: str, kind: str) -> None:
        bad = {"nodes": "abc", "node": {}, "output": 3, "exception_type": 3}
        addressed = prompt_id in self.live and self.live[prompt_id].ended is None
        assert self.router.receive_text(text_frame(kind, {**bad, "prompt_id": prompt_id})) is None
        self.window = None
        if addressed:
            self._loss()

    @rule(prompt_id=ids, node=nodes)
    def picture_with_metadata(self, prompt_id: str, node: str) -> None:
        image = self._image(prompt_id)
        delivery = self.router.receive_binary(metadata_frame({"prompt_id": prompt_id, "node_id": node}, image))
        expected = self.live.get(prompt_id)
        self._check(delivery, expected, prompt_id)
        self._picture_of(expected, node, image)

    @rule()
    def picture_without_metadata(self) -> None:
        owner = self.window
        image = self._image("" if owner is None else owner.prompt.prompt_id)
        delivery = self.router.receive_binary(struct.pack(">II", 1, 1) + image)
        if owner is None:
            assert delivery is None
        else:
            self._check(delivery, owner, owner.prompt.prompt_id)
            self._picture_of(owner, owner.step_node or owner.node, image)

    def _image(self, owner: str) -> bytes:
        self.clock += 1
        return JPEG + f"{owner} {self.clock}".encode()

    def _picture_of(self, expected: Expected | None, node: str | None, image: bytes) -> None:
        if expected is None or expected.ended is not None:
            return
        if not expected.started:
            expected.started, expected.missed = True, True
        if node in STREAMS:
            expected.streamed.setdefault(node or "", []).append(image)
        else:
            expected.preview = image

    @rule()
    def text(self) -> None:
        delivery = self.router.receive(encode(events.Text("1", "hello")))
        heard = self.window is not None and self.window.prompt.listeners
        assert delivery == ((self.window.prompt, events.Text("1", "hello")) if heard and self.window else None)

    @rule(event=st.sampled_from([events.Status(3), events.Executing("1", "1"), events.Unknown("custom", {"x": 1})]))
    def what_concerns_no_prompt(self, event: events.Event) -> None:
        assert self.router.receive(encode(event)) is None

    # --- What must hold --------------------------------------------------------------------------------------------

    @invariant()
    def every_prompt_knows_what_it_should(self) -> None:
        assert {prompt_id: expected.prompt for prompt_id, expected in self.live.items()} == self.router.live
        for expected in self.all:
            run = expected.prompt.run
            assert (run is not None) is expected.started
            if run is not None:
                assert run.executed == {node: (node, {"text": [token]}) for node, token in expected.executed.items()}
                assert {
                    node: [picture.image for picture in of] for node, of in run.streamed.items()
                } == expected.streamed
                assert (None if run.preview is None else run.preview.image) == expected.preview

    @invariant()
    def verdicts_stand(self) -> None:
        for expected in self.all:
            assert expected.prompt.verdict is expected.verdict
            assert (None if expected.verdict is None else expected.verdict.state) is expected.ended
            assert expected.prompt.intact is expected.intact

    @invariant()
    def progress_never_goes_back(self) -> None:
        for expected in self.all:
            progress = expected.prompt.progress()
            assert expected.progress <= progress <= 1.0
            assert (progress == 1.0) is (expected.ended is JobState.COMPLETED)
            expected.progress = progress

    @precondition(lambda self: len(self.live) > 0)
    @rule()
    def forget_all(self) -> None:
        for expected in list(self.live.values()):
            self.forget(expected.prompt.prompt_id)
        assert self.router.live == {}
        assert self.router.receive_binary(struct.pack(">II", 1, 1) + JPEG) is None


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(max_examples=200 * FUZZ, stateful_step_count=40)
