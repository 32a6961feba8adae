"""Mapping for networks of the reader's own: two state dicts by name, or any traceable network by its dependencies."""

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.systems.backbone_search.mapping.map_weights import _recentre


@torch.no_grad()
def map_state_dict(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], depth: Sequence[str] = ()
) -> dict[str, Tensor]:
    """FNA's rules for any two state dicts: tensors of one name, first channels, centred kernels, the rest 0.

    Vectors (normalization, bias) that are not covered keep the target's values; weights that are not covered become 0.

    Args:
        source: of the trained network.
        target: of the fresh one; its values are kept where the source has no tensor of the name.
        depth: prefixes with ``{i}`` for a number, such as ``"layers.{i}."``: where the target has more of them than the
            source, they take the source's last.

    Returns:
        A state dict for the target.

    Raises:
        UserError: a pattern without ``{i}``, or tensors of one name and different numbers of axes.

    Example:
        >>> mapped = map_state_dict({"a.weight": torch.ones(2, 2)}, {"a.weight": torch.zeros(3, 1)})
        >>> mapped["a.weight"].tolist()
        [[1.0], [1.0], [0.0]]
    """
    patterns = []
    for text in depth:
        if text.count("{i}") != 1:
            raise UserError(f"a depth pattern holds {{i}} once, as layers.{{i}}. does; got {text!r}")
        head, tail = text.split("{i}")
        patterns.append((re.compile(f"{re.escape(head)}(\\d+){re.escape(tail)}"), head, tail))
    last = {
        head: max((int(found[1]) for name in source if (found := pattern.match(name))), default=-1)
        for pattern, head, _ in patterns
    }
    mapped = {}
    for name, fresh in target.items():
        origin = name
        for pattern, head, tail in patterns:
            found = pattern.match(origin)
            if found and last[head] >= 0:
                origin = f"{head}{min(int(found[1]), last[head])}{tail}{origin[found.end() :]}"
        mapped[name] = _cropped(source[origin], fresh, name) if origin in source else fresh.clone()
    return mapped


def _cropped(old: Tensor, fresh: Tensor, name: str) -> Tensor:
    if old.ndim != fresh.ndim:
        raise UserError(f"{name!r} has {old.ndim} axes in the source and {fresh.ndim} in the target")
    if old.shape == fresh.shape or old.ndim == 0:
        return old.clone().to(fresh.dtype)
    if old.ndim == 4:
        old = _recentre(old, fresh.shape[-1])
    made = torch.zeros_like(fresh) if fresh.ndim > 1 else fresh.clone()
    common = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, fresh.shape, strict=True))
    made[common] = old[common].to(fresh.dtype)
    return made


def shrink_traced(model: nn.Module, example: Tensor, share: float, keep: Sequence[nn.Module] = ()) -> nn.Module:
    """A narrower copy of any traceable network, its most important channels kept group by group.

    Which channels hang together is found by Torch-Pruning's dependency graph (an extra); importance is the summed
    magnitude over the group.

    Args:
        model: any module that runs on ``example``.
        example: an input.
        share: of every layer's channels that stay, in (0, 1].
        keep: modules whose outputs keep their number, such as the last layer.

    Raises:
        UserError: the extra is missing, or the share is out of range.
    """
    if not 0 < share <= 1:
        raise UserError(f"share is that of the channels that stay, in (0, 1]; got {share}")
    pruning = require("torch_pruning", "search")
    places = {id(module): name for name, module in model.named_modules()}
    narrow = copy.deepcopy(model).eval()
    kept = [narrow.get_submodule(places[id(module)]) for module in keep]
    if share < 1:
        pruner = pruning.pruner.BasePruner(
            narrow, example, importance=pruning.importance.MagnitudeImportance(p=1), pruning_ratio=1 - share,
            ignored_layers=kept, round_to=8 if share > 0.5 else None,
        )  # fmt: skip
        pruner.step()
    return narrow.train(model.training)
