"""T passes with dropout, and what they say about each input: the labels that the estimator learns.


    per batch:  y0, features = one pass without dropout;  k = its class
                the modules before the first dropout are recorded once
                for chunks of passes:  outputs with dropout -> mean and sum of squared deviations, online
                label = spread of the outputs (targets.py)

Memory does not grow with T: passes go through in chunks that fit a limit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.activation_uncertainty.labels.prefix_cache import PrefixCache
from tenfold.systems.activation_uncertainty.labels.targets import Target
from tenfold.systems.activation_uncertainty.network.batches import (
    Ids,
    Parts,
    join_ids,
    numbers_of_ids,
    read_batches,
    repeat_ids,
    take_ids,
)
from tenfold.systems.activation_uncertainty.network.calling import (
    Chooser,
    Inputs,
    batch_size,
    call,
    device_of,
    eval_mode,
    main_output,
    mask_of,
    repeat_rows,
    to_device,
)
from tenfold.systems.activation_uncertainty.network.dropout import DropoutController
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures
from tenfold.systems.activation_uncertainty.network.module_stack import ModuleStack
from tenfold.systems.activation_uncertainty.network.sample_masks import SampleMasks

Passes = Literal["repeat", "loop", "vmap"]
"""How passes are run: the batch repeated within a memory limit, one after the other, or vectorised."""


@dataclass(frozen=True)
class DropoutLabels:
    """What T passes said about each row (input, or valid token).

    Attributes:
        ids: ``(rows,)`` int64, or texts.
        output: ``(rows[, classes])`` float32 outputs of the pass without dropout.
        mean: ``(rows, quantities)`` float32 means over the passes, see ``Target.quantities``.
        spread: ``(rows,)`` float32 labels: variances, or uncertainties, see ``Target.power``.
        passes: T.
        target: definition of the uncertainty.
        features: ``(rows, width)`` float32 of the same pass without dropout, where they were asked for.
    """

    ids: Ids
    output: Tensor
    mean: Tensor
    spread: Tensor
    passes: int
    target: Target
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def uncertainty(self) -> Tensor:
        """``(rows,)`` U."""
        return self.spread**self.target.power

    def subset(self, rows: Tensor | slice) -> "DropoutLabels":
        """Some of the rows."""
        return DropoutLabels(
            take_ids(self.ids, rows),
            self.output[rows],
            self.mean[rows],
            self.spread[rows],
            self.passes,
            self.target,
            None if self.features is None else self.features[rows],
        )


def merge_labels(parts: Iterable[DropoutLabels]) -> DropoutLabels:
    """Labels of disjoint rows as one, in the order given."""
    parts = list(parts)
    if not parts:
        raise UserError("there are no labels: the data are empty")
    features = [part.features for part in parts if part.features is not None]
    return DropoutLabels(
        join_ids([part.ids for part in parts]),
        torch.cat([part.output for part in parts]),
        torch.cat([part.mean for part in parts]),
        torch.cat([part.spread for part in parts]),
        parts[0].passes,
        parts[0].target,
        torch.cat(features) if features else None,
    )


def dropout_labels(
    model: nn.Module,
    batches: Iterable[Any],
    dropout: DropoutController,
    target: Target,
    *,
    passes: int = 100,
    seed: int = 0,
    features: ActivationFeatures | None = None,
    output: Chooser | None = None,
    how: Passes = "repeat",
    memory_limit_mb: float = 64.0,
    per_sample: bool = False,
    prefix: bool = True,
    parts: Parts | None = None,
) -> DropoutLabels:
    """Label rows by Monte-Carlo dropout: the batches of ``label_batches``, joined.

    Args:
        model: the network; afterwards as it was.
        batches: inputs, or ``Batch``.
        dropout: where units are dropped.
        target: definition of the uncertainty.
        passes: T, at least 2.
        seed: of the masks.
        features: read in the pass without dropout, if given.
        output: picks the prediction from what the network gives.
        how: ``repeat``, ``loop`` or ``vmap``.
        memory_limit_mb: MiB that the passes run together may take.
        per_sample: masks by sample id.
        prefix: whether what comes before the first dropout is computed once per batch.
        parts: what the parts of a batch are, see ``network.batches``.
    """
    return merge_labels(
        labels
        for _, labels in label_batches(
            model,
            batches,
            dropout,
            target,
            passes=passes,
            seed=seed,
            features=features,
            output=output,
            how=how,
            memory_limit_mb=memory_limit_mb,
            per_sample=per_sample,
            prefix=prefix,
            parts=parts,
        )
    )


def label_batches(
    model: nn.Module,
    batches: Iterable[Any],
    dropout: DropoutController,
    target: Target,
    *,
    passes: int = 100,
    seed: int = 0,
    features: ActivationFeatures | None = None,
    output: Chooser | None = None,
    how: Passes = "repeat",
    memory_limit_mb: float = 64.0,
    per_sample: bool = False,
    prefix: bool = True,
    parts: Parts | None = None,
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[tuple[int, DropoutLabels]]:
    """Labels batch by batch.

    Args:
        model: the network; afterwards as it was, random states included.
        batches: inputs, or ``Batch``; batches without rows are passed over.
        dropout: where units are dropped.
        target: definition of the uncertainty.
        passes: T, at least 2.
        seed: of the masks, which depend on it and on the number of the batch (or of the sample).
        features: read in the pass without dropout, if given.
        output: picks the prediction from what the network gives.
        how: see ``Passes``.
        memory_limit_mb: for ``repeat`` and ``vmap``, MiB that the tensors of the passes run together may take.
        per_sample: masks by sample id: the same in any batch; slower. Not with ``vmap``.
        prefix: whether what comes before the first dropout is computed once per batch and not in every pass.
        parts: what the parts of a batch are, see ``network.batches``.
        wanted: whether a batch, by its number, is labelled here; others are passed over.

    Yields:
        The number of the batch and its labels, on the CPU.

    Raises:
        UserError: fewer than 2 passes, outputs that do not fit the target, or NaN.
    """
    if passes < 2:
        raise UserError(f"a spread needs at least 2 passes; got {passes}")
    if how not in get_args(Passes):
        raise UserError(f"passes are run as {', '.join(get_args(Passes))}; got {how!r}")
    if per_sample and how == "vmap":
        raise UserError("masks per sample are not drawn under vmap: run passes as repeat or loop")
    device = device_of(model)
    cache: PrefixCache | None = None
    chunk = 0
    for number, (inputs, ids) in enumerate(read_batches(batches, dropout.structure, parts)):
        if not wanted(number) or not len(ids):
            continue
        inputs, rows = to_device(inputs, device), batch_size(inputs)
        if cache is None and prefix:
            cache = PrefixCache(dropout, inputs)
        if not chunk:
            chunk = min(passes, _chunk(model, inputs, how, memory_limit_mb))
        runner = _Runner(model, inputs, ids, rows, cache, target, output)
        read = runner.plain_pass(features)
        with dropout.on(seed=derived_seed(seed, number)):
            moments = runner.stochastic_passes(passes, chunk, how, seed if per_sample else None)
        yield number, runner.labels(passes, moments, read)


class _Sizes:
    """Adds up the bytes of what modules give, each tensor once."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def enter(self, path: str) -> None:
        pass

    def leave(self, path: str, output: Any) -> None:
        self.seen |= {id(leaf): leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)}

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.seen.values())


