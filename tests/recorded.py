"""Recordings of real servers, read as what one client of them saw.

A recording is one JSON object a line: requests with their answers (``http``), sockets and their frames (``ws_open``,
``ws_text``, ``ws_bin``, ``ws_end``). ``t`` is in seconds since its start; of a request it is when that was sent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from acomfy.frames import sniff_mime
from acomfy.router import Router, TrackedPrompt

DIRECTORY = Path(__file__).parent / "recordings"
RECORDINGS = sorted(path.relative_to(DIRECTORY).as_posix() for path in DIRECTORY.glob("*/*.jsonl"))


def lines(recording: str) -> list[dict[str, Any]]:
    """Read a recording, in the order of time."""
    with (DIRECTORY / recording).open(encoding="utf-8") as file:
        return sorted((json.loads(line) for line in file), key=lambda line: line["t"])


def text_frames(recording: str) -> Iterator[str]:
    return (line["data"] for line in lines(recording) if line["ev"] == "ws_text")


def binary_frames(recording: str) -> Iterator[bytes]:
    """Give the binary frames that were recorded whole."""
    return (base64.b64decode(line["b64"]) for line in lines(recording) if line["ev"] == "ws_bin" and "b64" in line)


def picture_frame(line: Mapping[str, Any]) -> bytes | None:
    """Give a binary frame; of one that was not recorded whole its beginning, and None if its metadata is cut."""
    if "b64" in line:
        return base64.b64decode(line["b64"])
    return None if line["event"] == 4 else base64.b64decode(line["head_b64"])


def history(recording: str) -> dict[str, dict[str, Any]]:
    """Give the newest history entry of each prompt, as any request of the recording was answered."""
    entries: dict[str, dict[str, Any]] = {}
    for line in lines(recording):
        if line["ev"] == "http" and line["method"] == "GET" and "/history" in line["path"]:
            answer = line.get("json")
            entries.update(answer if isinstance(answer, dict) else {})
    return entries


class Client:
    """One client of a recording, by its client_id: a router that gets what the client's sockets got.

    Attributes:
        prompts: Every accepted prompt, in the order of their POSTs. Where an id was posted twice, the second waits
            until the first has ended, as the server does.
        pictures: The pictures that came, each with the mime type that its bytes tell.
        progress: The progress of each prompt, looked at after every frame.
    """

    def __init__(self) -> None:
        self.router = Router()
        self.prompts: list[TrackedPrompt] = []
        self.pictures: list[str | None] = []
        self.progress: dict[TrackedPrompt, list[float]] = {}
        self._waiting: list[TrackedPrompt] = []

    def posted(self, prompt_id: str, graph: dict[str, Any]) -> None:
        streams = frozenset(node for node in graph if graph[node]["class_type"] == "SaveImageWebsocket")
        prompt = TrackedPrompt(prompt_id, json.dumps(graph).encode(), streams)
        self.prompts.append(prompt)
        if prompt_id in self.router.live:
            self._waiting.append(prompt)
        else:
            self.router.register(prompt)

    def receive(self, frame: str | bytes) -> None:
        delivery = self.router.receive(frame)
        for prompt in self.router.live.values():
            self.progress.setdefault(prompt, []).append(prompt.progress())
        ended = None if delivery is None else delivery[0]
        if ended is not None and ended.over:
            self.router.forget(ended)
            following = next((prompt for prompt in self._waiting if prompt.prompt_id == ended.prompt_id), None)
            if following is not None:
                self._waiting.remove(following)
                self.router.register(following)

    def receive_picture(self, line: Mapping[str, Any]) -> None:
        frame = picture_frame(line)
        if frame is not None:
            if line["event"] in (1, 4):
                self.pictures.append(sniff_mime(frame[frame.find(b"}") + 1 :] if line["event"] == 4 else frame[8:]))
            self.receive(frame)


def replay(recording: str) -> dict[str, Client]:
    """Replay a recording frame by frame: every client by its client_id."""
    clients: dict[str, Client] = {}
    of_socket: dict[str, Client] = {}
    for line in lines(recording):
        match line["ev"]:
            case "http" if (prompt_id := _queued(line)) is not None:
                body = line["req_json"]
                clients.setdefault(body["client_id"], Client()).posted(prompt_id, body["prompt"])
            case "ws_open" if (client_id := _client_id_of_socket(line)) is not None:
                of_socket[line["sock"]] = clients.setdefault(client_id, Client())
            case "ws_text" if line["sock"] in of_socket:
                of_socket[line["sock"]].receive(line["data"])
            case "ws_bin" if line["sock"] in of_socket:
                of_socket[line["sock"]].receive_picture(line)
            case "ws_end" if line["sock"] in of_socket:
                of_socket[line["sock"]].router.lose()
    return clients


def _queued(line: Mapping[str, Any]) -> str | None:
    """Give the id of the prompt that a request queued for a client; None for every other request.

    A 500 queues it as well when only its number and id are those of another (seen in k_prompt_ids).
    """
    body, answer = line.get("req_json"), line.get("json")
    if line["method"] != "POST" or urlsplit(line["path"]).path.removeprefix("/api") != "/prompt":
        return None
    if not isinstance(body, dict) or not isinstance(body.get("client_id"), str):
        return None
    if line["status"] == 500 and isinstance(body.get("number"), int) and "prompt_id" in body:
        return str(body["prompt_id"])
    return answer.get("prompt_id") if isinstance(answer, dict) else None


def _client_id_of_socket(line: Mapping[str, Any]) -> str | None:
    ids = parse_qs(urlsplit(line["path"]).query).get("clientId")
    return ids[0] if ids else None
