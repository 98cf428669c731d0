"""Every exception that acomfy raises. One root, so that ``except AcomfyError`` catches all of them.

::

    AcomfyError
      ServerError              the server or the way to it
        ServerUnreachable      no connection, or none in time
        PayloadTooLarge        the body is over the server's limit
        ProtocolError          not a ComfyUI server, or nonsense from one
        HTTPError              a status that says no
          AuthenticationError  401, 403, or a redirect to a login page
        BrokerError            the NATS broker of a fleet said no
      WorkflowError            the workflow is wrong before it is sent: you can mend it
        WorkflowFormatError    the editor's own JSON where API format is needed, or a form of it that cannot be read
          UnknownNodes         it uses node classes that the server has not
      MetadataError            what was written into a file cannot be read: damaged, or too large
      PromptRejected           the server refused the prompt, or a part of it
      JobError                 a prompt that was submitted did not succeed
        JobFailed              a node raised
          OutOfMemory          ... because the device ran out of memory
        JobCancelled           this client asked for it (not an asyncio.CancelledError)
        JobInterrupted         somebody else stopped it while it ran
        JobLost                no verdict exists: deleted, restarted, evicted, unreachable
        JobStalled             nothing moved for stall_timeout
        OutputMissing          it succeeded, but an output cannot be had any more
      ClientClosed             the client was closed while this waited
      QueueFull                the pool's own waiting line is full
      NoServerAvailable        no server of the pool can take the prompt

Timeouts are the builtin ``TimeoutError``. Every error is plain data (attributes first, then a sentence built from
them) and can be pickled and copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SHOWN_PROBLEMS = 10
_SHOWN_CHOICES = 8
_COMPARED_CHOICES = 5000
_COMPARED_LENGTH = 300
_COMPARED_WELL = 50


class AcomfyError(Exception):
    """Base of every error that acomfy raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with ``args``, which are not the arguments of our constructors.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[AcomfyError], args: tuple[Any, ...], attributes: dict[str, Any]) -> AcomfyError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


# --- The server, or the way to it ----------------------------------------------------------------------------------


class ServerError(AcomfyError):
    """The server, or the way to it, failed."""


class ServerUnreachable(ServerError):
    """No connection to the server could be made, or it broke before an answer came.

    Attributes:
        url: The address that was tried, without credentials.
        maybe_sent: False when it is certain that the server did not get the request.
    """

    def __init__(
        self,
        url: str,
        reason: str,
        *,
        maybe_sent: bool = False,
        hint: str = "is ComfyUI running there, and is the address right?",
    ) -> None:
        self.url = url
        self.maybe_sent = maybe_sent
        super().__init__(f"no answer from {url}: {reason}; {hint}")


class PayloadTooLarge(ServerError):
    """A request body is over the server's limit (413; ``--max-upload-size``, 100 MB by default).

    Attributes:
        size: Bytes that were to be sent; None when that is not known.
        limit: Bytes that the server takes; None when it did not say.
    """

    def __init__(self, size: int | None, limit: int | None) -> None:
        self.size = size
        self.limit = limit
        sent = "the body" if size is None else f"a body of {size} bytes"
        allowed = "the server's limit" if limit is None else f"the server's limit of {limit} bytes"
        super().__init__(f"{sent} is over {allowed}; start ComfyUI with a larger --max-upload-size (in MB)")


class ProtocolError(ServerError):
    """The server said something that ComfyUI does not say: another program, a proxy's page, a broken frame."""


