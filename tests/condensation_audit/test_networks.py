"""Networks, augmentation, whitening, and networks trained together."""

from functools import partial

import pytest
import torch

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.zca import fit_zca
from tenfold.systems.condensation_audit.networks.factories import factory_of, make_network, penultimate, seeded_network
from tenfold.systems.condensation_audit.networks.halving_pool import HalvingPool
from tenfold.systems.condensation_audit.networks.small_networks import NETWORKS
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.training.ensembles import train_together
from tenfold.systems.condensation_audit.training.siamese_augmentation import (
    FULL_STRATEGY,
    Draw,
    apply_augmentation,
    draw_augmentation,
)


def test_official_parameter_names():
    network = make_network("convnet", image_shape=(1, 28, 28), num_classes=10)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["features.0.weight"] == (128, 1, 3, 3)
    assert shapes["features.4.weight"] == shapes["features.8.weight"] == (128, 128, 3, 3)
    assert shapes["features.9.bias"] == (128,)
    assert shapes["classifier.weight"] == (10, 2048)
    attacked = make_network("convnet_baadd", image_shape=(3, 32, 32), num_classes=10).state_dict()
    assert {"features.0.weight", "features.3.weight", "features.6.weight"} <= set(attacked)
    assert tuple(attacked["classifier.0.weight"].shape) == (192, 2048)
    alexnet = make_network("alexnet_baadd", image_shape=(3, 32, 32), num_classes=10).state_dict()
    assert tuple(alexnet["classifier.0.weight"].shape) == (384, 4096)
    assert {"features.4.weight", "classifier.2.weight", "classifier.4.weight"} <= set(alexnet)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vgg11"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 12, 16)])
def test_every_network_takes_images_of_any_shape(name, shape):
    arguments = {"depth": 2} if name.startswith("convnet") else {}
    network = make_network(name, image_shape=shape, num_classes=7, **arguments).eval()
    images = torch.randn(3, *shape)
    assert network(images).shape == (3, 7)
    assert penultimate(network, images).shape[0] == 3


def test_wrong_networks_are_refused_in_one_line():
    with pytest.raises(UserError, match="no model 'nonet'"):
        make_network("nonet", image_shape=(1, 8, 8), num_classes=2)
    with pytest.raises(UserError, match="cannot be halved 3 times"):
        make_network("convnet", image_shape=(1, 4, 4), num_classes=2)
    with pytest.raises(UserError, match="cannot be made"):
        make_network("convnet", image_shape=(1, 8, 8), num_classes=2, widht=3)


