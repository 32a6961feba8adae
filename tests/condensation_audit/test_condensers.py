"""The five condensers and the selections: identities, known answers, resumption."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.condensers.condense import METHODS, condense
from tenfold.systems.condensation_audit.condensers.dataset_distillation import (
    DatasetDistillation,
    DatasetDistillationSettings,
)
from tenfold.systems.condensation_audit.condensers.distribution_matching import (
    DistributionMatching,
    DistributionMatchingSettings,
    class_means,
    mean_difference,
)
from tenfold.systems.condensation_audit.condensers.experts import (
    ExpertSettings,
    flat_parameters,
    from_replay_buffer,
    train_experts,
    unflatten,
)
from tenfold.systems.condensation_audit.condensers.gradient_matching import (
    GradientMatching,
    GradientMatchingSettings,
    class_gradients,
    gradient_distance,
    outer_and_inner,
)
from tenfold.systems.condensation_audit.condensers.selections import herding, k_center
from tenfold.systems.condensation_audit.condensers.trajectory_matching import (
    TrajectoryMatching,
    TrajectoryMatchingSettings,
    trajectory_loss,
)
from tenfold.systems.condensation_audit.data.real_data import real_data
from tenfold.systems.condensation_audit.networks.factories import factory_of, seeded_network

SMALL = {"width": 4, "depth": 2}
FAST = {
    "dc": {"iterations": 3, "outer": 2, "inner": 2, "real_batch": 8},
    "dsa": {"iterations": 3, "outer": 2, "inner": 2, "real_batch": 8},
    "dm": {"iterations": 4, "real_batch": 8},
    "mtt": {
        "iterations": 3,
        "steps": 3,
        "expert_epochs": 1,
        "max_start": 2,
        "experts": 2,
        "expert_length": 3,
        "expert_batch": 12,
        "image_rate": 10.0,
    },
    "dd": {"iterations": 3, "steps": 2, "epochs": 2, "batch_size": 16},
}


def small_factory(norm="instance", **more):
    return factory_of("convnet", image_shape=(1, 8, 8), num_classes=3, norm=norm, **SMALL, **more)


# --- gradient matching ----------------------------------------------------------------------------------------------


def gradients(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv": torch.randn(2, 5, 3, 3, 3, generator=generator),
        "linear": torch.randn(2, 8, 20, generator=generator),
        "bias": torch.randn(2, 8, generator=generator),
    }


def test_distance_identities():  # trap 9
    found = gradients()
    opposite = {name: -value for name, value in found.items()}
    longer = {name: 3 * value for name, value in found.items()}
    assert abs(float(gradient_distance(found, found))) < 1e-3
    assert float(gradient_distance(found, opposite)) == pytest.approx(2 * 2 * (5 + 8), abs=1e-3)
    assert float(gradient_distance(found, longer)) == pytest.approx(0, abs=1e-3)
    zero_row = {**found, "linear": found["linear"].clone()}
    zero_row["linear"][0, 2] = 0
    assert float(gradient_distance(zero_row, found)) == pytest.approx(1, abs=1e-3)
    assert float(gradient_distance(found, opposite, "cos")) == pytest.approx(4, abs=1e-4)
    assert float(gradient_distance(found, longer, "mse")) == pytest.approx(
        sum(float((2 * value).square().sum()) for value in found.values()), rel=1e-5
    )


def test_zero_gradients_leave_no_nan():  # trap 9
    ours = torch.zeros(1, 3, 4, requires_grad=True)
    loss = gradient_distance({"w": ours}, {"w": torch.randn(1, 3, 4)})
    loss.backward()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("graph", [False, True])
def test_one_call_gives_the_gradients_of_a_loop(graph, data):
    network = seeded_network(small_factory(), 0)
    batches = [(data.images[rows], data.labels[rows]) for rows in data.rows]
    loop = class_gradients(network, batches, graph=graph, vmapped=False)
    together = class_gradients(network, batches, graph=graph, vmapped=True)
    assert set(loop) == {"features.0.weight", "features.4.weight", "classifier.weight"}
    for name, value in loop.items():
        assert torch.allclose(value, together[name], atol=1e-6)


def test_gradient_matching_of_the_real_batch_itself_is_zero(data):  # trap 10
    settings = GradientMatchingSettings(start="real", real_batch=12, iterations=1)
    condenser = GradientMatching(data, 12, small_factory(), settings, seed=0)
    loss = condenser.matching_loss(seeded_network(small_factory(), 5), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, condenser.images)
    assert abs(float(loss.detach())) < 0.05
    assert float(gradient.norm()) < 0.05
    other = GradientMatching(data, 1, small_factory(), settings, seed=0)
    loss = other.matching_loss(seeded_network(small_factory(), 5), torch.Generator().manual_seed(0))
    assert float(loss.detach()) > 1


def test_schedule_of_the_published_table():
    assert [outer_and_inner(n) for n in (1, 10, 20, 30, 40, 50)] == [
        (1, 1),
        (10, 50),
        (20, 25),
        (30, 20),
        (40, 15),
        (50, 10),
    ]
    assert outer_and_inner(5) == (5, 100)


def test_updates_follow_network_training_but_not_the_last_image_step(data):
    calls = []
    settings = GradientMatchingSettings(iterations=1, outer=4, inner=1, real_batch=4)
    GradientMatching(data, 1, small_factory(), settings, seed=0, on_network_trained=lambda *_: calls.append(1)).step(0)
    assert len(calls) == 3
    settings.outer = 1
    GradientMatching(data, 1, small_factory(), settings, seed=0, on_network_trained=lambda *_: calls.append(1)).step(0)
    assert len(calls) == 3  # one image per class: no update at all


def test_batch_norm_has_the_statistics_of_real_images(data):  # trap 17
    settings = GradientMatchingSettings(iterations=1, outer=1, real_batch=8, start="real")
    condenser = GradientMatching(data, 1, small_factory("batch"), settings, seed=0)
    assert math.isfinite(condenser.step(0))


def test_a_network_that_cannot_be_differentiated_twice_is_named(data):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * 2

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x):
            return Once.apply(self.linear(Once.apply(x.flatten(1))))

    with pytest.raises(UserError, match="differentiates a gradient, which the network does not allow"):
        condense(data, "dc", 1, Network, iterations=1)


# --- distribution matching ------------------------------------------------------------------------------------------


def test_distribution_matching_of_the_class_itself_is_zero(data):  # trap 10
    network = seeded_network(small_factory(), 0)
    images = data.images[torch.cat(data.rows)]
    means = class_means(network, images, [12] * 3)
    assert float(mean_difference(means, means).detach()) == 0
    by_hand = torch.stack([network.embed(data.images[rows]).mean(0) for rows in data.rows])
    assert torch.allclose(means, by_hand, atol=1e-6)


def test_classes_of_unequal_size(blobs):
    images = blobs()
    uneven = real_data(images.subset(torch.arange(5, 36)))
    found = condense(uneven, "dm", 2, "convnet", network_arguments=SMALL, iterations=2, real_batch=10)
    assert found.source["class_counts"] == [7, 12, 12]
    with pytest.raises(UserError, match=r"fewer than 8 images"):
        condense(uneven, "dm", 8, "convnet", network_arguments=SMALL, iterations=1)


def test_one_step_is_the_textbook_step(data):
    settings = DistributionMatchingSettings(iterations=1, real_batch=12, strategy="", image_rate=0.5)
    condenser = DistributionMatching(data, 2, small_factory(), settings, seed=3)
    before = condenser.images.detach().clone().requires_grad_()
    from tenfold.seeds import derived_seed

    network = seeded_network(small_factory(), derived_seed(3, 13, 0))
    loss = sum(
        (network.embed(data.images[data.rows[c]]).mean(0) - network.embed(before[2 * c : 2 * c + 2]).mean(0))
        .square()
        .sum()
        for c in range(3)
    )
    expected = before.detach() - 0.5 * torch.autograd.grad(loss, before)[0]
    condenser.step(0)
    assert torch.allclose(condenser.images.detach(), expected, atol=1e-5)


# --- trajectory matching --------------------------------------------------------------------------------------------


def test_snapshots_are_copies(data):  # trap 12
    settings = ExpertSettings(experts=1, epochs=2, batch_size=12, learning_rate=0.1, strategy="")
    (snapshots,) = train_experts(data, small_factory(), settings)
    assert not torch.equal(snapshots[0], snapshots[1])
    assert not torch.equal(snapshots[1], snapshots[2])
    network = seeded_network(small_factory(), 9)
    flat = flat_parameters(network)
    again = flat.clone()
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert torch.equal(flat, again)
    assert unflatten(flat, network)["classifier.weight"].shape == network.classifier.weight.shape


def test_experts_are_kept_and_read(data, tmp_path):
    settings = ExpertSettings(experts=2, epochs=1, batch_size=12)
    first = train_experts(data, small_factory(), settings, folder=tmp_path)
    again = train_experts(data, small_factory(), settings, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = replace(data.preprocessing, mean=(0.2,))
    for images, factory, rules, seed in (
        (data, factory_of("mlp", image_shape=(1, 8, 8), num_classes=3), settings, 0),
        (replace(data, labels=data.labels.roll(1)), small_factory(), settings, 0),
        (replace(data, pixels=data.pixels.flip(0), images=None), small_factory(), settings, 0),
        (replace(data, preprocessing=other, images=None), small_factory(), settings, 0),  # as whitening does
        (data, small_factory(), replace(settings, learning_rate=0.5), 0),
        (data, small_factory(), settings, 1),
    ):
        with pytest.raises(UserError, match="made from other images"):
            train_experts(images, factory, rules, folder=tmp_path, seed=seed)
    (tmp_path / "expert-000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="not an expert's file"):
        train_experts(data, small_factory(), settings, folder=tmp_path)


def test_official_buffers_become_trajectories():
    network = seeded_network(small_factory(), 0)
    snapshot = [parameter.detach() for parameter in network.parameters()]
    (found,) = from_replay_buffer([[snapshot, snapshot]])
    assert torch.equal(found[1], flat_parameters(network))


def mtt(data, **settings):
    options = TrajectoryMatchingSettings(**{**FAST["mtt"], "strategy": "", **settings})
    return TrajectoryMatching(data, 2, small_factory(), options, seed=0)


def test_trajectory_loss_is_one_without_training_and_zero_at_the_target(data):  # trap 10
    condenser = mtt(data, rate=0.0)
    begin, end = condenser.trajectories[0][0], condenser.trajectories[0][1]
    stayed = condenser.unroll(begin, torch.Generator().manual_seed(0))
    assert float(trajectory_loss(stayed, begin, end).detach()) == 1
    assert float(trajectory_loss(end, begin, end)) == 0


def test_unrolled_training_is_plain_sgd(data):
    condenser = mtt(data, rate=0.1)
    begin = condenser.trajectories[0][0]
    reached = condenser.unroll(begin, torch.Generator().manual_seed(0))
    network = seeded_network(small_factory(), 0)
    network.load_state_dict({name: value.clone() for name, value in unflatten(begin, network).items()}, strict=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(network(condenser.images.detach()), condenser.labels.hard).backward()
        optimizer.step()
    assert torch.allclose(reached, flat_parameters(network), atol=1e-6)


@pytest.mark.parametrize("method", ["mtt", "dd"])
def test_recomputing_the_unroll_changes_nothing(method, data):
    found = [
        condense(data, method, 1, "convnet", network_arguments=SMALL, **FAST[method], recompute=recompute)
        for recompute in (False, True)
    ]
    assert torch.allclose(found[0].images, found[1].images, atol=1e-6)


# --- dataset distillation -------------------------------------------------------------------------------------------


def test_meta_gradient_equals_differences(blobs):  # trap 11
    data = real_data(blobs(per_class=4, size=4))
    data.images = data.images.double()
    factory = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double()  # noqa: E731
    settings = DatasetDistillationSettings(iterations=1, steps=2, epochs=2, rate=0.3)
    condenser = DatasetDistillation(data, 1, factory, settings, seed=0)
    condenser.images = condenser.images.detach().double().requires_grad_()
    condenser.raw_rates = condenser.raw_rates.detach().double().requires_grad_()
    network = seeded_network(factory, 3)
    before = [value.detach().clone() for value in network.parameters()]
    rows = torch.arange(len(data))

    def loss():
        return condenser.outer_loss(network, condenser.unroll(network), rows)

    gradients = torch.autograd.grad(loss(), [condenser.images, condenser.raw_rates])
    for leaf, gradient in zip((condenser.images, condenser.raw_rates), gradients, strict=True):
        for place in (0, 1, leaf.numel() - 1):
            eps = 1e-6
            with torch.no_grad():
                leaf.view(-1)[place] += eps
            up = float(loss().detach())
            with torch.no_grad():
                leaf.view(-1)[place] -= 2 * eps
            down = float(loss().detach())
            with torch.no_grad():
                leaf.view(-1)[place] += eps
            assert (up - down) / (2 * eps) == pytest.approx(float(gradient.view(-1)[place]), rel=1e-4, abs=1e-9)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    assert condenser.rates.tolist() == pytest.approx([0.3] * 4)


def test_a_known_start_and_the_order_belong_to_the_set(data):
    found = condense(
        data, "dd", 1, "convnet", network_arguments=SMALL, **FAST["dd"], initialisation="known", learn_labels=True
    )
    assert found.initial is not None
    assert set(found.initial) == set(small_factory()().state_dict())
    assert found.steps.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.learning_rates.shape == (4,)
    assert found.labels.shape == (6, 3)


# --- selections -----------------------------------------------------------------------------------------------------


def test_herding_follows_the_mean():
    features = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    assert herding(features, 1).tolist() == [2]  # the mean is 3
    assert herding(features, 4).tolist()[0] == 2
    assert sorted(herding(features, 4).tolist()) == [0, 1, 2, 3]
    total = features[herding(features, 2)].mean()
    assert abs(float(total) - 3) <= min(abs((2 + float(x)) / 2 - 3) for x in (0, 1, 9))


def test_k_center_takes_the_farthest():
    assert k_center(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 3).tolist() == [2, 3, 0]


def test_class_means_average_disjoint_parts(data):
    one = condense(data, "class-means", 1, "convnet", network_arguments=SMALL)
    assert torch.allclose(one.images[0], data.images[data.rows[0]].mean(0), atol=1e-5)


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_set_and_repeats_itself(method, data):  # trap 14
    state = torch.get_rng_state()
    first, again, other = (
        condense(data, method, 2, "convnet", network_arguments=SMALL, seed=seed, **FAST.get(method, {}))
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, again.images)
    if method not in ("herding", "k-center", "k-means"):
        assert not torch.equal(first.images, other.images)
    per_step = 2 * 3 * (2 if method == "dd" else 1)
    assert len(first) == per_step
    assert first.hard_labels[:6].tolist() == [0, 0, 1, 1, 2, 2]
    assert first.poisoned is None
    assert not data.images.requires_grad


@pytest.mark.parametrize("method", list(FAST))
def test_a_killed_condensation_continues(method, data, tmp_path):
    options = {"network_arguments": SMALL, **FAST[method]}
    if method in ("dc", "dsa", "mtt"):
        options["learn_labels"] = True
    whole = condense(data, method, 1, "convnet", **options)

    class Killed(Exception):
        pass

    def die(done, total, loss):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        condense(data, method, 1, "convnet", folder=tmp_path, progress=die, **options)
    resumed = condense(data, method, 1, "convnet", folder=tmp_path, **options)
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.labels, resumed.labels)


def test_any_network_of_the_user(data):
    factory = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))  # noqa: E731
    for method in ("dm", "dc", "herding"):
        assert len(condense(data, method, 1, factory, **FAST.get(method, {}))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dx"}, "no method 'dx'"),
        ({"method": "dm", "iteration": 3}, "dm has no setting 'iteration'"),
        ({"method": "dm", "images_per_class": 0}, "at least 1"),
        ({"method": "dm", "start": "zeros"}, "settings.dm: start must be"),
        ({"method": "dsa", "strategy": "blur"}, "no augmentation 'blur'"),
        ({"method": "mtt", "max_start": 9, "expert_length": 4}, "reach beyond the 4 epochs"),
        ({"method": "dd", "initialisation": "some"}, "settings.dd: initialisation must be"),
        ({"method": "random", "images_per_class": 13}, "13 cannot be selected"),
    ],
)
def test_wrong_settings_are_one_line(options, message, data):
    with pytest.raises(UserError, match=message):
        condense(data, network="convnet", network_arguments=SMALL, **options)


def test_a_class_without_images_is_refused(blobs):
    images = blobs()
    with pytest.raises(UserError, match="'c1' has no training image"):
        real_data(images.subset((images.labels != 1).nonzero()[:, 0]))
