"""A fleet of ComfyUI workers on NATS JetStream."""
