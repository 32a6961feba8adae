"""``find_mask``: from a model and a task to the entries that are worth training."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from tenfold.errors import UserError
from tenfold.sparse.masks import Granularity, Mask, same_on_all_ranks, top_entries
from tenfold.sparse.parameters import candidates
from tenfold.sparse.scores import (
    CRITERIA,
    Criterion,
    LabelSampler,
    LossFunction,
    change_scores,
    gradient_scores,
    random_scores,
)


def find_mask(
    model: nn.Module,
    loss: LossFunction | None = None,
    examples: Iterable[Any] = (),
    *,
    fraction: float = 0.05,
    criterion: Criterion = "fisher",
    granularity: Granularity = "entry",
    per_tensor: bool = False,
    exclude: Sequence[str] = (),
    dense: Sequence[str] = (),
    heads: int | None = None,
    sampler: LabelSampler | None = None,
    train: Callable[[nn.Module], Any] | None = None,
    seed: int = 0,
    chunk: int = 0,
) -> Mask:
    """Choose the entries of a model that matter most for a task. The model is as before afterwards.

    Args:
        model: any module, with the weights from which the task is to be learnt.
        loss: of one example; for the criteria by gradient.
        examples: of the task, one at a time; with ``chunk``, batches.
        fraction: share of the candidates to choose, in (0, 1].
        criterion: see ``tenfold.sparse.scores``.
        granularity: see ``top_entries``.
        per_tensor: the same share of every tensor, instead of one ranking over all.
        exclude: patterns of names that stay as they are.
        dense: patterns of names that will be trained whole.
        heads: attention heads, for granularity ``head``.
        sampler: draws labels from the model, for ``fisher_sampled``; see ``sample_bernoulli``.
        train: trains the model in place, for ``change``.
        seed: of ``random`` and of the sampled labels.
        chunk: examples at a time by ``vmap``; 0 for one by one.

    Returns:
        The mask; the same on all ranks of a process group, each of which may give its own share of the examples.

    Raises:
        UserError: a setting makes no sense, or the mask chooses nothing.

    Example:
        >>> mask = find_mask(model, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), examples)  # doctest: +SKIP
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is a share in (0, 1]; got {fraction}")
    if criterion not in CRITERIA:
        raise UserError(f"criterion is one of {', '.join(CRITERIA)}; got {criterion!r}")
    parameters = candidates(model, exclude=exclude, dense=dense)
    total = sum(value.numel() for value in parameters.values())
    count = max(1, round(fraction * total))
    about: dict[str, str | int | float] = {"criterion": criterion, "fraction": fraction, "seed": seed}
    if criterion in ("fisher", "fisher_sampled", "grad", "taylor"):
        if loss is None:
            raise UserError(f"criterion {criterion!r} needs the loss of an example")
        if criterion == "fisher_sampled" and sampler is None:
            raise UserError("criterion 'fisher_sampled' needs a sampler that draws labels from the model")
        scores, about["examples"] = gradient_scores(
            model,
            parameters,
            loss,
            examples,
            squared=criterion.startswith("fisher"),
            sampler=sampler if criterion == "fisher_sampled" else None,
            seed=seed,
            chunk=chunk,
        )
        if not criterion.startswith("fisher"):
            scores = {name: value.abs() for name, value in scores.items()}
        if criterion == "taylor":
            scores = {name: value * parameters[name].detach().abs() for name, value in scores.items()}
    elif criterion == "change":
        if train is None:
            raise UserError("criterion 'change' needs a function that trains the model")
        scores = change_scores(model, parameters, train)
    elif criterion == "magnitude":
        scores = {name: value.detach().abs() for name, value in parameters.items()}
    else:
        scores = random_scores(parameters, seed)
    mask = top_entries(scores, count, granularity=granularity, per_tensor=per_tensor, heads=heads, about=about)
    return same_on_all_ranks(mask)
