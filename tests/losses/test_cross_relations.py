"""Attention between two sequences: known values, exclusions, reductions."""

import math

import pytest
import torch

from tenfold.errors import UserError
from tenfold.losses import cross_relation_kl


def sides(seed=0, heads=2, n=3, keys=4, d=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, size, d, generator=generator, dtype=torch.float64) for size in (n, keys, n, keys)]


def test_the_same_maps_do_not_diverge_and_gradients_reach_the_student_alone():
    q, k, _, _ = sides()
    assert cross_relation_kl(q, k, q, k).abs() < 1e-12
    given = [x.requires_grad_() for x in sides(1)]
    cross_relation_kl(*given).backward()
    assert all(x.grad is not None for x in given[:2]) and all(x.grad is None for x in given[2:])


def test_a_uniform_student_of_a_sure_teacher_diverges_by_log_n():
    q_t, k_t = torch.tensor([[[[1e6]]]]), torch.tensor([[[[1.0], [0.0], [0.0], [0.0], [0.0]]]])
    found = cross_relation_kl(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 5, 1), q_t, k_t)
    assert found.item() == pytest.approx(math.log(5), abs=1e-6)


def test_heads_and_queries_that_are_repeated_leave_the_mean():
    q_s, k_s, q_t, k_t = sides()
    once = cross_relation_kl(q_s, k_s, q_t, k_t)
    twice = [x.repeat(1, 2, 1, 1) for x in (q_s, k_s, q_t, k_t)]
    torch.testing.assert_close(cross_relation_kl(*twice), once)
    rows = [x.repeat(1, 1, 2, 1) for x in (q_s, q_t)]
    torch.testing.assert_close(cross_relation_kl(rows[0], k_s, rows[1], k_t), once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_keys_give_finite_numbers_in_every_precision(dtype):
    q_s, k_s, q_t, k_t = (x.to(dtype).requires_grad_() for x in sides())
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        loss = cross_relation_kl(q_s, k_s, q_t, k_t, key_mask=mask)
    loss.backward()
    assert loss.isfinite() and q_s.grad.isfinite().all() and k_s.grad.isfinite().all()
    assert (k_s.grad[1, :, 1:] == 0).all()


def test_one_key_alone_is_certain_and_a_high_temperature_levels_all():
    q_s, k_s, q_t, k_t = sides(keys=1)
    assert cross_relation_kl(q_s, k_s, q_t, k_t) == 0
    assert cross_relation_kl(*sides(), temperature=1e6) < 1e-9


def test_other_heads_are_refused():
    q_s, k_s, q_t, k_t = sides()
    with pytest.raises(UserError, match="relation heads"):
        cross_relation_kl(q_s, k_s, q_t[:, :1], k_t[:, :1])
