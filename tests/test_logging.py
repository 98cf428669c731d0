"""What is logged: by whom, about which prompt, and nothing unasked."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import acomfy
from acomfy.simulator import SimulatedServer

from .graphs import saved
from .shell import client, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]


async def test_what_is_said_of_a_prompt_has_its_id_in_the_record(
    client: acomfy.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "acomfy"):
        result = await client.run(saved())
    said = [record for record in caplog.records if getattr(record, "prompt_id", None) == result.prompt_id]
    assert [record.getMessage().partition(" is ")[2] for record in said] == ["queued with number 0.0", "completed"]
    assert {record.name for record in said} == {"acomfy.job"}


async def test_a_cancel_and_a_prompt_that_is_submitted_anew_are_told(
    server: SimulatedServer, client: acomfy.Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.hold()
    with caplog.at_level(logging.DEBUG, "acomfy.job"):
        job = await client.submit(saved(), on_lost="resubmit")
        first = job.prompt_id
        server.delete_prompt(first)
        await server.wait_for(lambda: len(server.prompts) == 2)
        await job.cancel()
    told = [(getattr(record, "prompt_id", ""), record.getMessage()) for record in caplog.records]
    assert any(prompt_id == first and "is submitted anew" in text for prompt_id, text in told)
    assert any(prompt_id == job.prompt_id and "is to be cancelled" in text for prompt_id, text in told)


def test_an_application_that_does_not_ask_hears_nothing() -> None:
    program = """
import asyncio, acomfy

async def main():
    async with acomfy.Client("http://127.0.0.1:9", connect_timeout=0.2) as client:
        try:
            await client.run({"1": {"class_type": "X", "inputs": {}}})
        except acomfy.ServerUnreachable:
            pass

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
