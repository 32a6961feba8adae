"""One graph into stages, at its tapped tensors.

A node belongs to the stage of the first tap at or after it in order of execution. What a later stage needs of an
earlier one crosses the cut in the state, a tuple whose last entry is the tapped tensor. Between two stages, serving
drops the samples that have left; so what crosses must stay right for any subset of the rows. Two runs with different
batch sizes tell what a value is:

- a tensor whose first dimension is the batch crosses, and loses rows;
- a tensor that is the same in both runs (a table of positions) or a number that is the same crosses as it is;
- a number that is the batch size is read from the tapped tensor, after the rows have gone;
- another number or shape is computed again in the later stage;
- a tensor that is none of this couples samples, and the network cannot be cut there.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tenfold.systems.boosted_exits.attach.capture import CannotCut, Captured, Keys


class _Kind(Enum):
    BATCHED = auto()
    SHARED = auto()
    BATCH_SIZE = auto()
    DERIVED = auto()
    CONTAINER = auto()
    COUPLED = auto()


@dataclass(frozen=True)
class Stages:
    """A network in stages.

    Attributes:
        modules: N modules; the first takes the batch, each further one the state of the one before, a tuple whose
            last entry is the tapped tensor; the last gives the logits.
        batched: per stage, which entries of its state have the batch as first dimension.
        kept: per stage but the last, where the input asked for stands in its state; ``None`` if it was not asked for.
    """

    modules: list[nn.Module]
    batched: list[tuple[bool, ...]]
    kept: list[int | None]


def split(
    captured: Captured,
    keys: Keys,
    runs: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    *,
    copied: Sequence[int] = (),
    keep: int | None = None,
    keep_in: Sequence[int] = (),
) -> Stages:
    """Split a captured network at its taps.

    Args:
        captured: the network.
        keys: how a batch is made up.
        runs: flat tensors of two batches of different size.
        copied: those taps (counted from 0) that a later layer changes in place: it works on a copy.
        keep: an input (counted from 0) that is to cross the cuts even where the network does not need it.
        keep_in: the stages whose state has it.

    Raises:
        CannotCut: a tensor that couples samples, or a structure of tensors, crosses a cut.
    """
    first, second = _record(captured.module, runs[0]), _record(captured.module, runs[1])
    sizes = (runs[0][0].shape[0], runs[1][0].shape[0])
    kinds = {node: _kind((first[node], second[node]), sizes) for node in first}
    graph = captured.module.graph
    taps = [_tensor_node(nodes, first) for nodes in captured.taps]
    for n in copied:
        with graph.inserting_after(taps[n]):
            copy = graph.call_method("clone", (taps[n],))
        taps[n].replace_all_uses_with(copy)
        copy.args = (taps[n],)
        kinds[copy] = kinds[taps[n]]
    return _Splitter(captured.module, keys, taps, kinds).split(keep, keep_in)


class _Splitter:
    def __init__(self, module: fx.GraphModule, keys: Keys, taps: list[fx.Node], kinds: dict[fx.Node, _Kind]) -> None:
        self.module = module
        self.keys = keys
        self.taps = taps
        self.kinds = kinds
        self.nodes = [node for node in module.graph.nodes if node.op not in ("output", "get_attr")]
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        (output,) = (node for node in module.graph.nodes if node.op == "output")
        self.logits: fx.Node = output.args[0]
        self.stage_of = self._assign()

    def _assign(self) -> dict[fx.Node, int]:
        waiting = list(self.taps)
        last = len(waiting)
        stage_of: dict[fx.Node, int] = {}
        for node in self.nodes:
            stage_of[node] = last - len(waiting)
            source = node.args[0] if node.target is operator.getitem else None
            if isinstance(source, fx.Node) and self.kinds.get(source) is _Kind.CONTAINER:
                stage_of[node] = stage_of[source]  # its tensors may cross a cut, a structure of tensors may not
            while waiting and waiting[0] in stage_of:
                waiting.pop(0)
        return stage_of

    def split(self, keep: int | None, keep_in: Sequence[int]) -> Stages:
        last = len(self.taps)
        states: list[list[fx.Node]] = [[] for _ in self.taps]
        needed = [self.logits]
        for stage in range(last, 0, -1):
            crossing: dict[fx.Node, None] = {}
            for node in self.nodes:
                if self.stage_of[node] == stage:
                    needed.extend(node.all_input_nodes)
            for node in needed:
                self._find_crossing(node, stage, crossing)
            if keep is not None and stage - 1 in keep_in:
                crossing[self.inputs[keep]] = None
            tap = self.taps[stage - 1]
            states[stage - 1] = [*(node for node in crossing if node is not tap), tap]
            needed = list(states[stage - 1])
        entries: list[dict[fx.Node, Any]] = [self._input_entries()]
        entries += [{node: n for n, node in enumerate(state)} for state in states]
        modules: list[nn.Module] = [
            self._stage(n, entries[n], states[n] if n < last else None) for n in range(last + 1)
        ]
        batched = [tuple(self.kinds[node] is _Kind.BATCHED for node in state) for state in states]
        kept = [
            state.index(self.inputs[keep]) if keep is not None and n in keep_in else None
            for n, state in enumerate(states)
        ]
        return Stages(modules, [*batched, (True,)], kept)

    def _input_entries(self) -> dict[fx.Node, Any]:
        if self.keys is None:
            return {self.inputs[0]: None}
        keys: Sequence[Any] = self.keys if isinstance(self.keys, tuple) else range(self.keys)
        return dict(zip(self.inputs, keys, strict=True))

    def _find_crossing(self, node: fx.Node, stage: int, crossing: dict[fx.Node, None]) -> None:
        """Add to ``crossing`` what must enter a stage for a node to be at hand there."""
        if node.op == "get_attr" or self.stage_of[node] == stage:
            return
        kind = self.kinds[node]
        if kind in (_Kind.BATCHED, _Kind.SHARED):
            crossing[node] = None
        elif kind is _Kind.DERIVED:
            for source in node.all_input_nodes:
                self._find_crossing(source, stage, crossing)
        elif kind is not _Kind.BATCH_SIZE:
            raise CannotCut(
                f"{node.name} crosses the cut after {self.taps[stage - 1].name} and is not one row per input"
            )

    def _stage(self, stage: int, entries: dict[fx.Node, Any], leaving: list[fx.Node] | None) -> fx.GraphModule:
        graph = fx.Graph()
        state = graph.placeholder("state")
        here = {
            node: state if key is None else graph.call_function(operator.getitem, (state, key))
            for node, key in entries.items()
        }

        def at_hand(node: fx.Node) -> fx.Node:
            if node not in here:
                if node.op == "get_attr":
                    here[node] = graph.get_attr(str(node.target))
                elif self.stage_of[node] != stage and self.kinds[node] is _Kind.BATCH_SIZE:
                    here[node] = graph.call_method("size", (here[self.taps[stage - 1]], 0))
                else:
                    here[node] = graph.node_copy(node, at_hand)
            return here[node]

        for node in self.nodes:
            if self.stage_of[node] == stage:
                at_hand(node)
        graph.output(at_hand(self.logits) if leaving is None else tuple(at_hand(node) for node in leaving))
        return fx.GraphModule(self.module, graph, class_name=f"Stage{stage}")


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def _record(module: fx.GraphModule, tensors: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(*tensors)
    return recorder.values


def _kind(values: tuple[Any, Any], sizes: tuple[int, int]) -> _Kind:
    first, second = values
    if isinstance(first, Tensor):
        if first.dim() and (first.shape[0], second.shape[0]) == sizes and first.shape[1:] == second.shape[1:]:
            return _Kind.BATCHED
        same = first.shape == second.shape and torch.equal(first, second)
        return _Kind.SHARED if same else _Kind.COUPLED
    if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(first)):
        return _Kind.CONTAINER
    if first == second:
        return _Kind.SHARED
    return _Kind.BATCH_SIZE if values == sizes else _Kind.DERIVED


def _tensor_node(nodes: list[fx.Node], values: dict[fx.Node, Any]) -> fx.Node:
    """The node of the first tensor of a module's output."""
    for node in nodes:
        if isinstance(values[node], Tensor):
            return node
        if isinstance(values[node], tuple | list):
            leaves = [isinstance(entry, Tensor) for entry in values[node]]
            parts = [user for user in node.users if user.target is operator.getitem]
            wanted = [part for part in parts if True in leaves and part.args[1] == leaves.index(True)]
            for duplicate in wanted[1:]:
                duplicate.replace_all_uses_with(wanted[0])
            if wanted:
                return wanted[0]
    raise CannotCut("the network does not use the tapped tensor")
