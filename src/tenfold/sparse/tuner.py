"""``SparseTuner``: mask, optimizer and diff of one model held together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.sparse.diff_files import Diff
from tenfold.sparse.diffs import Snapshot, take_diff, take_snapshot
from tenfold.sparse.masks import Mask
from tenfold.sparse.optimizers import SparseAdamW, SparseOptimizer, SparseSGD
from tenfold.sparse.parameters import put


class SparseTuner:
    """Fine-tunes chosen entries of a model and gives the result as a diff; the base can always be had back.

    Args:
        model: the base; remembered here as far as training can change it.
        mask: from ``find_mask``; ``None`` trains only ``dense``.
        dense: patterns of names that are trained and stored whole, such as a new head.

    Example:
        >>> mask = find_mask(model, loss, examples, fraction=0.01, dense=["head.*"])  # doctest: +SKIP
        >>> tuner = SparseTuner(model, mask, dense=["head.*"])  # doctest: +SKIP
        >>> optimizer = tuner.adamw(lr=1e-3)  # then train as with any optimizer  # doctest: +SKIP
        >>> tuner.save("customer.sft.safetensors")  # doctest: +SKIP
        >>> tuner.revert()  # the base, bit for bit  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, mask: Mask | None, dense: Sequence[str] = ()) -> None:
        self.model, self.mask, self.dense = model, mask, tuple(dense)
        self.base: Snapshot = take_snapshot(model, mask, dense)
        self.optimizer: SparseOptimizer | None = None

    def adamw(self, lr: float = 1e-3, **settings: Any) -> SparseAdamW:
        """A ``SparseAdamW`` on the mask and the dense parameters; replaces an earlier optimizer."""
        self.release()
        made = SparseAdamW(self.model, self.mask, lr, dense=self.dense, **settings)
        self.optimizer = made
        return made

    def sgd(self, lr: float = 1e-3, **settings: Any) -> SparseSGD:
        """A ``SparseSGD`` on the mask and the dense parameters; replaces an earlier optimizer."""
        self.release()
        made = SparseSGD(self.model, self.mask, lr, dense=self.dense, **settings)
        self.optimizer = made
        return made

    def refresh(self, mask: Mask) -> None:
        """Go on with other entries (a dynamic mask); those trained so far keep their values and stay in the diff.

        Make a new optimizer afterwards.

        Args:
            mask: the next entries, found on the model as it is now.
        """
        self.release()
        self.base.extend(self.model, mask)
        self.mask = mask

    def diff(self) -> Diff:
        """What training has changed so far."""
        return take_diff(self.model, self.base, dense=self.dense, mask=self.mask)

    def save(self, path: str | Path) -> Path:
        """Write ``diff`` to a file; gives its name."""
        return self.diff().save(path)

    def release(self) -> None:
        """Take the optimizer's hooks off the model."""
        if self.optimizer is not None:
            self.optimizer.release()
            self.optimizer = None

    @torch.no_grad()
    def revert(self) -> None:
        """Give the model its base's values back, bit for bit."""
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, index in self.base.positions.items():
            put(own[name], index, self.base.values[name])
        for name, value in self.base.whole.items():
            own[name].detach().copy_(value)
