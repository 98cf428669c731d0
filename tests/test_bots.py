"""The bots, with stand-ins for the services that they live in."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import AsyncIterator
from types import ModuleType

import discord
import pytest
import yarl
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from discord.gateway import DiscordWebSocket
from discord.http import Route

import acomfy
from acomfy.examples import discord_bot, telegram_bot
from acomfy.examples.orders import Order, TooMany, Turn, Turns
from acomfy.simulator import SimulatedServer

from .chat_services import Discord, Telegram, refusal
from .conftest import MS
from .graphs import saved

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        yield server


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[acomfy.Client]:
    async with acomfy.Client(server.url) as client:
        yield client


def texts(server: SimulatedServer) -> list[str]:
    """Give the positive texts of the prompts, in the order in which they were queued."""
    return [body["prompt"]["6"]["inputs"]["text"] for body in server.prompts]


# --- Turns ---------------------------------------------------------------------------------------------------------


def came(turns: dict[str, Turn]) -> list[str]:
    return [name for name, turn in turns.items() if turn.came.is_set()]


async def test_users_take_turns_however_much_one_of_them_wants() -> None:
    line, order = Turns(at_once=1, per_user=9), []
    wishes = ["a0", "a1", "a2", "a3", "b0", "c0", "b1"]
    turns = {name: line.line_up(name[0]) for name in wishes}
    while turns:
        [name] = came(turns)
        order.append(name)
        turns.pop(name).leave()
    assert order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]


async def test_who_has_too_much_in_line_is_refused_until_something_is_over() -> None:
    line = Turns(at_once=1, per_user=2)
    first, _ = line.line_up("a"), line.line_up("a")
    with pytest.raises(TooMany, match="2 pictures"):
        line.line_up("a")
    line.line_up("b")
    first.leave()
    first.leave()
    line.line_up("a")
    with pytest.raises(TooMany):
        line.line_up("a")


async def test_who_leaves_while_waiting_takes_nobodys_place() -> None:
    line = Turns(at_once=1)
    turns = {name: line.line_up(name) for name in "abc"}
    turns["b"].leave()
    assert came(turns) == ["a"]
    turns["a"].leave()
    assert came(turns) == ["a", "c"]


async def test_an_order_that_is_cancelled_before_it_began_gives_its_place_back(client: acomfy.Client) -> None:
    line = Turns(per_user=1)
    Order(client, line, "a", acomfy.Workflow(saved())).cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    line.line_up("a")


async def test_an_order_that_fails_says_why(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("SaveImage").fails_with("the disk is full")
    order = Order(client, Turns(), "a", acomfy.Workflow(saved()))
    async for _ in order.updates(10 * MS):
        assert order.status
    assert order.status.startswith("It failed") and "the disk is full" in order.status
    assert order.pictures is None


async def test_what_is_told_of_a_failure_fits_under_a_picture(server: SimulatedServer, client: acomfy.Client) -> None:
    server.on("SaveImage").fails_with("no room " * 1000)
    order = Order(client, Turns(), "a", acomfy.Workflow(saved()))
    async for _ in order.updates(10 * MS):
        assert len(order.status) <= 1000
    assert order.status.startswith("It failed")


async def test_an_order_outlives_a_restart_of_comfyui(server: SimulatedServer, client: acomfy.Client) -> None:
    script = server.on("SaveImage").once().waits_for(asyncio.Event())
    order = Order(client, Turns(), "a", acomfy.Workflow(saved()))
    await server.wait_for(lambda: script.calls)
    await server.faults.restart()
    async for _ in order.updates(10 * MS):
        pass
    assert order.status == "Done."


# --- Telegram ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def telegram(client: acomfy.Client, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Telegram]:
    monkeypatch.setattr(telegram_bot, "INTERVAL", 20 * MS)
    service = Telegram()
    async with service.running():
        session = AiohttpSession(api=TelegramAPIServer.from_base(service.url))
        async with Bot("1:token", session=session) as bot:
            dispatcher = telegram_bot.Painter(client).dispatcher()
            polling = asyncio.create_task(dispatcher.start_polling(bot, handle_signals=False))
            yield service
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)


async def test_telegram_gets_a_picture(telegram: Telegram, server: SimulatedServer) -> None:
    telegram.write(5, "/paint a fox in the snow")
    [message] = await telegram.wait_for_text("Done")
    assert message.picture is not None and message.picture.startswith(b"\x89PNG")
    assert not message.buttons
    assert texts(server) == ["a fox in the snow"]


async def test_telegram_shows_progress_with_a_preview_and_cancels_for_its_owner_alone(
    telegram: Telegram, server: SimulatedServer
) -> None:
    script = server.on("VAEDecode").waits_for(asyncio.Event())
    telegram.write(5, "/paint a fox")
    await server.wait_for(lambda: script.calls)
    [message] = await telegram.wait_for(
        lambda: [m for m in telegram.messages.values() if m.text.startswith("Painting") and m.picture]
    )
    assert message.buttons and message.picture.startswith(b"\xff\xd8")
    telegram.press(6, message.message_id)
    await telegram.wait_for(lambda: telegram.answers == ["It is not yours to cancel, or over."])
    telegram.press(5, message.message_id)
    await telegram.wait_for_text("Cancelled")
    async with asyncio.timeout(5):
        await server.wait_idle()


async def test_telegram_lets_nobody_flood_the_others(telegram: Telegram, server: SimulatedServer) -> None:
    event = asyncio.Event()
    server.on("KSampler").waits_for(event)
    for number in range(7):
        telegram.write(5, f"/paint flood {number}")
    await telegram.wait_for_text("You have 5 pictures in line", 2)
    telegram.write(6, "/paint a quiet wish")
    await telegram.wait_for(lambda: len(telegram.messages) == 8)
    event.set()
    await telegram.wait_for_text("Done", 6)
    assert "a quiet wish" in texts(server)[:4]


async def test_telegram_is_told_in_the_end_however_often_it_refuses(
    telegram: Telegram, server: SimulatedServer
) -> None:
    event = asyncio.Event()
    script = server.on("VAEDecode").waits_for(event)
    telegram.write(5, "/paint a fox")
    await server.wait_for(lambda: script.calls)
    await telegram.wait_for_text("Painting")
    telegram.refusals += [refusal(429, "Too Many Requests", retry_after=1), refusal(502, "Bad Gateway")]
    event.set()
    [message] = await telegram.wait_for_text("Done")
    assert message.picture is not None and message.picture.startswith(b"\x89PNG")
    assert telegram.refusals == []


async def test_who_deletes_telegrams_answer_cancels_it(telegram: Telegram, server: SimulatedServer) -> None:
    event = asyncio.Event()
    server.on("CheckpointLoaderSimple").waits_for(event)
    server.on("VAEDecode").waits_for(asyncio.Event())
    telegram.write(5, "/paint a fox")
    [message] = await telegram.wait_for_text("Painting")
    message.deleted = True
    event.set()
    async with asyncio.timeout(5):
        await server.wait_for(lambda: [entry.state for entry in server.ledger.values()] == ["cancelled"])


async def test_telegram_explains_itself(telegram: Telegram) -> None:
    telegram.write(5, "/paint")
    await telegram.wait_for_text("Write /paint and what to paint.")


# --- Discord -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def chat(server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Discord]:
    monkeypatch.setattr(discord_bot, "INTERVAL", 20 * MS)
    service = Discord()
    async with service.running():
        monkeypatch.setattr(Route, "BASE", service.url)
        gateway = yarl.URL(service.url.replace("http", "ws") + "/gateway")
        monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", gateway)
        bot = discord_bot.Painter(server.url)
        running = asyncio.create_task(bot.start("token"))
        async with asyncio.timeout(20):
            await service.ready.wait()
        yield service
        await bot.close()
        await asyncio.gather(running, return_exceptions=True)


async def test_discord_gets_a_picture(chat: Discord, server: SimulatedServer) -> None:
    assert chat.commands == ["paint"]
    await chat.command(5, "a fox in the snow")
    [message] = await chat.wait_for_text("Done")
    assert message.picture is not None and message.picture.startswith(b"\x89PNG")
    assert not message.buttons
    assert texts(server) == ["a fox in the snow"]


async def test_discord_shows_progress_with_a_preview_and_cancels_for_its_owner_alone(
    chat: Discord, server: SimulatedServer
) -> None:
    script = server.on("VAEDecode").waits_for(asyncio.Event())
    token = await chat.command(5, "a fox")
    await server.wait_for(lambda: script.calls)
    [message] = await chat.wait_for(
        lambda: [m for m in chat.messages.values() if m.text.startswith("Painting") and m.picture]
    )
    assert message.buttons and message.picture.startswith(b"\xff\xd8")
    await chat.press(6, message.text, token)
    [refusal] = await chat.wait_for_text("It is not yours to cancel.")
    assert refusal.private
    await chat.press(5, message.text, token)
    await chat.wait_for_text("Cancelled")
    async with asyncio.timeout(5):
        await server.wait_idle()


async def test_discord_lets_nobody_flood_the_others(chat: Discord, server: SimulatedServer) -> None:
    event = asyncio.Event()
    server.on("KSampler").waits_for(event)
    for number in range(7):
        await chat.command(5, f"flood {number}")
    await chat.wait_for_text("You have 5 pictures in line", 2)
    await chat.command(6, "a quiet wish")
    await chat.wait_for(lambda: len(chat.messages) == 8)
    event.set()
    await chat.wait_for_text("Done", 6)
    assert "a quiet wish" in texts(server)[:4]


async def test_discord_is_told_after_a_quarter_of_an_hour_too(
    chat: Discord, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = asyncio.Event()
    script = server.on("VAEDecode").waits_for(event)
    await chat.command(5, "a fox")
    await server.wait_for(lambda: script.calls)
    monkeypatch.setattr(discord.Interaction, "is_expired", lambda self: True)
    event.set()
    [message] = await chat.wait_for_text("Done")
    assert message.picture is not None and message.picture.startswith(b"\x89PNG")
    assert chat.edited_later >= 1


async def test_who_deletes_discords_answer_cancels_it(chat: Discord, server: SimulatedServer) -> None:
    event = asyncio.Event()
    server.on("CheckpointLoaderSimple").waits_for(event)
    server.on("VAEDecode").waits_for(asyncio.Event())
    await chat.command(5, "a fox")
    [message] = await chat.wait_for_text("Painting")
    message.deleted = True
    event.set()
    async with asyncio.timeout(5):
        await server.wait_for(lambda: [entry.state for entry in server.ledger.values()] == ["cancelled"])


def test_the_bot_needs_no_comfyui_to_start() -> None:
    assert isinstance(discord_bot.Painter("http://127.0.0.1:9"), discord.Client)


@pytest.mark.parametrize(("bot", "name"), [(discord_bot, "DISCORD_TOKEN"), (telegram_bot, "TELEGRAM_TOKEN")])
def test_a_bot_without_its_token_says_so(bot: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match=f"{name} is not set"):
        runpy.run_path(str(bot.__file__), run_name="__main__")
