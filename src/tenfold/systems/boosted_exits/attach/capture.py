"""A network as one graph in order of execution, by ``torch.fx`` or by ``torch.export``, with its tapped tensors marked.

Both captures take the batch as flat tensors and end in the logits, so that splitting need not know which one it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tenfold.models.taps import find_module, tap_hooks
from tenfold.systems.boosted_exits.attach.attach_exits import (
    AttachedExits,
    Inputs,
    as_arguments,
    call_network,
    network_logits,
)

Keys = tuple[str, ...] | int | None
"""How flat tensors make up a batch: names of a dict, length of a tuple, or ``None`` for one tensor."""


class CannotCut(Exception):
    """Why one way of cutting does not work; the next one is tried."""


@dataclass(frozen=True)
class Captured:
    """A network as one graph.

    Attributes:
        module: takes the tensors of a batch, gives the logits ``(batch, classes)``; its parameters are the network's.
        taps: for each tap, the nodes that make up the output of the tapped module.
    """

    module: fx.GraphModule
    taps: list[list[fx.Node]]


def flatten(inputs: Inputs) -> tuple[Keys, tuple[Tensor, ...]]:
    """The tensors of a batch, and how they make it up."""
    args, kwargs = as_arguments(inputs)
    if isinstance(inputs, Tensor):
        return None, args
    return (tuple(kwargs), tuple(kwargs.values())) if isinstance(inputs, Mapping) else (len(args), args)


def arguments(keys: Keys, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from flat tensors."""
    return ((), dict(zip(keys, tensors, strict=True))) if isinstance(keys, tuple) else (tuple(tensors), {})


def capture_fx(exits: AttachedExits, example: Inputs) -> Captured:
    """Trace symbolically. Layers of torch.nn stay modules, so that the stages follow ``train()`` and ``eval()``."""
    keys, tensors = flatten(example)
    attributes = set(vars(exits.trunk))
    tracer = _Tracer(exits, keys, len(tensors))
    try:
        graph = tracer.trace(exits.trunk)
        module = fx.GraphModule(exits.trunk, graph)
    finally:
        for name in set(vars(exits.trunk)) - attributes:  # the tracer leaves tensor constants on the trunk
            delattr(exits.trunk, name)
    return Captured(module, [tracer.outputs[path] for path in exits.taps])


class _Tracer(fx.Tracer):
    def __init__(self, exits: AttachedExits, keys: Keys, inputs: int) -> None:
        super().__init__(param_shapes_constant=True)
        self.exits = exits
        self.input_keys = keys
        self.inputs = inputs
        self.paths = {find_module(exits.trunk, path): path for path in exits.taps}
        self.outputs: dict[str, list[fx.Node]] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # The default makes every argument symbolic, those that the example leaves out too; models test these for None.
        proxies = [self.create_proxy("placeholder", f"input_{n}", (), {}) for n in range(self.inputs)]
        args, kwargs = arguments(self.input_keys, proxies)
        whole = partial(call_network, self.exits.trunk, args, kwargs)
        return lambda root: self._logits(whole(partial(root_fn, root))), [self.root]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds_tap = any(path.startswith(f"{module_qualified_name}.") for path in self.exits.taps)
        return super().is_leaf_module(m, module_qualified_name) and not holds_tap

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if m in self.paths:
            leaves = pytree.tree_leaves(output)
            self.outputs[self.paths[m]] = [leaf.node for leaf in leaves if isinstance(leaf, fx.Proxy)]
        return output

    def _logits(self, output: Any) -> Any:
        if self.exits.output is not network_logits:
            return self.exits.output(output)
        if isinstance(output, fx.Proxy):  # has every attribute, so that asking for its logits means nothing
            return output
        logits = output.logits if hasattr(output, "logits") else None
        return next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, fx.Proxy)), logits)


@torch.library.custom_op("tenfold::mark_tap", mutates_args=())
def _mark_tap(x: Tensor, tap: int) -> Tensor:
    return x.clone()


@_mark_tap.register_fake
def _(x: Tensor, tap: int) -> Tensor:
    return torch.empty_like(x)


class _Whole(nn.Module):
    def __init__(self, exits: AttachedExits, keys: Keys) -> None:
        super().__init__()
        self.trunk = exits.trunk
        self.output = exits.output
        self.keys = keys

    def forward(self, *tensors: Tensor) -> Tensor:
        args, kwargs = arguments(self.keys, tensors)
        return self.output(call_network(self.trunk, args, kwargs))


def capture_export(exits: AttachedExits, example: Inputs) -> Captured:
    """Export with a batch of any size. The mode (evaluation), the device and all other sizes are baked in.

    Args:
        exits: the network with its exits.
        example: a batch of two inputs or more.
    """
    keys, tensors = flatten(example)
    batch = tensors[0].shape[0]
    dynamic = {0: torch.export.Dim.DYNAMIC}
    shapes = tuple(dynamic if tensor.dim() and tensor.shape[0] == batch else None for tensor in tensors)
    whole = _Whole(exits, keys).eval()

    def mark(path: str, tensor: Tensor) -> Tensor:
        return torch.ops.tenfold.mark_tap(tensor, exits.taps.index(path))

    with tap_hooks(exits.trunk, exits.taps, mark), torch.no_grad():
        program = torch.export.export(whole, tensors, dynamic_shapes={"tensors": shapes})
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise CannotCut("the network changes its buffers or its inputs")

    graph = program.graph_module.graph
    attributes: dict[str, Any] = {}
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    taps: dict[int, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name not in signature.user_inputs:
            source = names.get(node.name) or constants.get(node.name)
            if source is None:
                raise CannotCut(f"the exported graph needs {node.name}, which is no tensor")
            target = source.removeprefix("trunk.")
            attributes[target] = program.constants[source] if node.name in constants else _attribute(whole, source)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.create_node("get_attr", target))
            graph.erase_node(node)
        elif node.op == "get_attr":
            attributes.setdefault(node.target, _attribute(program.graph_module, node.target))
        elif node.target is torch.ops.tenfold.mark_tap.default:
            tensor, tap = node.args
            taps[tap] = tensor
            node.replace_all_uses_with(tensor)
            graph.erase_node(node)
        elif node.op == "output":
            node.args = (node.args[0][0],)
    return Captured(fx.GraphModule(attributes, graph), [[taps[n]] for n in range(len(exits.taps))])


def _attribute(module: nn.Module, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(module.get_submodule(path), name)
