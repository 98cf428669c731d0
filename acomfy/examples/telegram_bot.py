"""Paint in Telegram: a bot that answers /paint.

TELEGRAM_TOKEN=... python -m acomfy.examples.telegram_bot [http://127.0.0.1:8188]

It needs ``pip install "acomfy[telegram]"`` and a bot's token. The answer tells how it goes, edited every `INTERVAL`
seconds, which Telegram's limits allow, and becomes a photo with the first preview; a button cancels it, for its owner
alone. Users take turns, however many prompts one of them sends. Whoever deletes the answer cancels it, too.
"""

import asyncio
import os
import sys

from aiogram import Bot, Dispatcher, F
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramForbiddenError,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
)
from aiogram.filters import Command, CommandObject
from aiogram.types import (
    BufferedInputFile,
    CallbackQuery,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    InputMediaPhoto,
    Message,
)

import acomfy
from acomfy import examples
from acomfy.examples.orders import Order, TooMany, Turns

INTERVAL = 3.0


class Painter:
    """The bot's handlers, and the orders under way by the message that shows them."""

    def __init__(self, comfy: acomfy.Client) -> None:
        self.comfy = comfy
        self.turns = Turns()
        self.orders: dict[tuple[int, int], tuple[int, Order]] = {}

    def dispatcher(self) -> Dispatcher:
        dispatcher = Dispatcher()
        dispatcher.message(Command("paint"))(self.paint)
        dispatcher.callback_query(F.data == "cancel")(self.cancel)
        return dispatcher

    async def paint(self, message: Message, command: CommandObject) -> None:
        if not command.args or message.from_user is None:
            await message.reply("Write /paint and what to paint.")
            return
        seed = message.message_id
        workflow = examples.load("text_to_image").replace({"Positive.text": command.args, "3.seed": seed})
        try:
            order = Order(self.comfy, self.turns, message.from_user.id, workflow)
        except TooMany as error:
            await message.reply(str(error))
            return
        button = InlineKeyboardMarkup(inline_keyboard=[[InlineKeyboardButton(text="Cancel", callback_data="cancel")]])
        key: tuple[int, int] | None = None
        try:
            answer = Answer(await message.reply(order.status, reply_markup=button))
            key = (answer.message.chat.id, answer.message.message_id)
            self.orders[key] = (message.from_user.id, order)
            async for _ in order.updates(INTERVAL):
                if order.pictures is None and not await answer.show(order.status, order.preview, button):
                    return
            await answer.show(order.status, order.pictures[0][1] if order.pictures else None, None)
        finally:
            order.cancel()  # does nothing when it is over
            if key is not None:
                del self.orders[key]

    async def cancel(self, query: CallbackQuery) -> None:
        message = query.message
        owner, order = self.orders.get((message.chat.id, message.message_id), (0, None)) if message else (0, None)
        if order is None or owner != query.from_user.id:
            await query.answer("It is not yours to cancel, or over.")
            return
        order.cancel()
        await query.answer("Cancelled.")


class Answer:
    """The bot's message, whose words and picture change."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.has_photo = False

    async def show(self, text: str, picture: bytes | None, button: InlineKeyboardMarkup | None) -> bool:
        """Change it, as soon as Telegram lets us; False when it was deleted, or we were sent away."""
        while True:
            try:
                await self._edit(text, picture, button)
            except TelegramRetryAfter as error:
                await asyncio.sleep(error.retry_after)
            except (TelegramNetworkError, TelegramServerError):
                await asyncio.sleep(INTERVAL)
            except TelegramBadRequest as error:
                return "message to edit not found" not in error.message  # most often, nothing changed
            except TelegramForbiddenError:
                return False
            else:
                return True

    async def _edit(self, text: str, picture: bytes | None, button: InlineKeyboardMarkup | None) -> None:
        if picture is not None:
            media = InputMediaPhoto(media=BufferedInputFile(picture, "picture.png"), caption=text)
            await self.message.edit_media(media, reply_markup=button)
            self.has_photo = True
        elif self.has_photo:
            await self.message.edit_caption(caption=text, reply_markup=button)
        else:
            await self.message.edit_text(text, reply_markup=button)


async def main(server: str = "http://127.0.0.1:8188") -> None:
    async with acomfy.Client(server) as comfy, Bot(os.environ["TELEGRAM_TOKEN"]) as bot:
        await Painter(comfy).dispatcher().start_polling(bot)


if __name__ == "__main__":
    if "TELEGRAM_TOKEN" not in os.environ:
        raise SystemExit("TELEGRAM_TOKEN is not set; a bot gets its token from https://t.me/BotFather")
    asyncio.run(main(*sys.argv[1:]))
