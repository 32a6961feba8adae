"""Risk control: thresholds that provably lose little accuracy (learn then test)."""

import math
from collections.abc import Sequence

import torch

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.policies.exit_policy import (
    EVERYBODY_LEAVES,
    NOBODY_LEAVES,
    ExitPolicy,
    ExitRecords,
    assign_exits,
    make_policy,
)
from tenfold.systems.boosted_exits.policies.search_front import search_front


def control_risk(records: ExitRecords, *, epsilon: float = 0.01, delta: float = 0.05, seed: int = 0) -> ExitPolicy:
    """A cheap policy whose loss of accuracy against the last exit is bounded: learn then test.

    A sample is lost when the last exit would have been right and the one it takes is wrong. The expected share of lost
    samples is an upper bound of the loss of accuracy (samples that only the early exit gets right do not count
    against it). One half of the records makes a sequence of policies, from the costliest of ``search_front``
    down; the other half tests them in that order and stops at the first that cannot be shown to lose at most
    epsilon. (Angelopoulos et al., "Learn then Test", 2021: fixed-sequence testing.)

    The guarantee: with probability at least ``1 - delta`` over the draw of the calibration samples, the policy loses
    at most ``epsilon`` on average over samples of the same distribution. It says nothing about any single sample, nor
    about data that differ from the calibration's.

    Args:
        records: calibration samples, independent of those that trained the network.
        epsilon: tolerated share of lost samples, in (0, 1).
        delta: tolerated probability of a worse policy, in (0, 1).
        seed: of the split into halves.

    Returns:
        The last policy that passed, with its numbers on the testing half; where none passed, the policy that
        runs every sample to the end.

    Raises:
        UserError: epsilon or delta lie outside (0, 1), or there are fewer than two samples.
    """
    if records.samples < 2:
        raise UserError(f"risk control splits the samples into halves: it needs at least 2, got {records.samples}")
    shuffled = torch.randperm(records.samples, generator=torch.Generator().manual_seed(seed))
    making, testing = shuffled.tensor_split(2)
    sequence = search_front(records.subset(making))[::-1]
    tested = records.subset(testing)
    accepted = accept_policies(sequence, tested, epsilon=epsilon, delta=delta)
    to_the_end = (*[NOBODY_LEAVES] * (records.exits - 1), EVERYBODY_LEAVES)
    return make_policy(tested, accepted[-1].thresholds if accepted else to_the_end, "risk")


def accept_policies(
    sequence: Sequence[ExitPolicy], records: ExitRecords, *, epsilon: float, delta: float
) -> Sequence[ExitPolicy]:
    """The policies at the head of a sequence that lose at most epsilon, jointly with confidence ``1 - delta``.

    Args:
        sequence: policies in the order of testing; must not depend on ``records``.
        records: the samples that test them.
        epsilon: tolerated share of lost samples, in (0, 1), see ``control_risk``.
        delta: tolerated probability that a policy in the result is worse, in (0, 1).

    Raises:
        UserError: epsilon or delta lie outside (0, 1).
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"{name} must lie between 0 and 1; got {value}")
    for number, policy in enumerate(sequence):
        exits = assign_exits(records.confidences, policy.thresholds)
        right = records.correct.gather(1, exits[:, None]).squeeze(1)
        lost = int((records.correct[:, -1] & ~right).sum())
        if hoeffding_bentkus(lost, records.samples, epsilon) > delta:
            return sequence[:number]
    return sequence


def hoeffding_bentkus(lost: int, samples: int, epsilon: float) -> float:
    """P-value of "the expected loss is above epsilon" after so many losses: Hoeffding-Bentkus inequality.

    ``min(exp(-M h(min(R, epsilon), epsilon)), e P[Binomial(M, epsilon) <= M R])`` with the observed share ``R`` of
    lost samples and ``h(a, b) = a log(a/b) + (1-a) log((1-a)/(1-b))`` (Bates et al., "Distribution-free,
    risk-controlling prediction sets", 2021).

    Args:
        lost: number of samples with loss 1; the others have loss 0.
        samples: their number M.
        epsilon: in (0, 1).
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    share = min(lost / samples, epsilon)
    hoeffding = math.exp(-samples * (rel_entr(share, epsilon) + rel_entr(1 - share, 1 - epsilon)))
    bentkus = math.e * float(binom.cdf(lost, samples, epsilon))
    return min(hoeffding, bentkus, 1.0)
