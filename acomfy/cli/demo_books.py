"""What the demonstration proves: outcomes, as their submitter got them, beside what the simulators noted themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..simulator import Entry, Ledger
from .ends import counted


@dataclass(frozen=True, slots=True)
class End:
    """The outcome of a job.

    Attributes:
        prompt_id: Under which it ran last.
        attempt: How often it was begun.
        worker: That which saw to its end.
        error: Why it did not succeed; None when it did.
        sha256: Of the picture that was read; "" without one.
        at: When it came, in seconds after the first submit.
    """

    job_id: str
    prompt_id: str
    attempt: int
    worker: str
    error: str | None
    sha256: str
    at: float


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker that was killed.

    Attributes:
        jobs: What it had then, by job_id.
        at: When, in seconds after the first submit.
    """

    name: str
    pid: int
    worker: str
    jobs: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence of the account.

    Attributes:
        holds: Whether it is as it should be; None when it only tells.
    """

    text: str
    holds: bool | None = None


@dataclass(slots=True)
class Books:
    """All that is known of a demonstration.

    Attributes:
        models: The model of each job, by job_id, in the order in which they were submitted.
        ends: Their outcomes.
        kill: The worker that was killed; None when it did not come to that.
        ledgers: What the simulators noted, by their addresses.
        left: What was in the queue at the end.
        names: What workers are called here, by their ids.
        seconds: From the first submit to the last outcome.
    """

    models: dict[str, str] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    kill: Kill | None = None
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)
    left: int = 0
    names: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def succeeded(self) -> list[End]:
        return [end for end in self.ends if end.error is None]

    @property
    def entries(self) -> list[Entry]:
        """What became of each prompt on each simulator."""
        return [entry for ledger in self.ledgers.values() for entry in ledger.values()]

    @property
    def finished(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.state == "completed"]

    @property
    def executions(self) -> int:
        """How often any prompt was started on any simulator."""
        return sum(entry.executions for entry in self.entries)

    @property
    def pictures(self) -> int:
        """How many pictures are, byte by byte, those that their simulators made for those very prompts."""
        made = {entry.prompt_id: entry.sha256s for entry in self.finished}
        return sum(made.get(end.prompt_id) == [end.sha256] for end in self.succeeded)

    @property
    def loads(self) -> int:
        """How often simulators changed from one model to another, the first ones included."""
        models = {end.prompt_id: self.models.get(end.job_id) for end in self.ends}
        count = 0
        for ledger in self.ledgers.values():
            order = [models[prompt_id] for prompt_id in ledger if prompt_id in models]
            count += sum(model != before for before, model in zip([None, *order], order, strict=False))
        return count

    @property
    def taken_over(self) -> list[End]:
        """What another worker brought to its end, of that which the killed one had."""
        if self.kill is None:
            return []
        return [end for end in self.ends if end.job_id in self.kill.jobs and end.worker != self.kill.worker]

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, and nothing finished twice."""
        return all(finding.holds is not False for finding in self.findings())

    def findings(self) -> list[Finding]:
        """Compare all of it."""
        return [
            self._outcomes(),
            self._executions(),
            self._compared(),
            self._killed(),
            Finding(
                f"models were loaded {counted(self.loads, 'time')} for {counted(len(self.models), 'prompt')} that ask "
                f"for {counted(len(set(self.models.values())), 'model')} in turn"
            ),
        ]

    def _outcomes(self) -> Finding:
        submitted, outcomes = len(self.models), Counter(end.job_id for end in self.ends)
        text = f"{counted(submitted, 'prompt')} submitted, {counted(len(self.ends), 'outcome')}: "
        text += f"{len(self.succeeded)} succeeded"
        errors = [end.error for end in self.ends if end.error is not None]
        if errors:
            text += f", {len(errors)} did not, the first: {errors[0]}"
        if self.left:
            text += f", {self.left} still in the queue"
        return Finding(text, outcomes == Counter(list(self.models)) and not errors and not self.left)

    def _executions(self) -> Finding:
        """Each outcome is the end of one execution, and each execution has its outcome."""
        ended = Counter(entry.prompt_id for entry in self.finished)
        outcomes = Counter(end.prompt_id for end in self.succeeded)
        text = f"the {counted(len(self.ledgers), 'simulator')} started {counted(self.executions, 'prompt')} and "
        text += f"finished {ended.total()}: "
        strange = ended - outcomes
        missing = outcomes - ended
        if not strange and not missing and self.executions == ended.total():
            return Finding(text + "each of them once, and each is somebody's outcome", True)
        told = [
            (strange.total(), "finished once more than there are outcomes"),
            (missing.total(), "of which no simulator knows the end"),
            (self.executions - ended.total(), "started and not finished"),
        ]
        return Finding(text + ", ".join(f"{count} {what}" for count, what in told if count), False)

    def _compared(self) -> Finding:
        same, read = self.pictures, sum(bool(end.sha256) for end in self.succeeded)
        text = f"{counted(read, 'picture')} read from the broker's store, {same} with the bytes (SHA-256) that a "
        return Finding(text + "simulator noted for that prompt", same == read == len(self.succeeded))

    def _killed(self) -> Finding:
        kill = self.kill
        if kill is None:
            return Finding("no worker was killed: all prompts ended before", False)
        text = f"{kill.name} (pid {kill.pid}) was killed while it had {counted(len(kill.jobs), 'prompt')}"
        for end in self.taken_over:
            did = "followed it to its end" if end.attempt == 1 else f"began it anew (attempt {end.attempt})"
            text += f"; {self.names.get(end.worker, end.worker)} {did}, {end.at - kill.at:.1f} s later"
        ended = {end.job_id for end in self.succeeded}
        return Finding(text, ended.issuperset(kill.jobs))
