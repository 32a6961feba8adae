"""Identities of the losses."""

import itertools
import math

import pytest
import torch
from graph_for_tests import batch_of

from tenfold.losses import distillation_kl
from tenfold.systems.graph_fusion import bucket_kl, evidence_lower_bound, full_scores_loss, kl_parts, mutual_loss
from tenfold.systems.graph_fusion.graph.query_batch import UnobservedBatch


def logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_student_like_its_teacher_has_no_loss_and_the_gradient_is_the_difference():
    teacher, student = logits(5, 7), logits(5, 7, seed=1).requires_grad_()
    assert distillation_kl(teacher, teacher).item() == pytest.approx(0, abs=1e-15)
    teacher.requires_grad_()
    distillation_kl(student, teacher).backward()
    torch.testing.assert_close(student.grad, (student.softmax(1) - teacher.softmax(1)).detach() / 5)
    assert teacher.grad is None


def test_temperature_squared_keeps_the_size_of_the_gradient():
    teacher, norms = 0.1 * logits(4, 9), []
    for tau in (1.0, 2.0, 4.0):
        student = (0.1 * logits(4, 9, seed=1)).requires_grad_()
        distillation_kl(student, teacher, tau).backward()
        norms.append(float(student.grad.norm()))
    assert max(norms) / min(norms) < 1.05


@pytest.mark.parametrize("loss", ["full", "exact", "decoupled"])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = logits(3, 6).requires_grad_(), logits(3, 6, seed=1).requires_grad_()
    mutual_loss(student, teacher, torch.eye(3, 6, dtype=torch.bool), split=loss).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_masked_answers_are_left_out_exactly():
    student, teacher = logits(1, 8), logits(1, 8, seed=1)
    allowed = torch.ones(1, 8, dtype=torch.bool)
    allowed[0, [2, 5]] = False
    masked = distillation_kl(student, teacher, allowed=allowed)
    gathered = distillation_kl(student[:, allowed[0]], teacher[:, allowed[0]])
    assert torch.isfinite(masked) and masked.item() == pytest.approx(gathered.item(), abs=1e-6)


@pytest.mark.parametrize("answers", [1, 3])
def test_the_chain_rule_of_the_divergence(answers):
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    mask = torch.zeros(6, 10, dtype=torch.bool)
    mask[:, :answers] = True
    parts = kl_parts(student, teacher, mask)
    whole = distillation_kl(student, teacher, reduce=False)
    m = parts.outside_mass
    rebuilt = parts.between + (1 - m) * parts.within + m * parts.outside
    torch.testing.assert_close(rebuilt, whole, rtol=0, atol=1e-15 * 10)
    if answers == 1:
        assert parts.within.abs().max() < 1e-15
        decoupled = parts.between + m * parts.outside  # CoLE's form with a = 1, b = m
        torch.testing.assert_close(decoupled, whole, rtol=0, atol=1e-14)


def beliefs(teacher, k):
    p = teacher.softmax(1)
    top = p.topk(k, 1)
    rows = len(teacher)
    return UnobservedBatch(
        heads=torch.zeros(rows, dtype=torch.int64),
        relations=torch.zeros(rows, dtype=torch.int64),
        owner=torch.empty(0, dtype=torch.int64),
        answers=torch.empty(0, dtype=torch.int64),
        ids=top.indices,
        probabilities=top.values,
        tail=(1 - top.values.sum(1)).clamp(min=0),
        weights=torch.ones(rows, dtype=teacher.dtype),
    )


def test_the_bucket_never_exceeds_the_whole_and_grows_to_it():
    student, teacher = logits(5, 12), logits(5, 12, seed=1)
    whole = distillation_kl(student, teacher).item()
    values = [bucket_kl(student, beliefs(teacher, k)).item() for k in range(1, 12)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] <= whole + 1e-9
    assert values[-1] == pytest.approx(whole, abs=1e-6)
    backwards = bucket_kl(student, beliefs(teacher, 11), reverse=True).item()
    assert backwards == pytest.approx(distillation_kl(teacher, student).item(), abs=1e-6)


