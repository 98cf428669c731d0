"""The graph that a prompt is made of: load it, find nodes, set inputs, encode it."""

from .document import Node, Workflow
from .encode import EncodedGraph, encode
from .graph import Graph, check_format, describe, title_of

__all__ = ["EncodedGraph", "Graph", "Node", "Workflow", "check_format", "describe", "encode", "title_of"]
