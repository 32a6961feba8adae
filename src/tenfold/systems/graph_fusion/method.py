"""VEM2L's losses.


    warm start   train S (structure) and T (text) alone
    M2L          L_S = sup_S + lam tau^2 KL(sg p_T || p_S)       on observed queries; S and T exchanged for L_T
    VEM, rounds  U <- unobserved queries                          residual and cross
        E-step   T learns: sup_T + lam M2L + mu KL(sg p_S || p_T) on U      (or KL(p_T || sg p_S), "reverse")
        D        <- most confident answers of T on U              new, weighted edges; made afresh every round
        M-step   S learns: sup_S(O and D) + lam M2L + mu KL(sg p_T || p_S) on U

The roles (text is the posterior, structure the generative model), the directions, weights and schedule are
reconstructed: the paper's body and code were not at hand; see the room's README.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenfold.losses import distillation_kl, log_probabilities
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch, UnobservedBatch
from tenfold.training.parallel import mean_over_ranks

LossKind = Literal["softmax", "1vsall", "bce"]
SplitKind = Literal["full", "exact", "decoupled"]


def full_scores_loss(scores: Tensor, batch: QueryBatch, kind: LossKind = "softmax", smoothing: float = 0.1) -> Tensor:
    """Supervised loss from scores of all entities.

    ``softmax``: cross-entropy with the distribution over a query's answers; ``1vsall``: one softmax per triple;
    ``bce``: binary cross-entropy per entity (ConvE, CompGCN). Injected answers count with their weights.

    Args:
        scores: ``(B, N)`` raw scores.
        batch: the queries and answers.
        kind: see above.
        smoothing: share of the target that is spread over all entities.
    """
    if kind == "bce":
        return _binary_loss(scores, batch, smoothing)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    weights, total = batch.weights, torch.full_like(scores[0, 0], len(batch.heads))
    if kind == "1vsall":
        weights = torch.where(batch.observed, 1.0, batch.weights)
        total = mean_over_ranks(torch.full_like(total, len(batch.answers)))  # processes have different numbers
    return _SoftmaxLoss.apply(scores, batch.owner, batch.answers, weights.to(scores.dtype) / total, smoothing)


class _SoftmaxLoss(torch.autograd.Function):
    """Weighted cross-entropy of a few answers per row, with the gradient in closed form.

    Two matrices of the size of the scores are written: the softmax, and the gradient, which is the softmax times the
    row's weight, minus the targets.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, owner: Tensor, answers: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        shares = scores.softmax(1)
        normalizer = scores.amax(1) - shares.amax(1).log()  # the largest share is at least 1 / N
        mass = torch.zeros_like(normalizer).index_add_(0, owner, weights)
        ctx.save_for_backward(shares, mass, owner, answers, weights)
        ctx.smoothing = smoothing
        gold = (weights * scores[owner, answers]).sum() * (1 - smoothing)
        spread = (mass * scores.mean(1)).sum() * smoothing if smoothing else 0.0
        return (mass * normalizer).sum() - gold - spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shares, mass, owner, answers, weights = ctx.saved_tensors
        rows = (mass * gradient)[:, None]
        shares = shares * rows
        if ctx.smoothing:
            shares -= rows * (ctx.smoothing / shares.shape[1])
        shares.index_put_((owner, answers), weights * (-(1 - ctx.smoothing) * gradient), accumulate=True)
        return shares, None, None, None, None


def _binary_loss(scores: Tensor, batch: QueryBatch, smoothing: float) -> Tensor:
    targets = torch.zeros_like(scores)
    values = torch.where(batch.observed, 1.0, batch.weights.clamp(max=1.0)).to(scores.dtype)
    targets[batch.owner, batch.answers] = values
    if smoothing > 0:  # the official ConvE and CompGCN add 1 / N, whatever the smoothing
        targets = (1 - smoothing) * targets + 1 / scores.shape[1]
    # A query that only an injected answer has counts no more than that answer does.
    mass = torch.zeros_like(scores[:, 0]).index_add(0, batch.owner, values).clamp(max=1.0)
    rows = F.binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(1)
    return (mass * rows).mean()


@dataclass(frozen=True)
class KLParts:
    """The chain rule of ``KL(teacher || student)`` over answers and others; each ``(B,)``.

    ``KL = between + (1 - outside_mass) * within + outside_mass * outside``.

    Attributes:
        between: KL of the two masses, inside and outside the answers.
        within: KL among the answers, renormalized.
        outside: KL among all others, renormalized.
        outside_mass: the teacher's mass outside the answers.
    """

    between: Tensor
    within: Tensor
    outside: Tensor
    outside_mass: Tensor


def kl_parts(student: Tensor, teacher: Tensor, answers: Tensor, temperature: float = 1.0) -> KLParts:
    """Split the KL of two distributions at a set of answers.

    Args:
        student: ``(B, N)`` raw scores.
        teacher: ``(B, N)`` raw scores; no gradient reaches it.
        answers: ``(B, N)`` bool, for each row neither none nor all.
        temperature: tau.
    """
    student_log = log_probabilities(student, temperature)
    teacher_log = log_probabilities(teacher.detach(), temperature)

    def masses(log_p: Tensor) -> tuple[Tensor, Tensor]:
        inside = log_p.masked_fill(~answers, -torch.inf).logsumexp(1)
        return inside, log_p.masked_fill(answers, -torch.inf).logsumexp(1)

    (t_in, t_out), (s_in, s_out) = masses(teacher_log), masses(student_log)
    between = t_in.exp() * (t_in - s_in) + t_out.exp() * (t_out - s_out)

    def among(part: Tensor, t_mass: Tensor, s_mass: Tensor) -> Tensor:
        t, s = teacher_log - t_mass[:, None], student_log - s_mass[:, None]
        return (t.exp() * (t - s)).masked_fill(~part, 0.0).sum(1)

    return KLParts(between, among(answers, t_in, s_in), among(~answers, t_out, s_out), t_out.exp())


