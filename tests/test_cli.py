"""The command line: what is typed, what is shown, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from acomfy import examples
from acomfy.cli import main
from acomfy.cli.app import app
from acomfy.cli.arguments import (
    UsageError,
    Variants,
    load_workflow,
    read_seed,
    read_value,
    seed_inputs,
    server_url,
    with_settings,
)
from acomfy.cli.reports import (
    Finished,
    Picture,
    Stopped,
    Summary,
    captions,
    closing_words,
    describe,
    stopping_words,
)
from acomfy.errors import WorkflowError, WorkflowFormatError
from acomfy.simulator import SimulatedServer
from acomfy.workflow import Workflow

T = TypeVar("T")


@pytest.fixture
def guide() -> Workflow:
    return examples.load("text_to_image")


# --- What was typed --------------------------------------------------------------------------------------------------


def test_a_workflow_is_a_path_or_the_name_of_an_example(tmp_path: Path, guide: Workflow) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(guide.to_dict()))
    assert load_workflow(str(path)) == load_workflow("text_to_image") == guide


def test_a_file_comes_before_an_example_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text_to_image").write_text('{"1": {"class_type": "X", "inputs": {}}}')
    assert list(load_workflow("text_to_image")) == ["1"]


def test_a_workflow_that_is_not_there_names_the_examples() -> None:
    with pytest.raises(UsageError, match=r"no file 'text_to_imag'.*text_to_image, text_to_image_stream"):
        load_workflow("text_to_imag")


def test_a_directory_is_no_workflow(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load_workflow(str(tmp_path))


def test_the_editors_own_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ui.json"
    path.write_text('{"nodes": [], "links": []}')
    with pytest.raises(WorkflowFormatError, match=r"Export \(API\)"):
        load_workflow(str(path))


def test_settings_name_nodes_by_id_title_or_class(guide: Workflow) -> None:
    changed = with_settings(guide, ["6.text=a fox = a = b", "Negative.text=", "KSampler.steps=30", "3.cfg=2.5"])
    assert changed["6"]["inputs"]["text"] == "a fox = a = b"
    assert changed["7"]["inputs"]["text"] == ""
    assert (changed["3"]["inputs"]["steps"], changed["3"]["inputs"]["cfg"]) == (30, 2.5)
    assert guide["3"]["inputs"]["steps"] == 20


def test_the_last_of_several_settings_wins(guide: Workflow) -> None:
    assert with_settings(guide, ["3.steps=5", "3.steps=6"])["3"]["inputs"]["steps"] == 6


@pytest.mark.parametrize(
    ("text", "current", "value"),
    [
        ("5", 1, 5),
        ("5", "one", "5"),
        ("true", "no", "true"),
        ("true", False, True),
        ('["4", 1]', ["3", 0], ["4", 1]),
        ("a fox", ["3", 0], "a fox"),
        ("euler", 1, "euler"),
        ("18446744073709551615", 1, 2**64 - 1),
        ("", 1, ""),
    ],
)
def test_values_are_json_unless_the_input_holds_text(text: str, current: object, value: object) -> None:
    assert read_value(text, current) == value


@pytest.mark.parametrize("setting", ["6.text", "text=a", "=a", "6=a.b"])
def test_a_setting_of_another_form_says_the_form(guide: Workflow, setting: str) -> None:
    with pytest.raises(UsageError, match=r"NODE\.INPUT=VALUE"):
        with_settings(guide, [setting])


def test_a_setting_of_an_unknown_node_or_input_names_what_exists(guide: Workflow) -> None:
    with pytest.raises(WorkflowError, match=r"'Positiv'.*node 6 \(CLIPTextEncode, 'Positive'\)"):
        with_settings(guide, ["Positiv.text=x"])
    with pytest.raises(WorkflowError, match="no input 'txt'.*'text'"):
        with_settings(guide, ["6.txt=x"])
    with pytest.raises(WorkflowError, match="names 2 nodes"):
        with_settings(guide, ["CLIPTextEncode.text=x"])


def test_seeds_are_random_or_numbers() -> None:
    assert (read_seed(None), read_seed("random"), read_seed("0")) == (None, "random", 0)
    assert read_seed("18446744073709551615") == 2**64 - 1
    for text in ("-1", "1.5", "18446744073709551616", "any", "", "٣"):
        with pytest.raises(UsageError, match="neither 'random' nor a whole number"):
            read_seed(text)


def test_a_numbered_seed_counts_up(guide: Workflow) -> None:
    variants = Variants(guide, 7, 3)
    assert [workflow["3"]["inputs"]["seed"] for workflow in variants] == variants.seeds == [7, 8, 9]
    assert not variants.all_same


def test_random_seeds_differ_and_reach_the_prompts(guide: Workflow) -> None:
    variants = Variants(guide, "random", 50)
    assert [workflow["3"]["inputs"]["seed"] for workflow in variants] == variants.seeds
    assert len(set(variants.seeds)) == 50
    assert all(seed is not None and 0 <= seed < 2**53 for seed in variants.seeds)


def test_without_a_seed_the_workflows_own_is_told(guide: Workflow) -> None:
    variants = Variants(guide, None, 2)
    assert list(variants) == [guide, guide]
    assert variants.seeds == [8566257, 8566257]
    assert variants.all_same


def test_seed_inputs_are_numbers_named_seed_or_noise_seed() -> None:
    inputs = {"seed": 1, "noise_seed": 2.0, "seed_mode": 3, "other": 4, "mode.seed": 5}
    links = {"seed": ["1", 0], "noise_seed": True}
    workflow = Workflow({"1": {"class_type": "A", "inputs": inputs}, "2": {"class_type": "B", "inputs": links}})
    assert seed_inputs(workflow) == [("1", "seed"), ("1", "noise_seed"), ("1", "mode.seed")]
    assert next(iter(Variants(workflow, 9, 1)))["1"]["inputs"] == {**inputs, "seed": 9, "noise_seed": 9, "mode.seed": 9}


def test_a_seed_needs_an_input_and_room() -> None:
    with pytest.raises(UsageError, match="no node of the workflow"):
        Variants(Workflow({"1": {"class_type": "A", "inputs": {}}}), "random", 1)
    with pytest.raises(UsageError, match="leaves no room for 2 seeds"):
        Variants(examples.load("text_to_image"), 2**64 - 1, 2)


def test_the_server_is_the_option_or_the_environment_or_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACOMFY_URL", raising=False)
    assert server_url(None) == "http://127.0.0.1:8188"
    monkeypatch.setenv("ACOMFY_URL", "http://gpu:1")
    assert (server_url(None), server_url("gpu:2")) == ("http://gpu:1", "gpu:2")
    with pytest.raises(UsageError, match="--server"):
        server_url("ftp://gpu")


# --- What is shown ---------------------------------------------------------------------------------------------------


def finished(index: int = 0, seed: int | None = 5, **more: Any) -> Finished:
    return Finished(index, f"id-{index}", seed, **({"state": "completed"} | more))


def test_a_prompt_is_told_in_a_line() -> None:
    assert describe(finished(files=(Path("a.png"), Path("b.png"))), 3, 8) == "[3/8] seed 5: a.png, b.png"
    assert describe(finished(1, None), 1, 2) == "[1/2] prompt 2: without files"
    assert describe(finished(state="failed", error="no"), 1, 1) == "[1/1] seed 5: failed: no"
    assert describe(finished(error="cannot save"), 1, 1) == "[1/1] seed 5: failed: cannot save"


def test_a_reason_is_told_once() -> None:
    summary = Summary(3)
    first, second = finished(0, state="failed", error="id-0 broke"), finished(1, state="failed", error="id-1 broke")
    for prompt in (first, second):
        summary.add(prompt)
        repeats = summary.repeats(prompt)
    assert repeats
    assert describe(second, 2, 3, repeats=True) == "[2/3] seed 5: failed: same reason as before"
    summary.add(third := finished(2, state="failed", error="other"))
    assert not summary.repeats(third) and not summary.repeats(finished(3))


def test_a_run_is_summed_up_in_a_line() -> None:
    summary = Summary(2, [finished(files=(Path("a.png"),)), finished(state="failed", error="no")], 1.25)
    assert closing_words(summary) == "1 prompt of 2 done in 1.2 s, 1 failed, 1 file saved"
    assert closing_words(Summary(1, sheet=Path("s.png"))).endswith("contact sheet s.png")
    assert closing_words(Summary(1, error="no server")) == ""


def test_an_interrupted_run_says_what_became_of_its_prompts() -> None:
    assert stopping_words(Stopped(0, 0, 0)) == "stopped; no prompt was under way"
    assert stopping_words(Stopped(1, 0, 0)) == "cancelled 1 prompt of this run"
    assert stopping_words(Stopped(2, 1, 3)) == (
        "cancelled 2 prompts of this run, 1 had ended before that, "
        "the server did not confirm it for 3, which may still run"
    )


def test_captions_come_in_the_order_of_prompts() -> None:
    one, two, three = Path("1.png"), Path("2.png"), Path("3.png")
    run = [
        finished(1, 6, pictures=(Picture(two, "Save 1"), Picture(three, "Save 2"))),
        finished(0, 5, pictures=(Picture(one),)),
    ]
    assert captions(run) == [(one, "seed 5"), (two, "seed 6\nSave 1"), (three, "seed 6\nSave 2")]


# --- How it ends -----------------------------------------------------------------------------------------------------


class Server:
    """A simulated server in a thread of its own, so that the command line has this one, and its signals."""

    def __init__(self, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.simulated = SimulatedServer(**options)
        self.do(self.simulated.start)

    def do(self, action: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run a coroutine of the server."""
        return asyncio.run_coroutine_threadsafe(action(*args), self._loop).result(timeout=20)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self.do(self.simulated.wait_for, condition)

    @property
    def url(self) -> str:
        return self.simulated.url

    def close(self) -> None:
        self.do(self.simulated.aclose)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def slow_server() -> Iterator[Server]:
    server = Server(step_time=0.05)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACOMFY_URL", raising=False)


