"""Get pictures over the WebSocket, without a file on the server (Method 2 of ComfyUI's guide).

python -m acomfy.examples.streamed_images [http://127.0.0.1:8188]
"""

import asyncio
import sys

import acomfy
from acomfy import examples


async def main(server: str = "http://127.0.0.1:8188") -> None:
    workflow = examples.load("text_to_image_stream")  # it ends in SaveImageWebsocket
    workflow["6"]["inputs"]["text"] = "masterpiece best quality man"
    workflow["3"]["inputs"]["seed"] = 5

    async with acomfy.Client(server) as client:
        result = await client.run(workflow)
        for output in result["save_image_websocket_node"]:
            image = await output.image()  # a PIL.Image.Image
            print(f"{output.node_id}: {image.width}x{image.height} {image.format}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
