"""The graph that a prompt is made of: load it, find nodes, edit it, ask about it, encode it."""

from .compare import Change
from .document import Node, Workflow
from .encode import EncodedGraph, encode
from .graph import Graph, check_format, describe, is_link, title_of
from .loading import Found, ObjectInfo, definitions_of
from .requirements import Requirement
from .walk import Link

__all__ = [
    "Change",
    "EncodedGraph",
    "Found",
    "Graph",
    "Link",
    "Node",
    "ObjectInfo",
    "Requirement",
    "Workflow",
    "check_format",
    "definitions_of",
    "describe",
    "encode",
    "is_link",
    "title_of",
]