def acomfy(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


SMALL = ("--set", "5.width=128", "--set", "5.height=128", "--set", "3.steps=2")


@pytest.mark.parametrize("workflow", examples.WORKFLOWS)
def test_a_simulated_run_gives_different_pictures_and_a_sheet(workflow: str) -> None:
    result = acomfy(
        "run",
        "--simulate",
        "--count",
        "8",
        "--out",
        "d",
        "--sheet",
        "d/sheet.png",
        "--seed",
        "random",
        *SMALL,
        workflow,
    )
    assert result.exit_code == 0, result.output
    saved = {path for path in Path("d").iterdir() if path.name != "sheet.png"}
    assert len({path.read_bytes() for path in saved}) == len(saved) == 8
    with Image.open("d/sheet.png") as sheet:
        assert sheet.width > 4 * 128 and sheet.height > 2 * 128
    assert {line.split(": ")[1] for line in result.stdout.splitlines()[:-1]} == {str(path) for path in saved}
    assert "8 prompts of 8 done" in result.stdout and "contact sheet" in result.stdout
    assert "\x1b" not in result.output


def test_json_has_a_line_for_each_prompt_and_a_summary(server: Server) -> None:
    result = acomfy("run", "--server", server.url, "--count", "3", "--seed", "7", "--json", *SMALL, "text_to_image")
    assert result.exit_code == 0, result.output
    *prompts, summary = lines(result)
    by_index = sorted(prompts, key=lambda prompt: prompt["index"])
    assert [prompt["seed"] for prompt in by_index] == [7, 8, 9]
    assert {prompt["prompt_id"] for prompt in prompts} == {body["prompt_id"] for body in server.simulated.prompts}
    for prompt in prompts:
        assert (prompt["type"], prompt["state"], prompt["error"]) == ("prompt", "completed", None)
        assert [Path(name).is_file() for name in prompt["files"]] == [True]
    assert summary.pop("seconds") > 0
    counts = {"total": 3, "succeeded": 3, "failed": 0, "cancelled": 0, "unconfirmed": 0}
    assert summary == {"type": "summary", **counts, "sheet": None, "error": None}


def test_the_server_is_taken_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACOMFY_URL", server.url)
    assert acomfy("run", *SMALL, "text_to_image").exit_code == 0
    assert len(server.simulated.prompts) == 1


def test_settings_reach_the_server(server: Server) -> None:
    result = acomfy("run", "--server", server.url, *SMALL, "--set", "Positive.text=a fox", "text_to_image")
    assert result.exit_code == 0, result.output
    assert server.simulated.prompts[0]["prompt"]["6"]["inputs"]["text"] == "a fox"


def test_no_more_prompts_than_the_limit_are_queued_at_once(server: Server) -> None:
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, len(server.simulated.queue))
        return len(server.simulated.prompts) == 6

    watching = threading.Thread(target=server.wait_for, args=(look,))
    watching.start()
    result = acomfy(
        "run", "--server", server.url, "--count", "6", "--limit", "2", "--seed", "1", *SMALL, "text_to_image"
    )
    watching.join()
    assert result.exit_code == 0, result.output
    assert most <= 2


