"""Relation divergences: known values, invariances, and one number from every form."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from tenfold.errors import UserError
from tenfold.losses import relation_agreement, relation_kl, relation_mse
from tenfold.losses.relation_logits import relation_logits

FORMS = ["direct", "chunked"]


def tensors(batch=2, heads=3, tokens=11, width_s=5, width_t=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, tokens, width_s)] * 2 + [(batch, heads, tokens, width_t)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def value_and_gradients(kernel, a, b, u, w, same=False, **options):
    a = a.clone().requires_grad_()
    b = a if same else b.clone().requires_grad_()
    loss = relation_kl(a, b, u, u if same else w, kernel=kernel, **options)
    return loss.detach(), torch.autograd.grad(3 * loss, [a] if same else [a, b])


@pytest.mark.parametrize("kernel", FORMS)
@pytest.mark.parametrize("same", [False, True])
def test_a_network_against_itself_has_no_loss_and_no_gradient(kernel, same):
    a, b, _, _ = tensors()
    loss, gradients = value_and_gradients(kernel, a, b, a, b, same)
    assert abs(loss) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in gradients)


@pytest.mark.parametrize("kernel", FORMS)
def test_known_values(kernel):
    a, b, u, w = tensors()
    assert relation_kl(torch.zeros_like(a), b, u, torch.zeros_like(w), kernel=kernel).abs() < 1e-12
    eye = torch.eye(11, dtype=torch.float64).expand(2, 3, 11, 11)
    one_hot = relation_kl(torch.zeros_like(a), b, 1e4 * eye, eye, kernel=kernel)
    assert float(one_hot) == pytest.approx(math.log(11), abs=1e-9)
    # One further column adds the same to all logits of a row: nothing for a softmax, something without one.
    shift = torch.randn(2, 3, 11, 1, dtype=torch.float64)
    shifted = [torch.cat([u, shift], -1), torch.cat([w, torch.ones_like(shift)], -1)]
    assert relation_kl(*shifted, u, w, scale_s=0.3, scale_t=0.3, kernel=kernel).abs() < 1e-12
    assert relation_mse(*shifted, u, w, scale_s=0.3, scale_t=0.3) > 1e-3


@pytest.mark.parametrize("kernel", FORMS)
def test_invariances(kernel):
    a, b, u, w = tensors()
    loss = relation_kl(a, b, u, w, kernel=kernel)
    rotation = torch.linalg.qr(torch.randn(3, 5, 5, dtype=torch.float64)).Q
    torch.testing.assert_close(relation_kl(a @ rotation, b @ rotation, u, w, kernel=kernel), loss)
    torch.testing.assert_close(relation_kl(a @ rotation, a @ rotation, u, u, kernel=kernel),
                               relation_kl(a, a, u, u, kernel=kernel))  # fmt: skip
    assert (relation_kl(a, b, u[:, [1, 2, 0]], w[:, [1, 2, 0]], kernel=kernel) - loss).abs() > 1e-3
    order = torch.randperm(11)
    torch.testing.assert_close(relation_kl(*(x[:, :, order] for x in (a, b, u, w)), kernel=kernel), loss)
    offset = torch.randn(5, dtype=torch.float64, requires_grad=True)
    moved = relation_kl(a, b + offset, u, w, kernel=kernel)
    torch.testing.assert_close(moved.detach(), loss)
    assert torch.autograd.grad(moved, offset)[0].abs().max() < 1e-12
    values = relation_kl(a + offset, a + offset, u, u, kernel=kernel)
    assert torch.autograd.grad(values, offset)[0].abs().max() > 1e-4


def test_value_relations_are_stochastic_but_not_symmetric():
    _, _, u, _ = tensors()
    logits = relation_logits(u, u, 0.3)
    torch.testing.assert_close(logits, logits.mT)
    relation = logits.softmax(-1)
    torch.testing.assert_close(relation.sum(-1), torch.ones_like(relation[..., 0]))
    assert (relation - relation.mT).abs().max() > 1e-2


@pytest.mark.parametrize("tokens", [1, 11, 70, 197])
@pytest.mark.parametrize("same", [False, True])
def test_all_forms_agree(tokens, same):
    inputs = tensors(tokens=tokens, width_s=9, width_t=20)
    expected = value_and_gradients("direct", *inputs, same)
    for chunk in (1, 7, tokens, None):
        found = value_and_gradients("chunked", *inputs, same, chunk=chunk)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kernel", FORMS)
def test_gradients_are_those_of_finite_differences(kernel):
    a, b, u, w = tensors(batch=1, heads=2, tokens=5, width_s=3, width_t=4)
    a, b = a.requires_grad_(), b.requires_grad_()
    assert gradcheck(lambda a, b: relation_kl(a, b, u, w, kernel=kernel), (a, b))
    assert gradcheck(lambda a: relation_kl(a, a, u, u, kernel=kernel), (a,))


@pytest.mark.parametrize("kernel", FORMS)
def test_large_logits_in_half_precision_stay_finite(kernel):
    """The official log of a softmax is NaN here: probabilities underflow."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 1, 64, 16, generator=generator) for _ in range(2))
    u, w = (10 * torch.randn(1, 1, 64, 16, generator=generator) for _ in range(2))
    student, teacher = (10 * a).bfloat16(), u.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = relation_kl(student, b.bfloat16() * 10, teacher, w.bfloat16(), kernel=kernel)
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    p = relation_logits(student, student, 1.0).softmax(-1)
    assert not torch.isfinite(torch.nn.functional.kl_div(p.log(), p, reduction="sum"))


