"""The asyncio client for ComfyUI."""
