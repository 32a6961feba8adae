"""The additive model, its loss and its gradients: identities that hold exactly."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tenfold.systems.boosted_exits.method import BoostedExitLoss, ensemble_logits, expand_reweight, rescale_gradient
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.networks.small_cnn import small_cnn


def make_logits(exits=3, batch=5, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, classes, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(exits)
    ]


def make_network(**options):
    torch.manual_seed(0)
    return small_cnn(num_classes=4, widths=(4, 4, 6), **options).double()


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_no_reweighting_is_plain_multi_exit_cross_entropy():
    network = make_network(rescale=False)
    ours = BoostedExitLoss(0.0)(network(IMAGES), LABELS).total
    plain = sum(F.cross_entropy(f, LABELS) for f in network(IMAGES))
    assert ours.item() == pytest.approx(plain.item(), abs=1e-12)
    boosted, joint = gradients(network, ours), gradients(network, plain)
    for name in joint:
        torch.testing.assert_close(boosted[name], joint[name], rtol=0, atol=1e-12)


def test_full_reweighting_is_the_plain_sum():
    f1, f2, f3 = make_logits()
    torch.testing.assert_close(ensemble_logits([f1, f2, f3], 1.0)[-1], f1 + f2 + f3)


@given(r=st.floats(0, 1), exits=st.integers(1, 6))
def test_constant_reweighting_is_the_geometric_sum(r, exits):
    logits = make_logits(exits)
    expected = sum(r ** (exits - 1 - i) * f for i, f in enumerate(logits))
    torch.testing.assert_close(ensemble_logits(logits, r)[-1], expected, rtol=1e-10, atol=1e-10)


def test_reweighting_uses_the_factor_of_the_exit_before_in_training_and_evaluation():
    f1, f2, f3 = make_logits()
    z = ensemble_logits([f1, f2, f3], [0.2, 0.8])  # interpolated: 0.2, 0.5, 0.8
    torch.testing.assert_close(z[1], f2 + 0.2 * f1)
    torch.testing.assert_close(z[2], f3 + 0.5 * (f2 + 0.2 * f1))
    trained = ensemble_logits([f1, f2, f3], [0.2, 0.8], stop_gradient=True)
    for evaluated, of_training in zip(z, trained, strict=True):
        torch.testing.assert_close(evaluated, of_training, rtol=0, atol=0)
    official = ensemble_logits([f1, f2, f3], [0.2, 0.8], official_eval_index=True)
    torch.testing.assert_close(official[1], f2 + 0.5 * f1)


@pytest.mark.parametrize("reweight", [(0.1, 0.2, 0.3, 0.4), (-0.1,), (1.5, 0.5)])
def test_reweighting_out_of_range_or_number_is_refused(reweight):
    with pytest.raises(ValueError, match="reweight"):
        expand_reweight(reweight, 3)


def test_an_exits_loss_leaves_older_heads_alone_but_not_the_trunk():
    network = make_network(rescale=False, reweight=0.5)
    z = ensemble_logits(network(IMAGES), 0.5, stop_gradient=True)
    found = gradients(network, F.cross_entropy(z[2], LABELS))
    for name, gradient in found.items():
        older_head = name.startswith(("heads.0", "heads.1"))
        assert (gradient is None or bool((gradient == 0).all())) if older_head else bool((gradient != 0).any()), name


def test_without_stop_gradient_older_heads_learn_from_later_losses():
    network = make_network(rescale=False)
    z = ensemble_logits(network(IMAGES), 0.5)
    assert gradients(network, F.cross_entropy(z[2], LABELS))["heads.0.3.weight"].any()


def test_gradient_of_an_exit_in_closed_form():
    logits = make_logits(3, batch=6)
    BoostedExitLoss(0.5)(logits, LABELS).total.backward()
    z = ensemble_logits([f.detach() for f in logits], 0.5)
    for f, ensemble in zip(logits, z, strict=True):
        expected = (ensemble.softmax(-1) - F.one_hot(LABELS, 4)) / 6
        torch.testing.assert_close(f.grad, expected, rtol=1e-10, atol=1e-12)


def test_one_head_alone_sees_its_gradient_through_any_additive_loss():
    logits = make_logits(2, batch=6)
    targets = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    BoostedExitLoss(0.5, F.binary_cross_entropy_with_logits)(logits, targets).total.backward()
    z2 = logits[1].detach() + 0.5 * logits[0].detach()
    torch.testing.assert_close(logits[1].grad, (z2.sigmoid() - targets) / targets.numel())


class _Chain(EarlyExitModel):
    """Identity stages whose heads sum their input against one vector, so that every head's gradient is that vector."""

    def __init__(self, exits, vector, rescale):
        super().__init__([_Same() for _ in range(exits)], [_Dot(vector) for _ in range(exits)], rescale=rescale)


class _Same(nn.Module):
    def forward(self, x):
        return x * 1.0


class _Dot(nn.Module):
    def __init__(self, vector):
        super().__init__()
        self.vector = vector

    def forward(self, x):
        return (x * self.vector).sum().view(1, 1)


@pytest.mark.parametrize("rescale", [True, False])
def test_rescaling_averages_the_gradients_of_the_deeper_heads(rescale):
    exits, vector = 4, torch.tensor([1.0, -2.0])
    chain = _Chain(exits, vector, rescale).train()
    outputs = []
    for stage in chain.stages:
        stage.register_forward_hook(lambda module, inputs, output: (output.retain_grad(), outputs.append(output))[0])
    sum(f.sum() for f in chain(torch.ones(1, 2, requires_grad=True))).backward()
    for n, output in enumerate(outputs):
        torch.testing.assert_close(output.grad[0], vector if rescale else (exits - n) * vector)


def test_rescaling_changes_no_bit_of_the_forward_pass_and_nothing_in_eval():
    with_rescaling, without = make_network(rescale=True), make_network(rescale=False)
    for f, g in zip(with_rescaling(IMAGES), without(IMAGES), strict=True):
        assert torch.equal(f, g)
    with_rescaling.eval()
    without.eval()
    mine = gradients(with_rescaling, sum(f.sum() for f in with_rescaling(IMAGES)))
    other = gradients(without, sum(f.sum() for f in without(IMAGES)))
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_work_in_place_on_a_rescaled_tensor_is_refused_not_silently_wrong():
    y = rescale_gradient(torch.ones(3, requires_grad=True) * 1.0, 0.5)
    with pytest.raises(RuntimeError, match="inplace"):
        y.relu_()


def test_equalised_losses_have_the_mean_of_the_averages_and_resume():
    loss = BoostedExitLoss(0.5, equalise=True)
    logits = make_logits(4, batch=6)
    first = loss(logits, LABELS)
    assert loss.averages.shape == (4,)  # one for every exit, whatever the network's number of blocks
    torch.testing.assert_close(first.total, first.per_exit.sum(), rtol=1e-9, atol=1e-9)
    averages = loss.averages.clone()
    second = loss([f * 2 for f in logits], LABELS)
    torch.testing.assert_close(loss.averages, 0.9 * averages + 0.1 * second.per_exit)
    copy = BoostedExitLoss(0.5, equalise=True)
    copy.load_state_dict(loss.state_dict())
    assert torch.equal(copy.averages, loss.averages)