@pytest.mark.parametrize("kernel", FORMS)
def test_half_precision_inputs_are_accumulated_in_float32(kernel):
    inputs = tensors(tokens=64, width_s=32, width_t=64, dtype=torch.bfloat16)
    exact = relation_kl(*(x.double() for x in inputs), kernel="direct")
    found, gradients = value_and_gradients(kernel, *inputs)
    assert float(found) == pytest.approx(float(exact), rel=1e-5)
    assert all(g.dtype == torch.bfloat16 for g in gradients)


@pytest.mark.parametrize("kernel", FORMS)
def test_float16_gradients_take_the_scalers_factor_before_they_are_rounded(kernel):
    """A mean over 4 x 12 maps of 197 rows: its gradients underflow in float16, and 65,536 overflows there."""
    inputs = tensors(batch=4, heads=12, tokens=197, width_s=16, width_t=24, dtype=torch.float16)
    exact = value_and_gradients("direct", *(x.double() for x in inputs))[1]
    a, b = (x.clone().requires_grad_() for x in inputs[:2])
    scaled = 65536.0 * 3 * relation_kl(a, b, *inputs[2:], kernel=kernel)
    for found, wanted in zip(torch.autograd.grad(scaled, [a, b]), exact, strict=True):
        assert found.dtype == torch.float16 and (found == 0).float().mean() < 0.01
        torch.testing.assert_close(found.double() / 65536, wanted, rtol=5e-3, atol=1e-9)


@pytest.mark.parametrize("kernel", FORMS)
@pytest.mark.parametrize("same", [False, True])
def test_gradients_of_gradients(kernel, same):
    """What a gradient penalty needs."""
    a, b, u, w = tensors(batch=1, heads=2, tokens=4, width_s=3, width_t=4)

    def penalty(x):
        a, b = (x, x) if same else x.unbind()
        loss = relation_kl(a, b, u, u if same else w, kernel=kernel)
        return torch.autograd.grad(loss, x, create_graph=True)[0]

    x = (a if same else torch.stack([a, b])).requires_grad_()
    assert penalty(x).norm() > 1e-4
    assert gradcheck(penalty, (x,))


@pytest.mark.parametrize("kernel", FORMS)
def test_padding_changes_neither_loss_nor_gradients(kernel):
    inputs = tensors()
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 7:] = False
    expected = value_and_gradients("direct", *inputs, mask=mask)
    apart = [relation_kl(*(x[n : n + 1, :, :k] for x in inputs)) for n, k in ((0, 11), (1, 7))]
    torch.testing.assert_close(expected[0], sum(apart) / 2)
    padded = [torch.cat([x, 50 * torch.randn(2, 3, 4, x.shape[-1], dtype=x.dtype)], 2) for x in inputs]
    longer = torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], 1)
    loss, gradients = value_and_gradients(kernel, *padded, mask=longer)
    torch.testing.assert_close(loss, expected[0])
    for found, wanted in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(found[:, :, :11], wanted)
        assert found[:, :, 11:].abs().max() == 0


@pytest.mark.parametrize("kernel", FORMS)
def test_a_sample_of_padding_alone_is_left_out(kernel):
    inputs = tensors()
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1] = False
    loss, gradients = value_and_gradients(kernel, *inputs, mask=mask)
    torch.testing.assert_close(loss, relation_kl(*(x[:1] for x in inputs)))
    assert all(torch.isfinite(g).all() for g in gradients)
    assert relation_kl(*inputs, mask=torch.zeros_like(mask), kernel=kernel) == 0