def mutual_loss(
    student: Tensor,
    teacher: Tensor,
    answers: Tensor | None = None,
    *,
    split: SplitKind = "full",
    temperature: float = 1.0,
    outside_weight: float = 1.0,
    allowed: Tensor | None = None,
) -> Tensor:
    """M2L's loss of one encoder on observed queries, mean over the batch.

    Args:
        student: ``(B, N)`` raw scores, over the calibration temperature.
        teacher: ``(B, N)``; no gradient reaches it.
        answers: ``(B, N)`` bool, training answers; needed but for ``full``.
        split: ``full``: the whole KL; ``exact``: without its part outside the answers, which VEM then takes;
            ``decoupled``: between + ``outside_weight`` * outside, as CoLE has it.
        temperature: tau of the distillation.
        outside_weight: b of ``decoupled``.
        allowed: ``(N,)`` entities that the teacher may judge.
    """
    if split == "full":
        return distillation_kl(student, teacher, temperature, allowed)
    if answers is None:
        raise ValueError(f"split {split!r} needs the answers")
    if allowed is not None:
        student, teacher = student.masked_fill(~allowed, -1e9), teacher.masked_fill(~allowed, -1e9)
    observed = answers.any(1)  # a query that only an injected answer has is no observed one
    number = mean_over_ranks(observed.sum().float()).clamp(min=1e-12)
    if not bool(observed.any()):
        return 0.0 * student.sum()
    parts = kl_parts(student[observed], teacher[observed], answers[observed], temperature)
    if split == "exact":
        rows = parts.between + (1 - parts.outside_mass) * parts.within
    else:
        rows = parts.between + outside_weight * parts.outside
    return temperature**2 * rows.sum() / number


def bucket_kl(
    student: Tensor,
    batch: UnobservedBatch,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
    allowed: Tensor | None = None,
) -> Tensor:
    """KL with a teacher of which only the best K candidates are known: the others are one bucket.

    Never more than the full KL, and equal to it at K = N - 1.

    Args:
        student: ``(B, N)`` raw scores, over the calibration temperature.
        batch: queries and the teacher's beliefs; known answers are masked in the student, as they were in the teacher.
        temperature: tau of the distillation, also of the teacher's file.
        reverse: ``KL(student || teacher)``, the direction that climbs the ELBO, in place of ``KL(teacher || student)``.
        allowed: ``(N,)`` entities that the teacher may judge.

    Returns:
        scalar: weighted mean over the queries, times tau squared.
    """
    mask = torch.ones_like(student, dtype=torch.bool)
    mask[batch.owner, batch.answers] = False
    if allowed is not None:
        mask &= allowed
    log_p = log_probabilities(student, temperature, mask)
    outside = log_p.scatter(1, batch.ids, -1e9).logsumexp(1)
    rows = bucket_rows(log_p.gather(1, batch.ids), outside, batch, reverse)
    return temperature**2 * weighted_mean(rows, batch.weights)


def bucket_rows(inside: Tensor, outside: Tensor, batch: UnobservedBatch, reverse: bool) -> Tensor:
    """``(B,)`` the divergence of `bucket_kl` from the student's log-probabilities.

    Args:
        inside: ``(B, K)`` of the teacher's candidates.
        outside: ``(B,)`` of all others together.
        batch: the teacher's beliefs.
        reverse: see `bucket_kl`.
    """
    outside = outside.clamp(min=-60.0)
    teacher, tail = batch.probabilities.to(inside.dtype), batch.tail.to(inside.dtype)
    if reverse:
        floor = 1e-7  # what half precision can tell from nothing
        rows = (inside.exp() * (inside - teacher.clamp(min=floor).log())).sum(1)
        return rows + outside.exp() * (outside - tail.clamp(min=floor).log())
    rows = (teacher * (teacher.clamp(min=1e-12).log() - inside.clamp(min=-60.0))).sum(1)
    return rows + tail * (tail.clamp(min=1e-12).log() - outside)


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """A process's part of the weighted mean over the queries of all processes, which average their gradients.

    Args:
        rows: ``(n,)``; processes may have different numbers of rows.
        weights: ``(n,)``.
    """
    weights = weights.to(rows.dtype)
    return (weights * rows).sum() / mean_over_ranks(weights.sum()).clamp(min=1e-12)


def evidence_lower_bound(log_p_observed: Tensor, log_p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The ELBO and the gap to the log-likelihood of the observed answers.

    Args:
        log_p_observed: ``(n,)`` the model's log-probability of each observed answer.
        log_p: ``(U, N)`` its log-probabilities of the answers of unobserved queries.
        q: ``(U, N)`` the posterior's probabilities of them.

    Returns:
        the bound, and ``sum_u KL(q || p)``: their sum is the log-likelihood of the observed answers.
    """
    entropy = -torch.special.xlogy(q, q).sum()
    bound = log_p_observed.sum() + (q * log_p).sum() + entropy
    gap = torch.special.xlogy(q, q).sum() - (q * log_p).sum()
    return bound, gap
