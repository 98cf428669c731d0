"""Run a workflow once for every row of a CSV file, and go on where it stopped, whatever stopped it.

python -m acomfy.examples.batch rows.csv --out out [--workflow workflow_api.json] [--server http://127.0.0.1:8188]

The columns name inputs (``6.text,3.seed``), each row is one prompt. Without a rows.csv, one with 1,000 rows is made
for you to look at. Beside the pictures, ``out/`` gets a contact sheet for every hundred rows and ``journal.jsonl``:
what has begun, under which prompt_id, and what is done. Stop it with Ctrl-C, or kill it, and start it again: rows that
are done are done, prompts that went on without us are picked up, and nothing is run twice. A row that failed is tried
again at the next start; one that ComfyUI lost because it restarted, at once.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

import acomfy
from acomfy import examples
from acomfy.sheet import contact_sheet

LABEL = "acomfy_batch"  # in the prompt's extra_data, which the server keeps in its queue and history
SHEET_ROWS = 100


class Journal:
    """What became of each row, a line of JSON for each step; the last line may be torn, and is then not counted."""

    def __init__(self, path: Path, rows: list[dict[str, str]]) -> None:
        self.begun: set[int] = set()
        self.prompt_ids: dict[int, str] = {}
        self.files: dict[int, list[str]] = {}
        self.batch = uuid.uuid4().hex
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for step in map(json.loads, lines[:-1]):
            if step.get("rows", rows) != rows:
                raise SystemExit(f"{path} is about other rows; give these another --out")
            self._read(step)
        self._file = path.open("ab")
        self._file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        if len(lines) == 1:
            self._write(batch=self.batch, rows=rows)

    def _read(self, step: dict[str, Any]) -> None:
        match step:
            case {"batch": batch, "rows": _}:
                self.batch = batch
            case {"row": row, "failed": _}:
                self._forget(row)
            case {"row": row, "files": files}:
                self.files[row] = files
            case {"row": row, "prompt_id": prompt_id}:
                self.prompt_ids[row] = prompt_id
            case {"row": row}:
                self.begun.add(row)

    def _write(self, **step: Any) -> None:
        self._file.write(json.dumps(step).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def begin(self, row: int) -> None:
        self._write(row=row)

    def submitted(self, row: int, prompt_id: str) -> None:
        self.prompt_ids[row] = prompt_id
        self._write(row=row, prompt_id=prompt_id)

    def done(self, row: int, files: list[str]) -> None:
        self.files[row] = files
        self._write(row=row, files=files)

    def failed(self, row: int, why: str) -> None:
        self._forget(row)
        self._write(row=row, failed=why)

    def _forget(self, row: int) -> None:
        self.begun.discard(row)
        self.prompt_ids.pop(row, None)

    @property
    def torn(self) -> list[int]:
        """The rows that were on their way to the server when we stopped: nobody knows whether they got there."""
        return [row for row in self.begun if row not in self.prompt_ids and row not in self.files]


class Batch:
    """The rows, the server, and where the files go."""

    def __init__(
        self, client: acomfy.Client, workflow: acomfy.Workflow, rows: list[dict[str, str]], journal: Journal, out: Path
    ) -> None:
        self.client, self.workflow, self.rows, self.journal, self.out = client, workflow, rows, journal, out
        self.failed: dict[int, str] = {}

    async def run(self, limit: int) -> Exception | None:
        """Run what is not done yet, so many prompts at a time; give what stopped it if the server went away."""
        stopped: Exception | None = None
        try:
            await self.run_all(limit)
        except* (acomfy.ServerError, acomfy.JobLost) as errors:
            stopped = errors.exceptions[0]
        return stopped

    async def run_all(self, limit: int) -> None:
        await self.find_torn()
        todo = iter([row for row in range(len(self.rows)) if row not in self.journal.files])
        async with asyncio.TaskGroup() as tasks:
            for _ in range(limit):
                tasks.create_task(self.work(todo))
        for first in range(0, len(self.rows), SHEET_ROWS):
            await self.draw_sheet(first)

    async def find_torn(self) -> None:
        """Look on the server for prompts whose submission we did not see through."""
        if not self.journal.torn:
            return
        await asyncio.sleep(1.0)  # what was on the wire when we were killed has arrived by then
        queue, history = await self.client.api.get_queue(), await self.client.api.get_histories(max_items=10_000)
        entries = [*(entry["prompt"] for entry in history.values()), *queue["queue_running"], *queue["queue_pending"]]
        found = {entry[3][LABEL]: entry[1] for entry in entries if LABEL in entry[3]}
        for row in self.journal.torn:
            if (prompt_id := found.get(self.label(row))) is not None:
                self.journal.submitted(row, prompt_id)

    async def work(self, todo: Iterator[int]) -> None:
        for row in todo:
            try:
                await self.do(row)
            except (acomfy.WorkflowError, acomfy.PromptRejected, acomfy.JobError) as exc:
                if unknown(exc):
                    raise
                self.failed[row] = str(exc)
                self.journal.failed(row, str(exc))
                print(f"row {row} failed: {exc}")
            else:
                print(f"row {row} done, {len(self.journal.files)} of {len(self.rows)}")
                await self.draw_sheet(row - row % SHEET_ROWS)

    async def do(self, row: int) -> None:
        """Have one row's prompt run, once, and save its files."""
        result = None
        if row in self.journal.prompt_ids:
            try:
                result = await (await self.client.attach(self.journal.prompt_ids[row]))
            except (acomfy.JobLost, acomfy.JobInterrupted, acomfy.OutputMissing) as exc:
                if unknown(exc):
                    raise
        while result is None:  # it is gone for good, was taken off when we were stopped, or was never begun
            try:
                result = await (await self.submit(row))
            except acomfy.JobLost as exc:
                if exc.reason != "restarted":
                    raise
        files = []
        for number, output in enumerate(result.images):
            suffix = Path(output.filename or "x.png").suffix
            path = await output.save(self.out / f"row-{row:05}-{number}{suffix}", overwrite=True)
            files.append(path.name)
        self.journal.done(row, files)

    async def submit(self, row: int) -> acomfy.Job:
        workflow = self.workflow.replace({name: self.value(name, text) for name, text in self.rows[row].items()})
        self.journal.begin(row)
        job = await self.client.submit(workflow, extra_data={LABEL: self.label(row)})
        self.journal.submitted(row, job.prompt_id)
        return job

    def value(self, name: str, text: str) -> Any:
        """Read a cell as what the workflow holds there: a number stays a number."""
        node, _, input_name = name.rpartition(".")
        now = self.workflow.find(node).inputs.get(input_name)
        try:
            return text if isinstance(now, str) else json.loads(text)
        except ValueError:
            raise acomfy.WorkflowError(f"{text!r} cannot take the place of {now!r}, in column {name}") from None

    def label(self, row: int) -> str:
        return f"{self.journal.batch}/{row}"

    async def draw_sheet(self, first: int) -> None:
        """Draw the contact sheet of a hundred rows when all of them are done and it is not there yet."""
        rows = range(first, min(first + SHEET_ROWS, len(self.rows)))
        path = self.out / f"sheet-{first:05}.png"
        if not path.exists() and all(row in self.journal.files for row in rows):
            names = [(row, name) for row in rows for name in self.journal.files[row]]
            if names:
                await asyncio.to_thread(draw, path, self.out, names)
                print(f"drew {path}")