class HTTPError(ServerError):
    """A request was answered with a status that says no.

    Attributes:
        status: HTTP status code.
        method: HTTP method.
        url: The address without credentials and without the caller's own query parameters.
        body: The first bytes of the answer, as text.
        content_type: What the answer calls itself, for example ``text/html``: then it came from a proxy, for ComfyUI's
            refusals are JSON or plain text. "" when it does not tell.
        error_type: The kind of error that a JSON body names, for example ``QUEUE_LIMIT`` (429 of Comfy Cloud) or
            ``SERVICE_DISABLED``; None when it names none.
        retry_after: Seconds that the server asks to wait (``Retry-After``); None when it does not.
    """

    def __init__(
        self,
        status: int,
        method: str,
        url: str,
        body: str,
        hint: str = "",
        *,
        content_type: str = "",
        error_type: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.method = method
        self.url = url
        self.body = body
        self.content_type = content_type
        self.error_type = error_type
        self.retry_after = retry_after
        kind = f" ({content_type})" if content_type else ""
        quoted = f": {_shorten(body, 200)!r}" if body else ""
        wait = "" if retry_after is None else f"; it asks to wait {retry_after:g} s"
        super().__init__(f"{method} {url} was answered with {status}{kind}{quoted}{wait}{'; ' + hint if hint else ''}")


class AuthenticationError(HTTPError):
    """The server, or a proxy in front of it, refused access (401, 403, or a redirect to a login page)."""


class BrokerError(ServerError):
    """The NATS broker of a fleet refused something, and would again.

    Attributes:
        url: Its address, without credentials.
        code: JetStream's error code; None when it gave none.
    """

    def __init__(self, url: str, reason: str, *, code: int | None = None) -> None:
        self.url = url
        self.code = code
        super().__init__(f"the broker {url} said no: {reason}" + (f" (code {code})" if code is not None else ""))


# --- The workflow --------------------------------------------------------------------------------------------------


class WorkflowError(AcomfyError):
    """The workflow is wrong, found before anything was sent.

    Attributes:
        node_id: The node concerned; None when it is no single one.
        input_name: The input concerned; None when it is no single one.
    """

    def __init__(self, message: str, *, node_id: str | None = None, input_name: str | None = None) -> None:
        self.node_id = node_id
        self.input_name = input_name
        super().__init__(message)


class WorkflowFormatError(WorkflowError):
    """The JSON is not in ComfyUI's API format (most often: it is what the editor saves), or cannot be made so."""


@dataclass(frozen=True, slots=True)
class UnknownNode:
    """A node of a class that the server has not.

    Attributes:
        node_id: Its full id, for example "12:3".
        title: Its title in the file; None when it has none of its own.
    """

    node_id: str
    class_type: str
    title: str | None

    def __str__(self) -> str:
        return _node_name(self.node_id, self.class_type, self.title)


class UnknownNodes(WorkflowFormatError):
    """The workflow uses node classes that the server has not: custom nodes that are not installed there, as a rule.

    Attributes:
        nodes: All such nodes that would run, in the order of the file.
        node_id: The first of them.
    """

    def __init__(self, nodes: Iterable[UnknownNode]) -> None:
        self.nodes = tuple(nodes)
        shown = "".join(f"\n  - {node}" for node in self.nodes[:_SHOWN_PROBLEMS])
        more = len(self.nodes) - _SHOWN_PROBLEMS
        count = len({node.class_type for node in self.nodes})
        super().__init__(
            f"the server does not have {count} of the node classes; install them there, or keep the nodes as they are "
            f"with keep_unknown=True:{shown}" + (f"\n  - and {more} more" if more > 0 else ""),
            node_id=self.nodes[0].node_id if self.nodes else None,
        )


@dataclass(frozen=True, slots=True)
class NodeProblem:
    """One thing that is wrong with one node, in the words of the server's ``node_errors``.

    Attributes:
        node_id: The node; "" when it is the whole prompt (``prompt_no_outputs``).
        type: ComfyUI's error type, for example ``value_not_in_list``.
        received: What was sent for the input; None when the server did not say.
        allowed: The values that the input takes, or its limits as the server gave them; None when it did not say.
        hint: What `acomfy.checking` knows beyond the server's words; "" when nothing.
    """

    node_id: str
    class_type: str | None
    title: str | None
    type: str
    message: str
    details: str
    input_name: str | None
    received: Any
    allowed: Any
    hint: str = ""

    def __str__(self) -> str:
        where = _node_name(self.node_id, self.class_type, self.title) if self.node_id else "the prompt"
        if self.input_name is not None:
            where += f", input {self.input_name!r}"
        said = self.message or self.type
        if self._choices():
            said += f" ({_shorten(repr(self.received), 300)})"  # the details only list the choices once more
        elif self.details and self.details != self.input_name:
            said += f" ({_shorten(self.details, 300)})"
        return f"{where}: {said}{'; ' + self.hint if self.hint else ''}{self._allowed_text()}"

    @property
    def nearest(self) -> str | None:
        """The allowed value that was most likely meant; None when none is near, or none is known."""
        return nearest_match(self.received, self._choices())

    def _choices(self) -> list[Any]:
        return self.allowed if isinstance(self.allowed, list) else []

    def _allowed_text(self) -> str:
        choices = self._choices()
        if not choices:
            return ""
        nearest = self.nearest
        head = "; allowed" if nearest is None else f"; did you mean {nearest!r}? Allowed"
        shown = ", ".join(_shorten(repr(choice), 100) for choice in choices[:_SHOWN_CHOICES])
        more = len(choices) - _SHOWN_CHOICES
        return f"{head}: {shown}" + (f" and {more} more" if more > 0 else "")


class MetadataError(AcomfyError):
    """What was written into a file (prompt, workflow, other texts) cannot be read: it is damaged, or too large."""


class PromptRejected(AcomfyError):
    """The server refused the prompt: 400 from ``POST /prompt``, or 200 with ``node_errors`` when ``strict``.

    In the second case the server had dropped the invalid outputs and queued the rest; that prompt was cancelled
    before this was raised.

    Attributes:
        error_type: ComfyUI's ``error.type``, for example ``prompt_outputs_failed_validation``; None when partial.
        message: ComfyUI's ``error.message``.
        details: ComfyUI's ``error.details``.
        node_errors: ``node_errors`` as the server sent them, by node id.
        problems: The same as a flat list of `NodeProblem`.
        partial: True when the server would have run a part of the prompt.
    """

    def __init__(
        self,
        error: Mapping[str, Any],
        node_errors: Mapping[str, Any],
        *,
        titles: Mapping[str, str] | None = None,
        partial: bool = False,
        problems: Iterable[NodeProblem] | None = None,
    ) -> None:
        self.error_type = _text_or_none(error.get("type"))
        self.message = _text_or_none(error.get("message")) or ""
        self.details = _text_or_none(error.get("details")) or ""
        self.node_errors = dict(node_errors)
        self.partial = partial
        self.problems = list(_problems(node_errors, titles or {}) if problems is None else problems)
        super().__init__(self._sentence())

    @property
    def dropped_outputs(self) -> frozenset[str]:
        """The output nodes that cannot run because of these problems (``dependent_outputs``)."""
        lists = (entry.get("dependent_outputs") for entry in self.node_errors.values() if isinstance(entry, Mapping))
        return frozenset(str(node) for outputs in lists if isinstance(outputs, list) for node in outputs)

    def _sentence(self) -> str:
        if self.partial:
            head = "the server dropped some outputs of the prompt (strict=False runs the rest)"
        else:
            head = f"the server refused the prompt: {self.message or self.error_type or 'no reason given'}"
        if not self.problems:
            if self.error_type == "prompt_outputs_failed_validation":  # execution.py before 0.20 names no cycle
                head += "; it names no node: do links go round in a circle?"
            return f"{head} ({_shorten(self.details, 300)})" if self.details else head
        shown = "".join(f"\n  - {problem}" for problem in self.problems[:_SHOWN_PROBLEMS])
        more = len(self.problems) - _SHOWN_PROBLEMS
        return head + shown + (f"\n  - and {more} more" if more > 0 else "")


def _problems(node_errors: Mapping[str, Any], titles: Mapping[str, str]) -> Iterator[NodeProblem]:
    """Yield the ``errors`` of every node; whatever has another shape than ComfyUI's is passed over."""
    for node_id, entry in node_errors.items():
        found = entry.get("errors") if isinstance(entry, Mapping) else None
        for error in found if isinstance(found, list) else ():
            if isinstance(error, Mapping):
                yield node_problem(node_id, _text_or_none(entry.get("class_type")), titles.get(node_id), error)


def node_problem(node_id: str, class_type: str | None, title: str | None, error: Mapping[str, Any]) -> NodeProblem:
    """Read one of a node's ``errors`` as the server wrote it."""
    extra = error.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    return NodeProblem(
        node_id=node_id,
        class_type=class_type,
        title=title,
        type=_text_or_none(error.get("type")) or "",
        message=_text_or_none(error.get("message")) or "",
        details=_text_or_none(error.get("details")) or "",
        input_name=_text_or_none(extra.get("input_name")),
        received=extra.get("received_value"),
        allowed=_allowed(extra.get("input_config")),
        hint=_hint(error, extra),
    )


def _hint(error: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
    """Say what an exception of the server's own validation (execution.py validate_prompt) most likely means."""
    if error.get("type") not in ("exception_during_validation", "exception_during_inner_validation"):
        return ""
    if extra.get("exception_type") == "KeyError":
        return f"an input seems to be linked to the node {error.get('details')}, which is not in the prompt"
    if extra.get("exception_type") == "IndexError":
        return "an input seems to be linked to an output that the node there does not have; they count from 0"
    return ""


def _allowed(input_config: Any) -> Any:
    """Take the choices, or the options with the limits, out of an input's ``[type, options]``."""
    if not isinstance(input_config, list) or not input_config:
        return None
    options = input_config[1] if len(input_config) > 1 and isinstance(input_config[1], dict) else None
    if isinstance(input_config[0], list):
        return input_config[0]
    if input_config[0] == "COMBO" and options is not None:
        return options.get("options")
    return options


# --- A submitted prompt --------------------------------------------------------------------------------------------


class JobError(AcomfyError):
    """A submitted prompt did not succeed.

    Attributes:
        prompt_id: The prompt, as the server knows it.
    """

    prompt_id: str

    def __init__(self, prompt_id: str, message: str) -> None:
        self.prompt_id = prompt_id
        super().__init__(message)


class JobFailed(JobError):
    """A node raised while the prompt ran (``execution_error``).

    Attributes:
        node_id: The node that raised, as the server named it; "" when it named none.
        class_type: Its class.
        title: Its title in the workflow; None when it has none.
        exception_type: Name of the exception on the server, for example ``RuntimeError``.
        exception_message: Its text.
        traceback: The server's traceback, a line or more each; empty when it sent none.
    """

    def __init__(
        self,
        prompt_id: str,
        *,
        node_id: str,
        class_type: str,
        exception_type: str,
        exception_message: str,
        traceback: tuple[str, ...] = (),
        title: str | None = None,
    ) -> None:
        self.node_id = node_id
        self.class_type = class_type
        self.title = title
        self.exception_type = exception_type
        self.exception_message = exception_message
        self.traceback = traceback
        super().__init__(prompt_id, f"{self._where()} of prompt {prompt_id}: {self._what()}")

    def _where(self) -> str:
        return _node_name(self.node_id, self.class_type, self.title) if self.node_id else "a node"

    def _what(self) -> str:
        return f"{self.exception_type or 'error'}: {_shorten(self.exception_message.strip(), 1000)}"


class OutOfMemory(JobFailed):
    """A node ran out of device memory. Smaller pictures or batches, or ``POST /free``, may help."""


class JobCancelled(JobError):
    """This client cancelled the prompt. (Not an ``asyncio.CancelledError``: the awaiting task goes on.)"""

    def __init__(self, prompt_id: str) -> None:
        super().__init__(prompt_id, f"prompt {prompt_id} was cancelled by this client")


class JobInterrupted(JobError):
    """Somebody else stopped the prompt while it ran (``execution_interrupted``)."""

    def __init__(self, prompt_id: str) -> None:
        super().__init__(prompt_id, f"prompt {prompt_id} was interrupted on the server, not by this client")


class JobLost(JobError):
    """The server has no verdict on the prompt and never will: seen twice, at least 1 s apart.

    Attributes:
        reason: ``deleted`` (taken from the queue by somebody else), ``restarted`` (the server lost its queue),
            ``evicted`` (it ran, but left the history before we looked), ``unreachable`` (the server did not come
            back in time).
    """

    _EXPLAINED = {
        "deleted": "somebody removed it from the queue before it ran",
        "restarted": "the server restarted and lost its queue",
        "evicted": "it ended, but its history entry is gone",
        "unreachable": "the server did not come back in time",
    }

    def __init__(self, prompt_id: str, reason: str) -> None:
        self.reason = reason
        super().__init__(prompt_id, f"prompt {prompt_id} is lost: {self._EXPLAINED.get(reason, reason)}")


class JobStalled(JobError):
    """Nothing was heard of the running prompt for ``stall_timeout``.

    Attributes:
        stall_timeout: Seconds of silence that were allowed.
    """

    def __init__(self, prompt_id: str, stall_timeout: float) -> None:
        self.stall_timeout = stall_timeout
        super().__init__(
            prompt_id,
            f"prompt {prompt_id} made no progress for {stall_timeout:g} s; the server may have to be restarted",
        )


class OutputMissing(JobError):
    """The prompt succeeded, but an output of it cannot be had any more.

    Either its streamed images fell into a gap of the connection (they cannot be fetched again), or its cached file
    is gone from the server's disk.

    Attributes:
        node_id: The node whose output is missing.
        filename: The missing file; None when it was streamed.
        cached: True when the node was not run, and named the file that it made for an earlier prompt; None when that
            is not known.
        received: What did arrive of the streamed images, in order; empty for files.
    """

    def __init__(
        self,
        prompt_id: str,
        node_id: str,
        *,
        filename: str | None = None,
        received: tuple[bytes, ...] = (),
        cached: bool | None = None,
    ) -> None:
        self.node_id = node_id
        self.filename = filename
        self.cached = cached
        self.received = received
        if filename is None:
            what = (
                f"images streamed by node {node_id} were lost in a gap of the connection ({len(received)} arrived); "
                "run it again, or use SaveImage"
            )
        else:
            why = {
                True: "cached, file gone: the node was not run again, and what it made before was deleted",
                False: "it was deleted since, or never written",
                None: "cached, file gone, or deleted since",
            }[cached]
            what = f"file {filename!r} of node {node_id} is gone from the server"
            what += f" ({why}); change an input to run it again"
        super().__init__(prompt_id, f"prompt {prompt_id} succeeded, but {what}")


# --- The client and the pool ---------------------------------------------------------------------------------------


class ClientClosed(AcomfyError):
    """The client was closed while this waited, or before it was used."""

    def __init__(self, message: str = "the client is closed") -> None:
        super().__init__(message)


class QueueFull(AcomfyError):
    """The pool's own waiting line is full; nothing was queued."""


class NoServerAvailable(AcomfyError):
    """No server of the pool can take the prompt."""


def _node_name(node_id: str, class_type: str | None, title: str | None) -> str:
    described = class_type or "unknown class"
    if title and title != class_type:
        described += f", {title!r}"
    return f"node {node_id} ({described})"


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def nearest_match(value: object, choices: Sequence[Any]) -> str | None:
    """Find the name that was most likely meant by a value that is none of the choices; None when none is near.

    A name that differs in case, folder or file ending only goes before one that is merely spelt alike.
    """
    wanted = str(value) if isinstance(value, str | int | float) else ""
    names = [choice for choice in choices[:_COMPARED_CHOICES] if isinstance(choice, str)]
    if not wanted or len(wanted) > _COMPARED_LENGTH:
        return None
    for same in (_folded, _file_name, _stem):
        if found := next((name for name in names if same(name) == same(wanted)), None):
            return found
    by_stem = {_stem(name): name for name in reversed(names) if len(name) <= _COMPARED_LENGTH}
    import difflib  # 1 ms that only a rejected prompt pays

    close = difflib.get_close_matches(_stem(wanted), _likely(_stem(wanted), list(by_stem)), n=1)
    return by_stem[close[0]] if close else None


def _likely(wanted: str, names: list[str]) -> list[str]:
    """Pick the few names that share most pairs of letters: comparing thousands for good takes 0.2 s."""
    if len(names) <= _COMPARED_WELL:
        return names
    pairs = {wanted[place : place + 2] for place in range(len(wanted) - 1)}
    return sorted(names, key=lambda name: -sum(pair in name for pair in pairs))[:_COMPARED_WELL]


def _folded(name: str) -> str:
    return name.casefold().replace("\\", "/").strip()


def _file_name(name: str) -> str:
    return _folded(name).rpartition("/")[2]


def _stem(name: str) -> str:
    name = _file_name(name)
    return name.rpartition(".")[0] or name
