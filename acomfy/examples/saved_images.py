"""Get pictures that SaveImage wrote on the server (Method 1 of ComfyUI's guide).

python -m acomfy.examples.saved_images [http://127.0.0.1:8188]
"""

import asyncio
import sys

import acomfy
from acomfy import examples


async def main(server: str = "http://127.0.0.1:8188") -> None:
    workflow = examples.load("text_to_image")  # or acomfy.Workflow.load("workflow_api.json")
    workflow["6"]["inputs"]["text"] = "masterpiece best quality man"
    workflow["3"]["inputs"]["seed"] = 5

    async with acomfy.Client(server) as client:
        result = await client.run(workflow)
        for output in result.images:
            path = await output.save("out/")
            print(f"node {output.node_id}: {path}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
