"""What things are called on the broker: streams, buckets, subjects, and the lanes of the queue.

A *lane* is what waits for one group of workers, of one priority, with one model. It is a subject of the queue's stream
and the one durable consumer of that subject; so a worker can ask first for what its server has warm. As JetStream's
work queues do not let two consumers share a message, every message is in exactly one lane.

All of it begins with the fleet's name, so that several fleets can share a broker::

    {name}.jobs.{group}.{priority}.{model}.{job_id}   the queue: stream {NAME}_JOBS
    {name}.dead.{group}.{job_id}                      what was given up: stream {NAME}_DEAD
    {name}.wake.{group}.{priority}.{model}            plain: something new waits in a lane
    {name}.cancel.{job_id}                            plain, with reply: stop it if you run it
    {name}.listen.{job_id}                            plain: somebody listens, for a while
    {name}.events.{job_id}                            plain: the frames of it, while somebody listens
    {name}.started.{client_id}                        plain: a prompt of that submitter was begun
    {name}.ping.{group}                               plain, with reply: which workers are there
    {name}.offers.{group}                             plain, with reply: who has this model
    {NAME}_OUTCOMES, _RUNS                            key-value: {client_id}.{job_id}; {job_id}
    {NAME}_FILES, _INPUTS                             object stores
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, field
from typing import TypeAlias

from ..placement import Need

ANY_MODEL = "-"
LOWEST, HIGHEST = -9, 9

_FOUND_ATTEMPTS = 8

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LANE = re.compile(r"[A-Za-z0-9_-]+\.jobs\.([A-Za-z0-9_-]{1,64})\.(0[1-9]|1[0-9])\.([A-Za-z0-9_-]{1,64})\.\*")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_READABLE = 32
_NORMAL = 10
_MAIN_INPUTS = ("ckpt_name", "unet_name", "model_name", "model")


def check_token(what: str, value: str) -> str:
    """Refuse what cannot be a part of a subject.

    Raises:
        ValueError: It has other characters than letters, digits, ``_`` and ``-``, or not 1 to 64 of them.
    """
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError(f"{what} is 1 to 64 letters, digits, '_' or '-', not {value!r}")
    return value


Loader: TypeAlias = tuple[str, str, str]
"""A node class, its input, and the model file that the input names."""


@dataclass(frozen=True, slots=True, order=True)
class Lane:
    """What waits for one group of workers, with one priority and one model. Sorts by group, the most urgent first.

    Attributes:
        order: The priority, as it stands in subjects: lower is more urgent.
        model: The token of a model, from `model_token`; `ANY_MODEL` for prompts that use none.
        loader: The class, the input and the file of that model; None when that is not known.
    """

    group: str
    order: int
    model: str
    loader: Loader | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, group: str, priority: int, model: str = ANY_MODEL, loader: Loader | None = None) -> Lane:
        """Make one.

        Raises:
            ValueError: The group is no token, or the priority is not one of -9 to 9.
        """
        if not isinstance(priority, int) or not LOWEST <= priority <= HIGHEST:
            raise ValueError(f"priority is an integer from {LOWEST} to {HIGHEST}, not {priority!r}")
        return cls(check_token("group", group), _NORMAL - priority, model, loader)

    @classmethod
    def parse(cls, text: str) -> Lane | None:
        """Read the lane of a filter subject, which `Names.lane` gave; None when it is of none."""
        match = _LANE.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]), match[3])

    @property
    def priority(self) -> int:
        return _NORMAL - self.order

    @property
    def consumer(self) -> str:
        """The name of its durable consumer."""
        return f"{self.group}_{self.order:02}_{self.model}"

    @property
    def path(self) -> str:
        """Its part of subjects."""
        return f"{self.group}.{self.order:02}.{self.model}"

    def __str__(self) -> str:
        return self.path


def lane_of(group: str, priority: int, need: Need) -> Lane:
    """Give the lane of a prompt that needs this.

    Raises:
        ValueError: As `Lane.of`.
    """
    loader = main_loader(need)
    return Lane.of(group, priority, model_token("" if loader is None else loader[2]), loader)


def model_token(model: str) -> str:
    """Make of a model's file name what can stand in a subject: readable, and no two alike."""
    if not model:
        return ANY_MODEL
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    readable = _UNSAFE.sub("_", model.rpartition("/")[2].rpartition("\\")[2])[:_READABLE].strip("_-")
    return f"{readable}-{digest}"


