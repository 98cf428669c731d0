"""A workflow: the graph of a prompt, edited like the plain dict that it is.

Two ways to edit. What is done to the workflow as a mapping changes it: ``workflow["6"]["inputs"]["text"] = "a fox"``,
``del workflow["7"]``. Every method that edits gives another workflow and leaves this one as it is: ``replace``,
``add``, ``remove``, ``bypass``, ``rewire``, ``insert_lora``, ``randomize_seeds``.

Copies share their nodes. A node is copied when it is put in and when it is handed out, and a node that was ever handed
out is not shared any more: no edit of one workflow is seen by another.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ..captures import same
from . import compare, edit, query, seeds, walk
from .compare import Change
from .edit import Source
from .graph import Graph, check_format, check_node, title_of
from .loading import Conversion, Found, ObjectInfo, definitions_of, read
from .loading import Source as Loadable
from .requirements import Requirement, requirements
from .values import as_json, check_values, copied, copied_node
from .walk import Link

if TYPE_CHECKING:
    from ..checking import CheckReport
    from ..conversion.text import Moment


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a workflow.

    Attributes:
        title: Its title in the editor (``_meta.title``); None when it has none.
        inputs: Its inputs by name; editing them edits the workflow.
    """

    node_id: str
    class_type: str
    title: str | None
    inputs: dict[str, Any]
    _workflow: Workflow = field(default_factory=lambda: Workflow({}), repr=False, compare=False, kw_only=True)

    @property
    def outputs(self) -> list[Link]:
        """The links by which other nodes take its outputs, in the order of those nodes."""
        return [link for link in self._workflow.links() if link.source == self.node_id]

    def upstream(self) -> list[Node]:
        """Give all nodes that it needs, the nearest first."""
        return self._workflow._handed(walk.upstream(self._workflow._nodes, self.node_id))

    def downstream(self) -> list[Node]:
        """Give all nodes that need it, the nearest first."""
        return self._workflow._handed(walk.downstream(self._workflow._nodes, self.node_id))