def test_the_same_prompt_again_is_worth_a_note(server: Server) -> None:
    result = acomfy("run", "--server", server.url, "--count", "2", *SMALL, "text_to_image")
    assert result.exit_code == 0
    assert "--seed random makes them differ" in result.stderr


def test_batches_are_told_apart_on_the_sheet(server: Server) -> None:
    result = acomfy(
        "run", "--server", server.url, *SMALL, "--set", "5.batch_size=3", "--sheet", "s.png", "text_to_image"
    )
    assert result.exit_code == 0, result.output
    assert "3 files saved" in result.stdout
    with Image.open("s.png") as sheet:
        assert sheet.width > 3 * 128


def test_a_failing_prompt_is_exit_code_1_and_the_others_are_saved(server: Server) -> None:
    @server.simulated.node("Picky", required={"seed": ("INT", {"max": 2**64 - 1})}, output_node=True)
    def picky(context: Any, seed: int) -> None:
        if seed == 2:
            raise ValueError("two is too much")

    Path("w.json").write_text('{"1": {"class_type": "Picky", "inputs": {"seed": 0}}}')
    result = acomfy("run", "--server", server.url, "--count", "3", "--seed", "1", "w.json")
    assert result.exit_code == 1
    assert "seed 2: failed: node 1 (Picky) of prompt" in result.stderr and "two is too much" in result.stderr
    assert "2 prompts of 3 done" in result.stdout and "1 failed" in result.stdout
    assert "Traceback" not in result.output


