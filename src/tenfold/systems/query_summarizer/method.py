"""Q-BERT as published, in the order in which it happens (Zhu et al., TASLP 2022; arXiv 1911.03324).


    WikiRef     a statement of Wikipedia that cites a page is the summary, title and section titles are the query,
                the cited page is the document                                        (wikiref/)
    labels      greedy oracle of the statement over the page's sentences              (labels/)
    stage 1     all weights, on WikiRef
    stage 2     on the few topics of the target: only a sparse subnetwork, chosen by its importance for the target,
                and the head                                                          (tenfold.sparse)
    inference   score sentences, skip repetitions, fill the budget                    (selection/)

The loss is the mean over real sentences of the binary cross-entropy of a sentence's score with its label.

Only the abstract and the introduction of the paper were at hand. Reconstructed, and marked where they stand: packing
and token types, learning rates, the criterion and share of the subnetwork, the thresholds of WikiRef's filters.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.sparse import Mask, find_mask, sample_bernoulli

Batch = dict[str, Tensor]
"""What an extractor reads, with ``labels`` ``(batch, sentences)`` and ``there`` ``(batch, sentences)`` bool."""


def sentence_loss(logits: Tensor, labels: Tensor, there: Tensor) -> Tensor:
    """Mean binary cross-entropy over the sentences that are there; a scalar.

    Args:
        logits: ``(batch, sentences)``.
        labels: ``(batch, sentences)`` in [0, 1]; soft labels are allowed.
        there: ``(batch, sentences)`` bool.
    """
    return F.binary_cross_entropy_with_logits(logits[there], labels[there])


def objective(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, as ``tenfold.training.fit`` takes it."""
    return sentence_loss(model(batch), batch["labels"], batch["there"]), {}


def choose_subnetwork(
    model: nn.Module,
    examples: Sequence[Batch],
    *,
    fraction: float = 0.05,
    criterion: Any = "fisher",
    granularity: Any = "entry",
    dense: Sequence[str] = ("head.*",),
    seed: int = 0,
) -> Mask:
    """The entries to train in stage 2, by their importance for the target at the end of stage 1.

    The paper says that a sparse subnetwork is identified and fine-tuned; how, could not be read. Fisher information on
    the target's training windows is the likeliest reading, random entries are the baseline that it has to beat.

    Args:
        model: the extractor after stage 1.
        examples: batches of one window each.
        fraction: share of the entries.
        criterion: see ``tenfold.sparse.scores``; not ``change``, which needs a training.
        granularity: see ``tenfold.sparse.top_entries``.
        dense: parameters that are trained whole.
        seed: of ``random`` and of sampled labels.
    """
    return find_mask(
        model,
        lambda module, batch: objective(module, batch)[0],
        examples,
        fraction=fraction,
        criterion=criterion,
        granularity=granularity,
        dense=dense,
        seed=seed,
        sampler=_sample_labels if criterion == "fisher_sampled" else None,
    )


def _sample_labels(model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
    return {**batch, "labels": sample_bernoulli(model(batch), generator)}
