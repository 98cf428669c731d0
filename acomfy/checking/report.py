"""What a check says of a prompt: the problems, and whether the server would run all of it, a part, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from ..errors import NodeProblem, PromptRejected


@dataclass(frozen=True, slots=True, eq=False)
class CheckReport(Sequence[NodeProblem]):
    """The problems that the server would find, as a sequence: empty (and false) when there are none.

    Attributes:
        problems: What makes the server refuse the prompt or drop outputs of it, in the server's words.
        warnings: What it would let pass or might refuse: inputs that it ignores, values that the class's own check may
            take, constants in place of links, and cycles where its version drops outputs without saying so.
        valid_outputs: The output nodes that would run.
        dropped_outputs: The output nodes that would not.
        error: The server's ``error`` when it would refuse the whole prompt (400); None when it would run some of it.
        node_errors: The server's ``node_errors``, by node; empty for what it says of the prompt as a whole.
    """

    problems: tuple[NodeProblem, ...]
    warnings: tuple[NodeProblem, ...]
    valid_outputs: tuple[str, ...]
    dropped_outputs: tuple[str, ...]
    error: Mapping[str, Any] | None
    node_errors: Mapping[str, Any] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the server would take the prompt without a complaint."""
        return not self.problems

    @property
    def refused(self) -> bool:
        """Whether the server would answer 400 and run nothing."""
        return self.error is not None

    @property
    def partial(self) -> bool:
        """Whether the server would answer 200 with ``node_errors`` and run the valid outputs alone."""
        return bool(self.problems) and self.error is None

    def raise_for_problems(self, *, strict: bool = True) -> None:
        """Raise what submitting the prompt would raise.

        Args:
            strict: Refuse too what the server would run in part, as ``submit`` does by default.

        Raises:
            PromptRejected: There are problems.
        """
        if self.refused or (strict and self.problems):
            raise PromptRejected(self.error or {}, self.node_errors, partial=self.partial, problems=self.problems)

    @overload
    def __getitem__(self, index: int) -> NodeProblem: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[NodeProblem, ...]: ...
    def __getitem__(self, index: int | slice) -> NodeProblem | tuple[NodeProblem, ...]:
        return self.problems[index]

    def __len__(self) -> int:
        return len(self.problems)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, CheckReport):
            return (self.problems, self.warnings, self.error) == (other.problems, other.warnings, other.error)
        return list(self.problems) == list(other) if isinstance(other, list | tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it compares by content, which may be JSON

    def __str__(self) -> str:
        """Say all of it, a line each."""
        lines = [f"- {problem}" for problem in self.problems] + [f"- warning: {warning}" for warning in self.warnings]
        return "\n".join([self._verdict(), *lines])

    def _verdict(self) -> str:
        if self.ok:
            return "the server would take the prompt"
        if self.refused:
            return "the server would refuse the prompt"
        return f"the server would run {', '.join(self.valid_outputs)} alone and drop {', '.join(self.dropped_outputs)}"
