"""The fixtures that pytest finds by itself, under each way of running asynchronous tests."""

from __future__ import annotations

import pytest

import acomfy.simulator  # noqa: F401  # kept: what a run in this process imports is dropped after it

pytest_plugins = ["pytester"]

WORKFLOW = """
WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
}
"""

MAIN = (
    WORKFLOW
    + """
import pytest
{imports}

{mark}
async def test_a_prompt_runs(comfy_server, comfy_client, comfy_faults):
    result = await comfy_client.run(WORKFLOW)
    assert len(await result.images[0].read()) > 0
    assert comfy_server.prompts[0]["prompt"] == WORKFLOW
    assert comfy_faults is comfy_server.faults

{mark}
async def test_each_test_has_a_server_of_its_own(comfy_server):
    assert comfy_server.prompts == []

{mark}
async def test_half_an_hour_passes_at_once(comfy_server, comfy_client):
    comfy_server.on("SaveImage").takes(27 * 60)
    await comfy_client.run(WORKFLOW)
    assert comfy_server.clock.now() >= 27 * 60

{mark}
@pytest.mark.comfy_server(version="0.3.40", max_history=7)
async def test_a_marker_gives_the_server_its_arguments(comfy_server):
    assert comfy_server.version == "0.3.40"
    assert comfy_server.queue.max_history == 7
"""
)


def run(pytester: pytest.Pytester, text: str, *options: str, ini: str = "") -> pytest.RunResult:
    if "no:asyncio" not in options:
        ini += "asyncio_default_fixture_loop_scope = function\n"
    pytester.makeini(f"[pytest]\nfilterwarnings = error\n{ini}")
    pytester.makepyfile(text)
    return pytester.runpytest("-p", "no:cacheprovider", *options)


def source(mark: str, imports: str = "") -> str:
    return MAIN.replace("{mark}", mark).replace("{imports}", imports)


def test_it_works_under_pytest_asyncio_in_strict_mode(pytester: pytest.Pytester) -> None:
    run(pytester, source("@pytest.mark.asyncio"), ini="asyncio_mode = strict\n").assert_outcomes(passed=4)


def test_it_works_under_pytest_asyncio_in_auto_mode(pytester: pytest.Pytester) -> None:
    run(pytester, source(""), ini="asyncio_mode = auto\n").assert_outcomes(passed=4)


def test_a_process_of_its_own_finds_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("async def test_it(comfy_client): assert await comfy_client.features()")
    command = ("-p", "no:cacheprovider", "-o", "asyncio_mode=auto")
    pytester.runpytest_subprocess(*command, timeout=50).assert_outcomes(passed=1)


def test_it_works_in_a_loop_that_tests_share(pytester: pytest.Pytester) -> None:
    mark = "@pytest.mark.asyncio(loop_scope='module')"
    run(pytester, source(mark), ini="asyncio_mode = strict\n").assert_outcomes(passed=4)


def test_it_works_when_the_settings_share_the_loop(pytester: pytest.Pytester) -> None:
    ini = "asyncio_mode = auto\nasyncio_default_test_loop_scope = session\n"
    run(pytester, source(""), ini=ini).assert_outcomes(passed=4)


def test_it_works_under_anyio_with_and_without_pytest_asyncio(pytester: pytest.Pytester) -> None:
    fixture = "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    text = source("@pytest.mark.anyio", fixture)
    run(pytester, text).assert_outcomes(passed=4)
    run(pytester, text, "-p", "no:asyncio").assert_outcomes(passed=4)


def test_a_test_that_is_not_async_is_told_so(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_it(comfy_server): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*write the test as async def*"])


def test_a_missing_plugin_is_named(pytester: pytest.Pytester) -> None:
    result = run(pytester, "async def test_it(comfy_server): pass", "-p", "no:asyncio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs pytest-asyncio, or anyio's marker*"])


def test_a_test_that_cannot_have_a_server_spoils_no_other(pytester: pytest.Pytester) -> None:
    wrong = "def test_first(comfy_server): pass\ndef test_again(comfy_faults): pass\n"
    result = run(pytester, wrong + source("@pytest.mark.asyncio"))
    result.assert_outcomes(errors=2, passed=4)


def test_a_marker_takes_its_arguments_by_name(pytester: pytest.Pytester) -> None:
    text = "import pytest\n@pytest.mark.comfy_server('0.3.40')\nasync def test_it(comfy_server): pass"
    result = run(pytester, text, ini="asyncio_mode = auto\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*comfy_server(name=...), not '0.3.40' alone*"])