def test_a_refused_prompt_says_what_the_server_allows(server: Server) -> None:
    result = acomfy("run", "--server", server.url, "--set", "4.ckpt_name=sdxl.safetensors", "text_to_image", "--json")
    assert result.exit_code == 1
    prompt, summary = lines(result)
    assert prompt["state"] == "failed" and "v1-5-pruned-emaonly.safetensors" in prompt["error"]
    assert summary["failed"] == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nothing.json",), "no file 'nothing.json'"),
        (("text_to_image", "--set", "6.txt=a"), "no input 'txt'"),
        (("text_to_image", "--set", "6"), "NODE.INPUT=VALUE"),
        (("text_to_image", "--seed", "some"), "neither 'random'"),
        (("text_to_image", "--count", "0"), "--count"),
        (("text_to_image", "--simulate", "--server", "http://a"), "exclude each other"),
        (("text_to_image", "--server", "ftp://a"), "http://127.0.0.1:8188"),
        (("text_to_image", "--sheet", "sheet.txt"), ".png"),
        (("text_to_image", "--out", "file/below"), "cannot make the directory"),
        ((), "WORKFLOW"),
    ],
)
def test_what_is_wrong_before_a_server_is_asked_is_exit_code_2(args: tuple[str, ...], said: str) -> None:
    Path("file").write_text("")
    result = acomfy("run", *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_an_unreachable_server_is_exit_code_3() -> None:
    result = acomfy("run", "--server", "http://127.0.0.1:9", "text_to_image", "--json")
    assert result.exit_code == 3
    assert "no answer from http://127.0.0.1:9" in result.stderr
    (summary,) = lines(result)
    assert summary["succeeded"] == 0 and "no answer" in summary["error"]


def test_help_tells_the_exit_codes() -> None:
    result = acomfy("run", "--help")
    words = " ".join(result.stdout.replace("│", " ").split())
    assert "Exit codes: 0 all prompts succeeded" in words and "130 interrupted" in words


def test_without_its_packages_the_command_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("acomfy.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 2
    assert 'pip install "acomfy[cli]"' in capsys.readouterr().err


def test_importing_acomfy_imports_neither_the_command_line_nor_pillow() -> None:
    code = "import acomfy, sys; print([name for name in ('PIL', 'typer', 'rich', 'acomfy.cli') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said.strip() == "[]"


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def started(*args: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "acomfy", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def post_foreign_prompt(url: str) -> str:
    """Queue a prompt of somebody else; give its id."""
    workflow = examples.load("text_to_image").replace({"3.seed": 999})
    body = json.dumps({"prompt": workflow.to_dict(), "client_id": "somebody else"}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/prompt", data=body), timeout=10) as response:
        prompt_id: str = json.load(response)["prompt_id"]
        return prompt_id


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_cancels_exactly_its_own_prompts(slow_server: Server, number: int, code: int) -> None:
    simulated = slow_server.simulated
    process = started("run", "--server", slow_server.url, "--count", "4", "--seed", "1", "--json", "text_to_image")
    slow_server.wait_for(lambda: len(simulated.queue) == 4)
    foreign = post_foreign_prompt(slow_server.url)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "cancelled 4 prompts of this run" in err and "Traceback" not in err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["cancelled"], summary["unconfirmed"]) == (4, 0)
    slow_server.do(simulated.wait_idle)
    states = {prompt_id: entry.state for prompt_id, entry in simulated.ledger.items()}
    assert states.pop(foreign) == "completed"
    assert len(states) == 4 and set(states.values()) <= {"cancelled", "deleted"}


def test_a_second_ctrl_c_leaves_at_once(server: Server) -> None:
    @server.simulated.node("Deaf", required={"seed": ("INT", {})}, output_node=True)
    async def deaf(context: Any, seed: int) -> None:
        await asyncio.Event().wait()  # an interrupt is noticed between nodes only

    Path("w.json").write_text('{"1": {"class_type": "Deaf", "inputs": {"seed": 0}}}')
    process = started("run", "--server", server.url, "w.json")
    server.wait_for(lambda: bool(server.simulated.queue.running))
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "Ctrl-C again leaves at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")


def test_serve_serves_until_ctrl_c() -> None:
    process = started("serve", "--port", "0", "--step-time", "0")
    assert process.stdout is not None
    first, hint = process.stdout.readline(), process.stdout.readline()
    url = first.split(" on ")[1].split()[0]
    assert hint == f"try it: acomfy run --server {url} text_to_image\n"
    post_foreign_prompt(url)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


def test_serving_on_a_taken_port_is_an_error_in_words(server: Server) -> None:
    result = acomfy("serve", "--port", str(server.simulated.port))
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1 port {server.simulated.port}" in result.stderr


def test_serving_an_unknown_version_is_an_error_in_words() -> None:
    assert acomfy("serve", "--port", "0", "--version", "newest").exit_code == 2
