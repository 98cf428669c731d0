"""Stand-ins for Telegram's and Discord's APIs: as much of them as the bots use, on a port of this machine."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import discord
from aiohttp import web


@dataclass
class Shown:
    """A message of the bot as users see it.

    Attributes:
        edits: The texts that it had, the present one last.
    """

    message_id: int
    edits: list[str] = field(default_factory=list)
    picture: bytes | None = None
    buttons: bool = False
    private: bool = False
    deleted: bool = False

    @property
    def text(self) -> str:
        return self.edits[-1]


class ChatService:
    """What both have: the messages, and an event for each change.

    Attributes:
        refusals: Answers to the next edits, before any of them is let through.
    """

    def __init__(self) -> None:
        self.refusals: list[web.Response] = []
        self.messages: dict[int, Shown] = {}
        self.ids = itertools.count(1000)
        self._changed = asyncio.Event()
        self.url = ""

    def show(self, message_id: int, text: str, picture: bytes | None, buttons: bool, private: bool = False) -> None:
        shown = self.messages.setdefault(message_id, Shown(message_id))
        shown.edits.append(text)
        shown.picture, shown.buttons, shown.private = picture or shown.picture, buttons, private
        self._changed.set()

    async def wait_for(self, condition: Any) -> Any:
        """Wait until a condition on the messages holds, and give what it gave."""
        async with asyncio.timeout(20):
            while not (found := condition()):
                self._changed.clear()
                await self._changed.wait()
        return found

    async def wait_for_text(self, start: str, count: int = 1) -> list[Shown]:
        def found() -> list[Shown]:
            showing = [shown for shown in self.messages.values() if shown.edits and shown.text.startswith(start)]
            return showing if len(showing) >= count else []

        result: list[Shown] = await self.wait_for(found)
        return result

    def application(self) -> web.Application:
        raise NotImplementedError

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        runner = web.AppRunner(self.application(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()


# --- Telegram ------------------------------------------------------------------------------------------------------


class Telegram(ChatService):
    """Telegram's Bot API (https://core.telegram.org/bots/api): updates by long polling, messages, edits."""

    CHAT = 7

    def __init__(self) -> None:
        super().__init__()
        self._updates: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: list[str] = []

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/bot{token}/{method}", self._call)
        return app

    def write(self, user: int, text: str) -> None:
        """Have a user write to the bot."""
        command = text.split()[0]
        entities = [{"type": "bot_command", "offset": 0, "length": len(command)}]
        self._put(message=self._message(next(self.ids), text, user) | {"entities": entities})

    def press(self, user: int, message_id: int, data: str = "cancel") -> None:
        """Have a user press the button of a message."""
        message = self._message(message_id, self.messages[message_id].text, 1)
        query = {"id": "1", "from": _person(user), "chat_instance": "1", "message": message, "data": data}
        self._put(callback_query=query)

    def _put(self, **update: Any) -> None:
        self._updates.put_nowait({"update_id": next(self.ids), **update})

    def _message(self, message_id: int, text: str, user: int) -> dict[str, Any]:
        chat = {"id": self.CHAT, "type": "group", "title": "painters"}
        return {"message_id": message_id, "date": 1, "chat": chat, "from": _person(user), "text": text}

    async def _call(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        name = request.match_info["method"]
        method = getattr(self, "_" + name, None)
        if name.startswith("edit"):
            if self.refusals:
                return self.refusals.pop(0)
            if self.messages[int(str(form["message_id"]))].deleted:
                return refusal(400, "Bad Request: message to edit not found")
        result = True if method is None else await method(form)
        return web.json_response({"ok": True, "result": result})

    async def _getMe(self, form: dict[str, Any]) -> Any:
        return _person(1) | {"is_bot": True, "username": "painter"}

    async def _getUpdates(self, form: dict[str, Any]) -> Any:
        return [await self._updates.get()]

    async def _sendMessage(self, form: dict[str, Any]) -> Any:
        message_id = next(self.ids)
        self.show(message_id, form["text"], None, "reply_markup" in form)
        return self._message(message_id, form["text"], 1)

    async def _editMessageText(self, form: dict[str, Any]) -> Any:
        return self._edited(form, form["text"])

    async def _editMessageCaption(self, form: dict[str, Any]) -> Any:
        return self._edited(form, form["caption"])

    async def _editMessageMedia(self, form: dict[str, Any]) -> Any:
        media = json.loads(form["media"])
        file = form[media["media"].removeprefix("attach://")].file
        return self._edited(form, media["caption"], file.read())

    async def _answerCallbackQuery(self, form: dict[str, Any]) -> Any:
        self.answers.append(form["text"])
        self._changed.set()
        return True

    def _edited(self, form: dict[str, Any], text: str, picture: bytes | None = None) -> Any:
        message_id = int(form["message_id"])
        self.show(message_id, text, picture, "reply_markup" in form)
        return self._message(message_id, text, 1)


def refusal(status: int, description: str, **parameters: Any) -> web.Response:
    """Make Telegram's refusal of a call."""
    about = {"ok": False, "error_code": status, "description": description, "parameters": parameters}
    return web.json_response(about, status=status)


def _person(user: int) -> dict[str, Any]:
    return {"id": user, "is_bot": False, "first_name": f"user {user}"}


# --- Discord -------------------------------------------------------------------------------------------------------


class Discord(ChatService):
    """Discord's HTTP API and gateway, version 10 (https://discord.com/developers/docs): commands, buttons, answers."""

    APPLICATION = "1"

    def __init__(self) -> None:
        super().__init__()
        self.ids = itertools.count(discord.utils.time_snowflake(discord.utils.utcnow()))  # their ids tell the time
        self._gateway: web.WebSocketResponse | None = None
        self._sequence = itertools.count(1)
        self._tokens: dict[str, int] = {}
        self.commands: list[str] = []
        self.ready = asyncio.Event()
        self.edited_later = 0

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/gateway", self._serve_gateway)
        app.router.add_get("/users/@me", self._me)
        app.router.add_get("/oauth2/applications/@me", self._application)
        app.router.add_put("/applications/{app}/commands", self._set_commands)
        app.router.add_post("/interactions/{id}/{token}/callback", self._answer)
        app.router.add_patch("/webhooks/{app}/{token}/messages/@original", self._edit)
        app.router.add_patch("/channels/3/messages/{number}", self._edit_later)
        return app

    async def command(self, user: int, text: str) -> str:
        """Have a user give the command /paint; the token that it gives names the answer."""
        option = {"name": "text", "type": 3, "value": text}
        data = {"id": "5", "name": "paint", "type": 1, "options": [option]}
        return await self._interact(user, 2, data)

    async def press(self, user: int, message: str, token: str) -> None:
        """Have a user press the button of a message."""
        custom_id = self._buttons[token]
        await self._interact(user, 3, {"custom_id": custom_id, "component_type": 2}, self._message(self._tokens[token]))

    async def _interact(self, user: int, kind: int, data: Any, message: Any = None) -> str:
        number = next(self.ids)
        token = f"token-{number}"
        self._tokens[token] = number
        interaction = {
            "id": str(number),
            "application_id": self.APPLICATION,
            "type": kind,
            "data": data,
            "token": token,
            "version": 1,
            "channel_id": "3",
            "channel": {"id": "3", "type": 1, "recipients": []},
            "user": _member(user),
            "locale": "en-US",
            "entitlements": [],
            "authorizing_integration_owners": {},
            "attachment_size_limit": 2**23,
        }
        await self._dispatch("INTERACTION_CREATE", interaction | ({"message": message} if message else {}))
        return token

    _buttons: dict[str, str]

    def _message(self, number: int) -> dict[str, Any]:
        return {
            "id": str(number),
            "channel_id": "3",
            "author": _member(1),
            "content": self.messages[number].text if number in self.messages else "",
            "timestamp": "2026-01-01T00:00:00+00:00",
            "edited_timestamp": None,
            "tts": False,
            "mention_everyone": False,
            "mentions": [],
            "mention_roles": [],
            "attachments": [],
            "embeds": [],
            "pinned": False,
            "type": 20,
            "components": [],
        }

    async def _serve_gateway(self, request: web.Request) -> web.StreamResponse:
        gateway = web.WebSocketResponse()
        await gateway.prepare(request)
        self._gateway = gateway
        await gateway.send_json({"op": 10, "d": {"heartbeat_interval": 45_000}, "s": None, "t": None})
        async for message in gateway:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            order = json.loads(message.data)
            if order["op"] == 1:
                await gateway.send_json({"op": 11, "d": None, "s": None, "t": None})
            elif order["op"] == 2:
                await self._dispatch("READY", self._hello())
                self.ready.set()
        return gateway

    def _hello(self) -> dict[str, Any]:
        return {
            "v": 10,
            "user": _member(1),
            "guilds": [],
            "session_id": "s",
            "resume_gateway_url": self.url.replace("http", "ws") + "/gateway",
            "application": {"id": self.APPLICATION, "flags": 0},
        }

    async def _dispatch(self, kind: str, data: Any) -> None:
        assert self._gateway is not None
        await self._gateway.send_json({"op": 0, "d": data, "s": next(self._sequence), "t": kind})

    async def _me(self, request: web.Request) -> web.Response:
        return _json(_member(1))

    async def _application(self, request: web.Request) -> web.Response:
        about = {"id": self.APPLICATION, "name": "painter", "description": "", "bot_public": True, "flags": 0}
        return _json({**about, "bot_require_code_grant": False, "icon": None, "verify_key": "", "owner": _member(2)})

    async def _set_commands(self, request: web.Request) -> web.Response:
        commands = await request.json()
        self.commands = [command["name"] for command in commands]
        base = {"application_id": self.APPLICATION, "version": "1", "default_member_permissions": None}
        return _json([{**base, "id": "5", **command} for command in commands])

    async def _answer(self, request: web.Request) -> web.Response:
        payload, _ = await _payload(request)
        data, token = payload.get("data") or {}, request.match_info["token"]
        number = self._tokens[token]
        if payload["type"] == 4:
            self._remember_button(token, data)
            self.show(number, data["content"], None, bool(data.get("components")), bool(data.get("flags", 0) & 64))
        answer = {"interaction": {"id": str(number), "type": 2, "response_message_id": str(number)}}
        return _json(answer | {"resource": {"type": payload["type"], "message": self._message(number)}})

    async def _edit(self, request: web.Request) -> web.Response:
        return await self._edited(request, self._tokens[request.match_info["token"]])

    async def _edit_later(self, request: web.Request) -> web.Response:
        self.edited_later += 1
        return await self._edited(request, int(request.match_info["number"]))

    async def _edited(self, request: web.Request, number: int) -> web.Response:
        payload, picture = await _payload(request)
        if self.refusals:
            return self.refusals.pop(0)
        if self.messages[number].deleted:
            return web.json_response({"code": 10008, "message": "Unknown Message"}, status=404)
        buttons = bool(payload["components"]) if "components" in payload else self.messages[number].buttons
        self.show(number, payload["content"], picture, buttons)
        return _json(self._message(number))

    def _remember_button(self, token: str, data: dict[str, Any]) -> None:
        self._buttons = getattr(self, "_buttons", {})
        for row in data.get("components") or ():
            for button in row["components"]:
                self._buttons[token] = button["custom_id"]


def _json(value: Any) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})  # no charset


def _member(user: int) -> dict[str, Any]:
    return {
        "id": str(user),
        "username": f"user{user}",
        "discriminator": "0",
        "global_name": None,
        "avatar": None,
        "bot": user == 1,
    }


async def _payload(request: web.Request) -> tuple[dict[str, Any], bytes | None]:
    """Read a call's JSON, and the file that comes with it."""
    if request.content_type == "application/json":
        return await request.json(), None
    form = await request.post()
    file = form.get("files[0]")
    return json.loads(str(form["payload_json"])), file.file.read() if isinstance(file, web.FileField) else None