def test_seeded_networks_leave_the_global_generator_alone():
    factory = factory_of("convnet", image_shape=(1, 8, 8), num_classes=3, width=4, depth=2)
    before = torch.get_rng_state()
    first, again, other = (seeded_network(factory, seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("operation", FULL_STRATEGY.split("_"))
def test_a_draw_changes_equal_batches_equally(operation):  # trap 15
    images = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    draw = draw_augmentation(operation, torch.Generator().manual_seed(3))
    both = apply_augmentation(torch.cat([images, images]), draw)
    assert torch.equal(both[:4], both[4:])
    per_image = Draw(operation, draw.values.expand(4, 3))
    assert torch.allclose(apply_augmentation(images, per_image), both[:4], atol=1e-6)


def test_markers_move_to_the_same_place():  # trap 15
    marker = torch.zeros(2, 1, 16, 16)
    marker[0, 0, 8, 8], marker[1, 0, 8, 8] = 1.0, 5.0
    for operation in ("cutout", "scale", "crop", "rotate"):
        moved = apply_augmentation(marker, draw_augmentation(operation, torch.Generator().manual_seed(1)))
        assert torch.allclose(moved[0] * 5, moved[1])


def test_augmentation_repeats_and_is_differentiable():
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    for seed in range(12):
        first, again = (draw_augmentation(FULL_STRATEGY, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert first.operation == again.operation
        assert torch.equal(first.values, again.values)
        (gradient,) = torch.autograd.grad(apply_augmentation(images, first).square().sum(), images)
        assert gradient.isfinite().all()
    with pytest.raises(UserError, match="no augmentation 'blur'"):
        draw_augmentation("color_blur", torch.Generator())


def test_whitening():  # trap 13
    train = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(0)).cumsum(3)
    zca = fit_zca(train, eps=1e-3)
    white = zca.transform(train)
    assert torch.allclose(zca.undo(white), train, atol=1e-4)
    covariance = white.flatten(1).T.cov(correction=0)
    assert torch.allclose(covariance, torch.eye(16), atol=0.02)
    with pytest.raises(UserError, match="whitening is of 16 values"):
        zca.transform(torch.zeros(1, 1, 5, 5))


def test_preprocessing_goes_there_and_back():
    zca = fit_zca(torch.randn(50, 2, 3, 3))
    for whitening in (None, zca):
        preprocessing = Preprocessing((0.5, 0.2), (0.3, 0.1), (2, 3, 3), whitening)
        pixels = torch.randint(0, 256, (5, 2, 3, 3), dtype=torch.uint8)
        assert torch.allclose(preprocessing.pixels(preprocessing.normalize(pixels)), pixels / 255, atol=1e-4)
    assert torch.allclose(Preprocessing((0.5,), (0.25,), (1, 2, 2)).lowest, torch.tensor(-2.0))


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_together_equals_one_after_the_other(norm):
    factory = factory_of("convnet", image_shape=(1, 8, 8), num_classes=3, width=4, depth=2, norm=norm)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % 3
    recipe = TrainingRecipe(epochs=6, batch_size=5, learning_rate=0.05, augmentation="flip_color")
    loop = train_together(factory, images, labels, recipe, seeds=[0, 1, 2], form="loop")
    stacked = train_together(factory, images, labels, recipe, seeds=[0, 1, 2], form="vmap")
    assert torch.allclose(loop.logits(images), stacked.logits(images), atol=2e-4)
    alone = train_together(factory, images, labels, recipe, seeds=[2], form="loop")
    assert torch.equal(alone.logits(images)[0], loop.logits(images)[2])


def test_every_network_may_have_its_own_set():
    factory = factory_of("mlp", image_shape=(1, 4, 4), num_classes=2, width=8)
    images = torch.randn(2, 6, 1, 4, 4)
    labels = torch.stack([torch.arange(6) % 2, 1 - torch.arange(6) % 2])
    recipe = TrainingRecipe(epochs=30, learning_rate=0.1)
    own = train_together(factory, images, labels, recipe, seeds=[4, 5])
    alone = train_together(factory, images[1], labels[1], recipe, seeds=[5])
    assert torch.equal(own.logits(images[0])[1], alone.logits(images[0])[0])
    with pytest.raises(UserError, match="as many sets"):
        train_together(factory, images, labels, recipe, seeds=[1])


@pytest.mark.parametrize("size", [(64, 64), (65, 63)])
@pytest.mark.parametrize("form", ["plain", "vmapped"])
def test_pooling_by_additions_is_average_pooling_to_the_second_derivative(size, form):
    images = torch.randn(2, 5, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def first(pool, x):
        return torch.func.grad(lambda y: pool(y).pow(3).sum())(x).square().sum()

    def derivatives(pool):
        pooled = pool(images)
        if form == "vmapped":
            return pooled, *(
                torch.vmap(torch.func.grad(f))(images) for f in (lambda x: pool(x).pow(3).sum(), partial(first, pool))
            )
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(pool(x).pow(3).sum(), x, create_graph=True)
        return pooled, gradient, *torch.autograd.grad(gradient.square().sum(), x)

    for ours, theirs in zip(derivatives(HalvingPool()), derivatives(torch.nn.AvgPool2d(2)), strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 22)])
@pytest.mark.parametrize("name", ["convnet", "convnet_baadd"])
def test_the_known_width_of_the_features_is_the_true_one(name, shape):
    for depth in (1, 2, 3):
        network = make_network(name, image_shape=shape, num_classes=4, width=2, depth=depth)
        assert network(torch.zeros(2, *shape)).shape == (2, 4)


def test_seeding_keeps_nothing_of_every_network():
    factory = factory_of("mlp", image_shape=(1, 2, 2), num_classes=2, width=2)
    before = len(torch.cuda._queued_calls), torch.get_rng_state()
    one, same, other = (seeded_network(factory, seed) for seed in (1, 1, 2))
    assert (len(torch.cuda._queued_calls), *before[1].tolist()) == (before[0], *torch.get_rng_state().tolist())
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_an_exported_pooling_does_not_depend_on_the_batch():
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(HalvingPool(), (torch.zeros(3, 4, 16, 16),), dynamic_shapes=(batch,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.avg_pool2d.default"}
    many = torch.rand(200, 4, 16, 16)
    assert torch.allclose(program.module()(many), HalvingPool()(many))