def main_loader(need: Need) -> Loader | None:
    """Give the one model that says most about what a server must have loaded; None when there is none."""

    def rank(model: Loader) -> tuple[int, str, str, str]:
        kind, name, value = model
        return _MAIN_INPUTS.index(name) if name in _MAIN_INPUTS else len(_MAIN_INPUTS), name, value, kind

    return min((model for model in need.models if model[2] in need.files), key=rank, default=None)


def main_model(need: Need) -> str:
    """Give the file of that model; "" when there is none."""
    loader = main_loader(need)
    return "" if loader is None else loader[2]


def prompt_id_of(job_id: str, number: int) -> str:
    """Give the prompt_id of an attempt of a job: the job's own for the first, and from them on one near it.

    So a prompt that is met on a server leads to its job; see `possible_jobs`.
    """
    try:
        return str(uuid.UUID(int=uuid.UUID(job_id).int ^ (number - 1))) if number > 1 else job_id
    except ValueError:
        return str(uuid.uuid4())  # somebody chose another kind of id


def possible_jobs(prompt_id: str) -> list[str]:
    """Give the jobs of which a prompt can be one of the first attempts."""
    try:
        near = uuid.UUID(prompt_id).int
    except ValueError:
        return [prompt_id]
    return [prompt_id, *(str(uuid.UUID(int=near ^ number)) for number in range(1, _FOUND_ATTEMPTS))]


class Names:
    """The names of one fleet.

    Args:
        name: What they begin with.

    Raises:
        ValueError: The name cannot be a part of a subject, or has capitals: those of streams are made of it.
    """

    def __init__(self, name: str = "acomfy") -> None:
        self.name = check_token("the fleet's name", name)
        if name != name.lower():
            raise ValueError(f"the fleet's name has no capitals; take {name.lower()!r}, not {name!r}")
        upper = name.upper()
        self.jobs = f"{upper}_JOBS"
        self.dead = f"{upper}_DEAD"
        self.outcomes = f"{upper}_OUTCOMES"
        self.runs = f"{upper}_RUNS"
        self.files = f"{upper}_FILES"
        self.inputs = f"{upper}_INPUTS"

    def job(self, lane: Lane, job_id: str) -> str:
        return f"{self.name}.jobs.{lane.path}.{job_id}"

    def lane(self, lane: Lane) -> str:
        """The subjects of a lane."""
        return f"{self.name}.jobs.{lane.path}.*"

    def any_lane(self, job_id: str) -> str:
        """The subject of a job whose lane is not known."""
        return f"{self.name}.jobs.*.*.*.{job_id}"

    def dead_letter(self, group: str, job_id: str) -> str:
        return f"{self.name}.dead.{group}.{job_id}"

    def any_dead_letter(self, job_id: str) -> str:
        return f"{self.name}.dead.*.{job_id}"

    def wake(self, lane: Lane) -> str:
        return f"{self.name}.wake.{lane.path}"

    def wakes(self, group: str) -> str:
        return f"{self.name}.wake.{group}.>"

    def cancel(self, job_id: str) -> str:
        return f"{self.name}.cancel.{job_id}"

    def listen(self, job_id: str) -> str:
        return f"{self.name}.listen.{job_id}"

    def events(self, job_id: str) -> str:
        return f"{self.name}.events.{job_id}"

    def started(self, client_id: str) -> str:
        return f"{self.name}.started.{client_id}"

    def offers(self, group: str) -> str:
        return f"{self.name}.offers.{group}"

    def ping(self, group: str) -> str:
        return f"{self.name}.ping.{group}"