@pytest.mark.parametrize("kernel", FORMS)
def test_causal_rows_see_only_what_came_before(kernel):
    a, b, u, w = tensors(batch=1, heads=1)
    rows = [relation_kl(a[:, :, i : i + 1].expand(-1, -1, i + 1, -1), b[:, :, : i + 1],
                        u[:, :, i : i + 1].expand(-1, -1, i + 1, -1), w[:, :, : i + 1]) for i in range(11)]  # fmt: skip
    torch.testing.assert_close(relation_kl(a, b, u, w, causal=True, kernel=kernel), sum(rows) / 11)


@pytest.mark.parametrize("kernel", FORMS)
def test_biases_are_added_to_the_logits(kernel):
    a, b, u, w = tensors()
    bias_s, bias_t = torch.randn(1, 3, 11, 11, dtype=torch.float64), torch.randn(2, 1, 11, 11, dtype=torch.float64)
    expected = value_and_gradients("direct", a, b, u, w, bias_s=bias_s, bias_t=bias_t)
    assert (expected[0] - relation_kl(a, b, u, w)).abs() > 1e-2
    torch.testing.assert_close(value_and_gradients(kernel, a, b, u, w, bias_s=bias_s, bias_t=bias_t), expected)


def test_a_bias_that_learns_gets_its_gradient():
    a, b, u, w = tensors(tokens=4)
    bias = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda bias: relation_kl(a, b, u, w, bias_s=bias), (bias,))
    with pytest.raises(UserError, match="no gradient"):
        relation_kl(a, b, u, w, bias_s=bias, kernel="chunked")


def test_agreement_of_equal_and_of_uniform_students():
    a, b, u, w = tensors()
    overlap, share = relation_agreement(u, w, u, w)
    assert float(overlap) == 1
    assert float(share) == pytest.approx(0, abs=1e-9)
    assert float(relation_agreement(torch.zeros_like(a), b, u, w)[1]) == pytest.approx(1)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[:, 8:] = False
    assert float(relation_agreement(torch.zeros_like(a), b, u, w, mask=mask)[1]) == pytest.approx(1)


def test_agreement_sees_what_a_row_sees():
    """Under causal order row i has i + 1 columns: an even student there is uniform, an equal one overlaps wholly."""
    a, b, u, w = tensors()
    even = relation_agreement(torch.zeros_like(a), b, u, w, causal=True)
    assert float(even[1]) == pytest.approx(1)
    assert float(relation_agreement(u, w, u, w, causal=True)[0]) == pytest.approx(1)
    rows = [relation_agreement(*(x[:, :, : i + 1] for x in (a, b, u, w)))[0] for i in range(11)]
    assert float(relation_agreement(a, b, u, w, causal=True)[0]) != pytest.approx(float(rows[-1]))
    last = [x[:, :, -1:].expand(-1, -1, 11, -1) for x in (a, u)]
    alone = relation_agreement(last[0], b, last[1], w)[0]  # the last row sees everything
    without = sum(
        relation_agreement(a[:, :, i : i + 1].expand(-1, -1, i + 1, -1), b[:, :, : i + 1],
                           u[:, :, i : i + 1].expand(-1, -1, i + 1, -1), w[:, :, : i + 1])[0]
        for i in range(10)
    )  # fmt: skip
    assert float(relation_agreement(a, b, u, w, causal=True)[0]) == pytest.approx(float(without + alone) / 11)
    bias = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
    bias[..., 4] = 50.0  # both attend to one column alone
    assert float(relation_agreement(a, b, u, w, bias_s=bias, bias_t=bias, top=1)[0]) == 1


def test_what_cannot_be_compared_is_refused():
    a, b, u, w = tensors()
    with pytest.raises(UserError, match="heads"):
        relation_kl(a[:, :2], b[:, :2], u, w)
    with pytest.raises(UserError, match="tokens"):
        relation_kl(a[:, :, :5], b[:, :, :5], u, w)
    with pytest.raises(UserError, match="kernel"):
        relation_kl(a, b, u, w, kernel="fast")
    with pytest.raises(UserError, match="booleans"):
        relation_kl(a, b, u, w, mask=torch.ones(2, 11))
    with pytest.raises(UserError, match="CUDA"):
        relation_kl(a, b, u, w, kernel="triton")
