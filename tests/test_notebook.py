"""What a notebook shows, and the example of one, executed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import acomfy
from acomfy import examples, markup, notebook
from acomfy.simulator import SimulatedServer

from .graphs import sampled, saved, streamed
from .shell import client, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]


async def test_a_result_shows_what_it_has_here(client: acomfy.Client) -> None:
    html = (await client.run(streamed()))._repr_html_()
    assert 'src="data:image/png;base64,' in html and "node 2 (SaveImageWebsocket)" in html
    html = (await client.run(saved()))._repr_html_()
    assert "<img" not in html and "test_00001_.png" in html


async def test_texts_are_escaped_and_shortened(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("SaveImage").shows(text=["<script>" + "x" * 5000])
    html = (await client.run(saved()))._repr_html_()
    assert "&lt;script&gt;x" in html and "<script>" not in html and len(html) < 4000


async def test_a_result_of_nothing_says_so(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("EmptyImage").blocks()
    assert "nothing was made" in (await client.run(saved()))._repr_html_()


def test_a_workflow_is_a_table_of_its_nodes() -> None:
    html = acomfy.Workflow(sampled(text="a <b>fox</b>"))._repr_html_()
    assert "<td" in html and "KSampler" in html and "Positive" in html and "model=→4" in html
    assert "<b>" not in html


def test_a_file_too_large_for_a_page_is_only_named() -> None:
    large = markup.Shown("node 9", "x.png", "image/png", b"x" * (9 << 20))
    assert len(markup.gallery([large])) < 1000


class Displayed:
    """Stands for IPython.display."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.display_id: Any = None

    def HTML(self, html: str) -> str:
        return html

    def display(self, html: str, display_id: bool = False) -> Any:
        self.shown.append(html)
        return self

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> Displayed:
    displayed = Displayed()
    monkeypatch.setattr(notebook, "import_module", lambda name: displayed)
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    return displayed


async def test_show_reads_pictures_and_films_and_names_the_rest(
    server: SimulatedServer, client: acomfy.Client, displayed: Displayed
) -> None:
    await notebook.show(await client.run(saved()))
    assert 'src="data:image/webp;base64,' in displayed.shown[-1]
    server.on("SaveImage").once().saves(b"an mp4", "clip.mp4", "gifs")
    await notebook.show(await client.run(saved(1)))
    assert '<video src="data:video/mp4;base64,' in displayed.shown[-1]
    server.on("SaveImage").once().saves(b"a model", "fox.glb", "3d")
    await notebook.show((await client.run(saved(2))).files[0])
    assert "fox.glb" in displayed.shown[-1] and "<video" not in displayed.shown[-1]


async def test_a_file_that_is_gone_is_told_where_it_would_be(
    server: SimulatedServer, client: acomfy.Client, displayed: Displayed
) -> None:
    result = await client.run(saved())
    (server.folders.paths["output"] / result.images[0].filename).unlink()
    await notebook.show(result)
    assert "<img" not in displayed.shown[-1] and "<pre" in displayed.shown[-1]


async def test_bars_follow_the_prompts_to_the_end(client: acomfy.Client, displayed: Displayed) -> None:
    async with notebook.progress(client, total=3):
        await asyncio.gather(*(client.run(sampled(seed)) for seed in range(3)))
    assert "3 of 3" in displayed.shown[-1] and 'value="1.000"' in displayed.shown[-1]


def test_the_example_runs_from_top_to_bottom(tmp_path: Path) -> None:
    source = resources.files(examples).joinpath("notebook.ipynb")
    (tmp_path / "notebook.ipynb").write_text(source.read_text("utf-8"), "utf-8")
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    program = (
        "import nbformat, nbclient; book = nbformat.read('notebook.ipynb', 4); "
        "nbclient.NotebookClient(book, timeout=40).execute(); nbformat.write(book, 'executed.ipynb')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    shown = [
        "".join(output["data"].get("text/html", ""))
        for cell in json.loads((tmp_path / "executed.ipynb").read_text("utf-8"))["cells"]
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    assert any("KSampler" in html for html in shown)
    assert any("8 of 8" in html for html in shown)
    assert any(html.count("<img") == 8 for html in shown)
    assert any("save_image_websocket_node" in html and "<img" in html for html in shown)
