"""Paint in Discord: a bot with the command /paint.

DISCORD_TOKEN=... python -m acomfy.examples.discord_bot [http://127.0.0.1:8188]

It needs ``pip install "acomfy[discord]"`` and a bot's token. The answer shows where the prompt is in line, then its
progress with a preview, edited every `INTERVAL` seconds, which Discord's limits allow; a button cancels it, for its
owner alone. Users take turns, however many prompts one of them sends. Whoever deletes the answer cancels it, too.
"""

import io
import os
import sys
from contextlib import suppress
from typing import Any

import aiohttp
import discord
from discord import app_commands

import acomfy
from acomfy import examples
from acomfy.examples.orders import Order, TooMany, Turns

INTERVAL = 2.5


class Cancel(discord.ui.View):
    """The button under a picture that is being painted."""

    def __init__(self, order: Order, owner: int) -> None:
        super().__init__(timeout=None)
        self.order, self.owner = order, owner

    @discord.ui.button(label="Cancel", style=discord.ButtonStyle.secondary)
    async def cancel(self, interaction: discord.Interaction, button: discord.ui.Button["Cancel"]) -> None:
        if interaction.user.id != self.owner:
            await interaction.response.send_message("It is not yours to cancel.", ephemeral=True)
            return
        self.order.cancel()
        await interaction.response.defer()


class Painter(discord.Client):
    """The bot. Its client of ComfyUI lives as long as it does; it may start before ComfyUI does."""

    def __init__(self, server: str) -> None:
        super().__init__(intents=discord.Intents(guilds=True))
        self.comfy = acomfy.Client(server)
        self.turns = Turns()
        self.tree = app_commands.CommandTree(self)
        self.tree.command(name="paint", description="Paint a picture")(self.paint)

    async def setup_hook(self) -> None:
        await self.tree.sync()

    async def close(self) -> None:
        await self.comfy.aclose()
        await super().close()

    async def paint(self, interaction: discord.Interaction, text: str) -> None:
        workflow = examples.load("text_to_image").replace({"Positive.text": text, "3.seed": interaction.id % 2**50})
        try:
            order = Order(self.comfy, self.turns, interaction.user.id, workflow)
        except TooMany as error:
            await interaction.response.send_message(str(error), ephemeral=True)
            return
        view = Cancel(order, interaction.user.id)
        try:
            sent = await interaction.response.send_message(order.status, view=view)
            answer = Answer(self, interaction, sent.message_id)
            async for _ in order.updates(INTERVAL):
                if order.pictures is None:
                    preview = order.preview
                    with suppress(discord.DiscordServerError, aiohttp.ClientError):  # the next one may get through
                        await answer.show(order.status, [] if preview is None else [("preview.jpg", preview)])
            await answer.show(order.status, order.pictures or [], view=None)
        except discord.NotFound:
            pass  # it was deleted: nobody waits for it any more
        finally:
            order.cancel()  # does nothing when it is over
            view.stop()


class Answer:
    """The answer to a command. Discord has it edited in that capacity for a quarter of an hour, then as any message."""

    def __init__(self, bot: discord.Client, interaction: discord.Interaction, message_id: int | None) -> None:
        self.bot, self.interaction, self.message_id = bot, interaction, message_id

    async def show(self, text: str, pictures: list[tuple[str, bytes]], **changes: Any) -> None:
        files = [discord.File(io.BytesIO(data), name) for name, data in pictures]
        channel, message = self.interaction.channel_id, self.message_id
        if self.interaction.is_expired() and channel is not None and message is not None:
            later = self.bot.get_partial_messageable(channel).get_partial_message(message)
            await later.edit(content=text, attachments=files, **changes)
        else:
            await self.interaction.edit_original_response(content=text, attachments=files, **changes)


if __name__ == "__main__":
    if "DISCORD_TOKEN" not in os.environ:
        raise SystemExit(
            "DISCORD_TOKEN is not set; a bot gets its token at https://discord.com/developers/applications"
        )
    Painter(*(sys.argv[1:] or ["http://127.0.0.1:8188"])).run(os.environ["DISCORD_TOKEN"])