def unknown(exc: Exception) -> bool:
    """Tell whether a prompt may yet have run: the server went away, and did not come back while we waited."""
    return isinstance(exc, acomfy.JobLost) and exc.reason == "unreachable"


def draw(path: Path, out: Path, names: Iterable[tuple[int, str]]) -> None:
    def pictures() -> Iterator[Image.Image]:
        for _, name in names:
            with Image.open(out / name) as picture:
                yield picture

    sheet = contact_sheet(pictures(), [f"row {row}" for row, _ in names], cell=128)
    part = path.with_suffix(".part")  # a sheet that is there is whole
    sheet.save(part, "PNG")
    part.replace(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("6.text", "3.seed"), *((f"a fox, study {n}", n) for n in range(1000))])
        print(f"made {path} with 1,000 rows")
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin it with a mark
        rows = list(csv.DictReader(file, restkey="", restval=""))
    if any("" in row for row in rows):
        raise SystemExit(f"{path} has a row with more cells than its first line has names")
    return rows


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--workflow", default=None)
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--limit", type=int, default=16, help="prompts at a time")
    args = parser.parse_args()
    workflow = acomfy.Workflow.load(args.workflow) if args.workflow else examples.load("text_to_image")
    rows = read_rows(args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    with closing(Journal(args.out / "journal.jsonl", rows)) as journal:
        async with acomfy.Client(args.server) as client:
            batch = Batch(client, workflow, rows, journal, args.out)
            if (stopped := await batch.run(args.limit)) is not None:
                raise SystemExit(f"{stopped}\nStart it again to go on.")
    print(f"{len(journal.files)} of {len(rows)} rows are done, {len(batch.failed)} failed")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        raise SystemExit("Stopped; start it again to go on.") from None