def test_reverse_and_forward_have_one_optimum():
    teacher = logits(3, 6, seed=2)
    for reverse in (False, True):
        student = logits(3, 6).requires_grad_()
        optimizer = torch.optim.LBFGS([student], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def closure(student=student, reverse=reverse, optimizer=optimizer):
            optimizer.zero_grad()
            loss = bucket_kl(student, beliefs(teacher, 5), reverse=reverse)
            loss.backward()
            return loss

        optimizer.step(closure)
        torch.testing.assert_close(student.softmax(1), teacher.softmax(1), atol=1e-4, rtol=0)


def test_a_probability_of_zero_gives_finite_gradients():
    student = torch.tensor([[0.0, -500.0, 200.0]]).requires_grad_()
    batch = beliefs(torch.tensor([[300.0, 0.0, -300.0]]), 2)
    for reverse in (False, True):
        bucket_kl(student, batch, reverse=reverse).backward()
    assert torch.isfinite(student.grad).all()


def test_em_never_lowers_the_bound_nor_the_likelihood():
    """Tabular posterior, log-linear model with weights shared by observed and unobserved queries."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)  # 6 queries, 4 entities
    observed = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 3]])
    hidden = torch.tensor([4, 5])
    theta = torch.zeros(5, dtype=torch.float64)
    bounds, likelihoods = [], []
    for _ in range(50):
        log_p = (features @ theta).log_softmax(1)
        q = log_p[hidden].exp()  # E-step: the posterior becomes the model's conditional
        bound, gap = evidence_lower_bound(log_p[observed[:, 0], observed[:, 1]], log_p[hidden], q)
        likelihood = log_p[observed[:, 0], observed[:, 1]].sum()
        assert (bound + gap).item() == pytest.approx(likelihood.item(), abs=1e-12)
        bounds.append(bound.item())
        likelihoods.append(likelihood.item())
        theta = _m_step(features, observed, hidden, q, theta)
    for values in (bounds, likelihoods):
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))


def _m_step(features, observed, hidden, q, theta):
    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        log_p = (features @ theta).log_softmax(1)
        bound, _ = evidence_lower_bound(log_p[observed[:, 0], observed[:, 1]], log_p[hidden], q)
        (-bound).backward()
        return -bound

    optimizer.step(closure)
    return theta.detach()


def test_the_gap_is_the_divergence_for_any_posterior():
    log_p, q = logits(3, 4).log_softmax(1), logits(3, 4, seed=1).softmax(1)
    bound, gap = evidence_lower_bound(log_p[:, 0], log_p, q)
    assert (bound + gap).item() == pytest.approx(log_p[:, 0].sum().item(), abs=1e-12)
    assert gap > 0


def test_the_supervised_loss_is_its_formula():
    scores, batch = logits(2, 5), batch_of([[0, 3], [1]])
    targets = torch.full((2, 5), 0.1 / 5, dtype=torch.float64)
    targets[0, [0, 3]] += 0.9 / 2
    targets[1, 1] += 0.9
    expected = -(targets * scores.log_softmax(1)).sum() / 2
    assert full_scores_loss(scores, batch, smoothing=0.1).item() == pytest.approx(expected.item(), abs=1e-7)


@pytest.mark.parametrize("kind", ["softmax", "1vsall", "bce"])
def test_an_injected_answer_of_weight_zero_changes_nothing(kind):
    scores = logits(2, 5)
    plain = full_scores_loss(scores, batch_of([[0], [1]]), kind)
    more = batch_of([[0, 4], [1]], weights=[1.0, 0.0, 1.0], observed=[True, False, True])
    injected = full_scores_loss(scores, more, kind)
    factor = 2 / 3 if kind == "1vsall" else 1.0  # one row per triple: a mean over three
    assert injected.item() == pytest.approx(factor * plain.item(), rel=1e-6)


def test_a_teacher_trained_with_binary_losses_is_read_by_its_logits():
    """Softmax of sigmoids would be nearly uniform."""
    scores = torch.full((1, 1000), -6.0)
    scores[0, 3] = 6.0
    entropy = -(scores.softmax(1) * scores.log_softmax(1)).sum()
    of_sigmoids = -(scores.sigmoid().softmax(1) * scores.sigmoid().log_softmax(1)).sum()
    assert entropy < 0.2 * math.log(1000) < of_sigmoids
