"""Operations of kernels that PyTorch's ``FlopCounterMode`` takes for nothing, and a watch for those that nobody knows.

Two floating-point operations per multiply-add of a product, as in PyTorch's own formulas. What no product is (pointwise
functions, normalization, pooling, reductions, moving of data) counts nothing by the convention.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Shape = Sequence[int]

# Parts of the names of kernels that hold products, or other work far above one operation per number.
_HEAVY_WORDS = frozenset(
    [
        *("mm", "addmm", "bmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "vdot", "matmul"),
        *("linalg", "conv", "convolution", "conv2d", "rnn", "lstm", "gru", "attention", "linear", "bilinear"),
        *("trilinear", "einsum", "cdist", "solve", "cholesky", "svd", "eig", "eigh", "qr", "lu"),
        *("inverse", "matrix", "fft", "encoder"),
    ]
)
# Products that move nothing but numbers already counted, or shapes only.
_LIGHT_KERNELS = frozenset({"aten::matrix_H", "aten::mH", "aten::linalg_vector_norm", "aten::linalg_cross"})
_OWN_NAMESPACES = frozenset({"aten", "prim", "prims", "tenfold", "profiler", "c10d", "_c10d_functional"})
# torchvision's kernels sample and select; its one convolution does not.
_LIGHT_FOREIGN = frozenset(
    f"torchvision::{name}" for name in ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
)


def _matrix_vector(matrix: Shape, vector: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrix_vector(bias: Shape, matrix: Shape, vector: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _dot(first: Shape, second: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(first)


def _added_matrices(bias: Shape, first: Shape, second: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(first) * second[-1]


def _integer_matrices(first: Shape, second: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(first) * second[-1]


def _trilinear(
    x1: Shape,
    weight: Shape,
    x2: Shape,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    summed: Sequence[int],
    *rest: Any,
    **_: Any,
) -> int:
    """``nn.Bilinear``: a product of the first input with the weight, then one with the second input."""
    expanded = []
    for shape, new in ((x1, expand1), (weight, expand2), (x2, expand3)):
        full = list(shape)
        for axis in sorted(new):
            full.insert(axis, 1)
        expanded.append(full)
    space = [max(sizes) for sizes in zip(*expanded, strict=True)]
    reduced = math.prod(expanded[0][axis] for axis in summed)
    return 2 * (math.prod(space) + math.prod(space) // reduced)


def _distances(first: Shape, second: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(first) * second[-2]


def _recurrent_layer(x: Shape, input_weight: Shape, hidden_weight: Shape, *rest: Any, **_: Any) -> int:
    """One layer in one direction (oneDNN): input ``(steps, batch, features)``, weights ``(gates * hidden, ...)``."""
    return 2 * math.prod(x[:-1]) * (math.prod(input_weight) + math.prod(hidden_weight))


def _recurrent_network(x: Shape, weights: Sequence[Any], *rest: Any, **_: Any) -> int:
    """All layers and directions (cuDNN, MIOpen): matrices are applied at every step, biases are no products."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def _formulas() -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    attention = flop_registry[aten._scaled_dot_product_flash_attention]
    named: dict[str, Callable[..., int]] = {
        "mv": _matrix_vector,
        "addmv": _added_matrix_vector,
        "addmv_": _added_matrix_vector,
        "dot": _dot,
        "vdot": _dot,
        "_addmm_activation": _added_matrices,
        "addbmm": _added_matrices,
        "_int_mm": _integer_matrices,
        "_trilinear": _trilinear,
        "_cdist_forward": _distances,
        "mkldnn_rnn_layer": _recurrent_layer,
        "_cudnn_rnn": _recurrent_network,
        "miopen_rnn": _recurrent_network,
        "_scaled_dot_product_fused_attention_overrideable": attention,
    }
    return {getattr(aten, name): formula for name, formula in named.items() if hasattr(aten, name)}


FORMULAS = _formulas()
"""Formulas by operation, for ``FlopCounterMode(custom_mapping=...)``."""


class UncountedKernels(TorchDispatchMode):
    """Notes the kernels that run without a formula although they may hold products; enter it before the counter.

    Attributes:
        names: of these kernels, as ``namespace::name``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", None)
        if packet is not None and packet not in flop_registry and packet not in FORMULAS and _may_be_heavy(func):
            self.names.add(_name(func))
        return func(*args, **(kwargs or {}))


def _name(func: Any) -> str:
    return func.name().partition(".")[0]


def _may_be_heavy(func: Any) -> bool:
    name = _name(func)
    if name in _LIGHT_KERNELS or name in _LIGHT_FOREIGN or torch.Tag.pointwise in func.tags:
        return False
    namespace, _, kernel = name.partition("::")
    return namespace not in _OWN_NAMESPACES or not _HEAVY_WORDS.isdisjoint(re.split("_+", kernel))