def _chunk(model: nn.Module, inputs: Inputs, how: Passes, limit_mb: float) -> int:
    """How many passes go through together: as if all that modules give were kept."""
    if how == "loop":
        return 1
    sizes = _Sizes()
    with torch.no_grad(), eval_mode(model), ModuleStack().follow(model, [sizes]):
        call(model, inputs)
    return max(1, int(limit_mb * 2**20 / max(sizes.bytes, 1)))


class _Moments:
    """Mean and sum of squared deviations over passes, merged chunk by chunk (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.origin: Tensor | None = None  # deviations from the first pass lose no digits, and none where all agree
        self.mean: Any = 0.0
        self.m2: Any = 0.0

    def add(self, values: Tensor) -> None:
        """``(passes, rows, quantities)``."""
        if self.origin is None:
            self.origin = values[0].clone()
        values = values - self.origin
        count, mean = len(values), values.mean(0)
        delta, total = mean - self.mean, self.count + len(values)
        self.m2 = self.m2 + (values - mean).square().sum(0) + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


@dataclass
class _Runner:
    """The passes of one batch."""

    model: nn.Module
    inputs: Inputs
    ids: Ids
    rows: int
    cache: PrefixCache | None
    target: Target
    output: Chooser | None
    plain_output: Any = None

    def plain_pass(self, features: ActivationFeatures | None) -> Tensor | None:
        """The served pass; gives the features, if they are wanted."""
        mask = mask_of(self.model, self.inputs)
        with torch.no_grad(), eval_mode(self.model), self.cache.record() if self.cache else nullcontext():
            if features is None:
                self.plain_output = main_output(call(self.model, self.inputs), self.output)
                return None
            with features.collect(mask) as read:
                self.plain_output = main_output(call(self.model, self.inputs), self.output)
        return read.features(self.plain_output)

    def stochastic_passes(self, passes: int, chunk: int, how: Passes, sample_seed: int | None) -> _Moments:
        """All passes with dropout, which is on."""
        moments = _Moments()
        numbers = numbers_of_ids(self.ids).to(device_of(self.model))
        with torch.no_grad():
            for first in range(0, passes, chunk):
                together = min(chunk, passes - first)
                masks = nullcontext() if sample_seed is None else SampleMasks(sample_seed, numbers, first, together)
                with masks:
                    outputs = self._vmapped(together) if how == "vmap" else self._repeated(together)
                checked = self.target.check(outputs)
                moments.add(self.target.quantities(checked.view(together, -1, *checked.shape[1:])))
        return moments

    def _repeated(self, together: int) -> Tensor:
        inputs = repeat_rows(self.inputs, together, self.rows)
        with self.cache.replay(self.rows, together) if self.cache else nullcontext():
            return main_output(call(self.model, inputs), self.output)

    def _vmapped(self, together: int) -> Tensor:
        def one(_: Tensor) -> Tensor:
            return main_output(call(self.model, self.inputs), self.output)

        with self.cache.replay(self.rows) if self.cache else nullcontext():
            try:
                return torch.func.vmap(one, randomness="different")(torch.arange(together)).flatten(0, 1)
            except (RuntimeError, UserError) as error:
                raise UserError(
                    f"the passes of this network cannot be vectorised: {error}; run them as repeat"
                ) from error

    def labels(self, passes: int, moments: _Moments, features: Tensor | None) -> DropoutLabels:
        checked = self.target.check(self.plain_output)
        predicted = checked.argmax(-1) if self.target.classes else checked
        spread = self.target.spread(moments.mean + moments.origin, moments.m2, passes, predicted)
        ids, valid = self.ids, None
        if len(checked) != self.rows:  # a prediction per token
            tokens = len(checked) // self.rows
            ids = repeat_ids(self.ids, tokens)
            mask = mask_of(self.model, self.inputs)
            valid = None if mask is None else mask.flatten()
        made = DropoutLabels(
            ids,
            checked.float().cpu(),
            (moments.mean + moments.origin).float().cpu(),
            spread.float().cpu(),
            passes,
            self.target,
            None if features is None else features.float().cpu(),
        )
        if made.features is not None and len(made.features) != len(checked):
            raise UserError(
                f"there are {len(made.features)} rows of features for {len(checked)} predictions: predictions per "
                "token need pool='tokens', predictions per input do not"
            )
        return made if valid is None else made.subset(valid.cpu())