class Workflow(MutableMapping[str, dict[str, Any]]):
    """A prompt in API format, edited like the plain dict that it is.

    Compares by content, also with a plain dict. Example::

        workflow = Workflow.load("workflow_api.json")
        workflow["6"]["inputs"]["text"] = "a fox"
        variant = workflow.replace({"3.seed": 5, "Negative.text": "blurry"})

    Attributes:
        found: What `load` found, ``str(workflow.found)`` being "prompt in PNG"; None for a workflow made otherwise.
    """

    __slots__ = ("_handed_out", "_nodes", "found")

    _nodes: dict[str, dict[str, Any]]
    _handed_out: set[str]
    found: Found | None

    def __init__(self, graph: Graph) -> None:
        """Copy a graph.

        Raises:
            WorkflowFormatError: It is not in API format.
        """
        if isinstance(graph, Workflow):
            self._nodes = graph._shareable()
        else:
            check_format(graph)
            self._nodes = {node_id: copied_node(node_id, node) for node_id, node in graph.items()}
        self._handed_out = set()
        self.found = None

    @classmethod
    def load(
        cls,
        source: Loadable,
        object_info: ObjectInfo | None = None,
        *,
        keep_unknown: bool = False,
        rng: random.Random | None = None,
        now: Moment | None = None,
    ) -> Self:
        """Load a workflow from a file's path, from its bytes, from JSON text, or from a dict.

        A file is JSON, in API format or the editor's own, or a picture, film, sound or model that ComfyUI wrote (PNG,
        WebP, JPEG, FLAC, MP4, SVG, GLB, ...): of those the prompt is taken, else the editor's workflow. ``found`` says
        which it was. A str that begins with ``{`` is JSON, any other str is a path. The file is read at once: inside a
        coroutine, do it before the work begins.

        Args:
            object_info: The node classes of the server, for the editor's format, which is converted; a path to a file
                with them will do. API format needs none.
            keep_unknown: Keep nodes of classes that the server has not, as far as that goes.
            rng: Picks among ``{a|b}`` in dynamic prompts; None takes the first option each time.
            now: The time for ``%date:...%`` in file names; None makes such a token an error.

        Raises:
            WorkflowFormatError: There is no workflow in it, or it needs ``object_info``; the message says what to do.
            UnknownNodes: Nodes are of classes that the server has not; it lists them all.
            ProtocolError: ``object_info`` is something else.
            OSError: The file cannot be read.
        """
        graph, found = read(source, Conversion(object_info, keep_unknown, rng, now))
        workflow = cls(graph)
        workflow.found = found
        return workflow

    # --- Reading and editing ---------------------------------------------------------------------------------------

    def __getitem__(self, node_id: str) -> dict[str, Any]:
        node = self._nodes[node_id]
        if node_id not in self._handed_out:
            node = self._nodes[node_id] = copied_node(node_id, node)
            self._handed_out.add(node_id)
        return node

    def __setitem__(self, node_id: str, node: Mapping[str, Any]) -> None:
        check_node(node_id, node)
        self._nodes[node_id] = copied_node(node_id, node)
        self._handed_out.discard(node_id)

    def __delitem__(self, node_id: str) -> None:
        del self._nodes[node_id]
        self._handed_out.discard(node_id)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def setdefault(self, node_id: str, default: Any = None) -> dict[str, Any]:
        """Give a node; put in ``default`` first if it is not there."""
        if node_id not in self._nodes:
            self[node_id] = default
        return self[node_id]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        nodes = other._nodes if isinstance(other, Workflow) else other
        try:
            return self._nodes == nodes or copied(self._nodes) == copied(nodes)  # a link may be a tuple
        except ValueError:
            return same(self._nodes, nodes)  # NumPy's arrays have no truth

    __hash__ = None  # type: ignore[assignment]  # it can be edited

    def __repr__(self) -> str:
        return f"<Workflow of {len(self)} nodes>"

    def _repr_html_(self) -> str:
        from ..markup import graph

        return graph(self._nodes)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workflow, (self._nodes,)

    def copy(self) -> Workflow:
        """Make a copy that shares nodes until they are edited."""
        return Workflow(self)

    def to_dict(self) -> dict[str, Any]:
        """Give the graph as a plain dict of its own, ready for ``json.dumps``; files that stand in it stay there."""
        return {node_id: copied_node(node_id, node) for node_id, node in self._nodes.items()}

    def to_json(self, indent: int | None = 2) -> str:
        """Write the graph as "Export (API)" of the editor does.

        Args:
            indent: Spaces a level; None writes one line.

        Raises:
            WorkflowError: It holds what JSON has not.
        """
        for node_id, node in self._nodes.items():
            check_values(node_id, node)
        return as_json(self.to_dict(), indent)

    # --- Finding ---------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Node:
        """Find the one node with this id, else with this title, else of this class.

        Raises:
            WorkflowError: None or several match; the message names them.
        """
        return self._handed([query.the_node(self._nodes, name)])[0]

    def find_all(
        self,
        name: str | None = None,
        *,
        class_type: str | None = None,
        title: str | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> list[Node]:
        """Find all nodes that answer to everything that is given, in the order of the graph.

        Args:
            name: An id, else a title, else a class: as `find` looks, but for all.
            class_type: A class, in which ``*`` stands for anything: ``"KSampler*"``.
            title: A title, in which ``*`` stands for anything.
            inputs: Values of inputs; ``...`` is any value: ``{"steps": 20, "lora_name": ...}``.
        """
        return self._handed(query.the_nodes(self._nodes, name, class_type, title, inputs or {}))

    def links(self) -> list[Link]:
        """Give every link, in the order of the nodes that take them."""
        return list(walk.links(self._nodes))

    def _handed(self, node_ids: Iterable[str]) -> list[Node]:
        found = []
        for node_id in node_ids:
            check_node(node_id, self._nodes[node_id])
            node = self[node_id]
            found.append(Node(node_id, node["class_type"], title_of(node), node["inputs"], _workflow=self))
        return found

    # --- Editing: another workflow each time -----------------------------------------------------------------------

    def replace(self, changes: Mapping[str | tuple[str, str], Any]) -> Workflow:
        """Make a copy with other input values; it shares all nodes but the changed ones.

        Args:
            changes: Values by ``"NODE.INPUT"``, where NODE is a node's id or its title and INPUT stands behind the
                last dot; or by ``(NODE, INPUT)`` for names with dots. A link is ``[node_id, slot]``.

        Raises:
            WorkflowError: No node or several have that title, or the node lacks that input (the server would ignore
                it silently).
        """
        return self._edited(edit.replaced(self._nodes, changes))

    def add(
        self,
        class_type: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        node_id: str | None = None,
        title: str | None = None,
    ) -> Workflow:
        """Add a node.

        Args:
            node_id: Its id; None takes `free_id`.

        Raises:
            WorkflowError: There is a node with that id.
        """
        return self._edited(edit.added(self._nodes, class_type, inputs, node_id, title))

    def free_id(self) -> str:
        """Give an id that no node has: the number after the greatest."""
        return edit.free_id(self._nodes)

    def remove(self, *nodes: str) -> Workflow:
        """Remove nodes, by id, title or class; inputs that were linked to them go too.

        Raises:
            WorkflowError: A name fits no node, or several.
        """
        return self._edited(edit.removed(self._nodes, nodes))

    def bypass(self, *nodes: str, object_info: ObjectInfo) -> Workflow:
        """Take nodes out and link what took their outputs to what they took, by type, as the editor's Bypass does.

        Where nothing of the type goes in, the inputs that took it go.

        Raises:
            WorkflowError: A name fits no node, or several; or the server has no such class.
        """
        return self._edited(edit.bypassed(self._nodes, nodes, definitions_of(object_info)))

    def rewire(self, source: Source, target: Source, *, only: Iterable[str] | None = None) -> Workflow:
        """Give whoever takes one output another instead: ``workflow.rewire(("4", 0), ("10", 0))``.

        Args:
            source: The output that is taken now, as (node, slot), or the node alone for its first one.
            target: The output that is taken then.
            only: The nodes that shall take it; None is all of them.

        Raises:
            WorkflowError: A name fits no node, or several.
        """
        return self._edited(edit.rewired(self._nodes, source, target, only))

    def insert_lora(
        self,
        lora_name: str,
        strength_model: float = 1.0,
        strength_clip: float | None = None,
        *,
        model: Source | None = None,
        clip: Source | bool = True,
        object_info: ObjectInfo | None = None,
        node_id: str | None = None,
        title: str | None = None,
    ) -> Workflow:
        """Put a LoRA loader between a model, and its clip, and all nodes that take them.

        Args:
            lora_name: The file, as the server lists it.
            strength_clip: None is that of the model.
            model: The output that gives the model; None finds the one that all models come from.
            clip: The output that gives the clip; True finds it if there is one (of several, that of the model's own
                loader), False leaves the clip as it is (LoraLoaderModelOnly).
            object_info: Finds models and clips by the types of inputs, not by the names "model" and "clip".

        Raises:
            WorkflowError: There is no model, or several; the message names them.
        """
        strengths = strength_model, strength_model if strength_clip is None else strength_clip
        definitions = None if object_info is None else definitions_of(object_info)
        return self._edited(
            edit.lora_inserted(self._nodes, lora_name, strengths, model, clip, definitions, node_id, title)
        )

    def randomize_seeds(self, rng: random.Random, object_info: ObjectInfo) -> Workflow:
        """Draw a new value for every seed, within its range; all else stays.

        A seed is what the server's definitions make one: an INT input that the editor would change after each run; of
        a node that gives out numbers (PrimitiveInt) only what another node takes for its seed. Never greater than
        2**50, as far as the editor goes, nor negative where the range allows.
        """
        return self.replace(seeds.randomized(self._nodes, rng, definitions_of(object_info)))

    def _edited(self, changes: edit.Changes) -> Workflow:
        nodes = self._shareable()
        for node_id, node in changes.items():
            if node is None:
                del nodes[node_id]
            else:
                nodes[node_id] = copied_node(node_id, node)
        copy = Workflow.__new__(Workflow)
        copy._nodes, copy._handed_out, copy.found = nodes, set(), None
        return copy

    # --- Asking ----------------------------------------------------------------------------------------------------

    def seeds(self, object_info: ObjectInfo | None = None) -> dict[tuple[str, str], int]:
        """Give the value of every seed by (node id, input); without ``object_info`` it is the name that decides."""
        definitions = None if object_info is None else definitions_of(object_info)
        found = seeds.seeds(self._nodes, definitions)
        return {(node_id, name): self._nodes[node_id]["inputs"][name] for node_id, name, _ in found}

    def requirements(self, object_info: ObjectInfo | None = None) -> list[Requirement]:
        """List the models and files that it needs on the server, and whether the server has them.

        Without ``object_info`` models are known by their file names' endings, and nothing is known of the server.
        """
        return list(requirements(self._nodes, None if object_info is None else definitions_of(object_info)))

    def check(
        self, object_info: ObjectInfo, *, targets: Collection[str] | None = None, version: str | None = None
    ) -> CheckReport:
        """Find what the server would refuse, without sending anything: empty, and false, when nothing.

        ``report.raise_for_problems()`` raises what submitting the workflow would raise.

        Args:
            targets: The output nodes to run, as for ``submit``; None is all.
            version: The server's version, for example "0.3.64"; None goes by the definitions.

        Raises:
            ProtocolError: ``object_info`` is something else.
        """
        from ..checking import check

        return check(self._nodes, definitions_of(object_info), targets=targets, version=version)

    def diff(self, other: Graph) -> list[Change]:
        """Say what changed from this workflow to another; empty when nothing did that is sent or seen.

        Raises:
            WorkflowFormatError: The other is not in API format.
        """
        return compare.diff(self._nodes, Workflow(other)._nodes)

    def content_hash(self) -> str:
        """Hash what it does, as 64 hexadecimal digits: equal for workflows that send the same nodes and inputs.

        Titles and all else of ``_meta`` do not count, nor the order of keys and nodes, nor whether a number is written
        8 or 8.0 (the editor makes one of the other). Node ids do count. The same in every process and version.

        Raises:
            WorkflowError: It holds what JSON has not.
        """
        return compare.content_hash(self._nodes)

    def _shareable(self) -> dict[str, dict[str, Any]]:
        """Give the nodes for another workflow: copies of those that somebody may still edit."""
        nodes = dict(self._nodes)
        for node_id in self._handed_out:
            nodes[node_id] = copied_node(node_id, nodes[node_id])
        return nodes
