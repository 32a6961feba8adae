import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tenfold.cost import count_flops, count_parameters
from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.networks.msdnet import MSDNet, published_msdnet
from tenfold.systems.boosted_exits.networks.official_checkpoints import ours_to_official
from tenfold.systems.boosted_exits.networks.ranet import RANet, published_ranet

# From the official code: cumulative costs by its counter, parameters, entries of the state dict where known.
PUBLISHED = [
    ("msdnet-cifar100-anytime", 4955644, 1040, "15140452 25505992 37788460 52061840 62181620 74070872 87729596 "
     "100038944 110121860 121679336"),
    ("msdnet-cifar100-batch", 2431552, None, "15140452 25751240 33659180 43336592 51822068 60307544"),
    ("msdnet-imagenet-step7", 62314472, 1883, "615692968 1436392016 2283210200 2967421456 3253794488"),
    ("msdnet-imagenet-step5", 38754952, 1475, "422731560 933845008 1453512760 1915234016 2156907688"),
    ("msdnet-imagenet-step4", 23958440, None, "339902824 685456720 1008156120 1254472688 1360529624"),
    ("ranet-cifar100-anytime", 3354710, 1774, "15826020 31306440 44690220 50404752 60712628 63717656 90255228 "
     "94997472"),
    ("ranet-cifar100-batch1", 2617261, None, "8372324 21788360 32878892 41570192 53283828 58990680"),
    ("ranet-cifar100-batch2", 5186987, 2728, "10739812 24155848 35246380 43937680 93068276 114677336 164023356 "
     "175743648"),
    ("ranet-cifar100-batch3", 4060577, 2734, "10748004 24164040 35254572 43945872 55659508 61366360 105640124 "
     "117360416"),
    ("ranet-imagenet-batch1", 131123991, 3317, "246472360 631164048 860403190 1041144878 1869847124 2160379452 "
     "2734279235 2828311039"),
    ("ranet-imagenet-anytime", 149144186, None, "434968808 888669904 1153356020 1352449308 2279913603 2588473759 "
     "3235517799 3333484943"),
]  # fmt: skip


def cumulative_costs(model: EarlyExitModel, x: Tensor) -> list[int]:
    costs: list[int] = []
    state = x

    def stage() -> None:
        nonlocal state
        state, _ = model.run_stage(len(costs), state)

    for _ in range(model.exits):
        costs.append(count_flops(stage, modules=[model], convention="msdnet") + (costs[-1] if costs else 0))
    return costs


def published(name: str) -> EarlyExitModel:
    return published_msdnet(name) if name.startswith("msdnet") else published_ranet(name)


@pytest.mark.parametrize(("name", "parameters", "entries", "costs"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_published_costs_exactly(name: str, parameters: int, entries: int | None, costs: str) -> None:
    size = 224 if "imagenet" in name else 32
    with torch.device("meta"):
        model = published(name)
        assert cumulative_costs(model, torch.empty(1, 3, size, size)) == [int(cost) for cost in costs.split()]
    assert count_parameters(model) == parameters
    assert entries is None or len(model.state_dict()) == entries


def test_published_shapes_and_defaults() -> None:
    with torch.device("meta"):
        msdnet = published_msdnet("msdnet-cifar100-anytime")
        ranet = published_ranet("ranet-cifar100-anytime")
    official = ours_to_official(msdnet)
    assert official["blocks.0.1.layers.2.conv_down.net.3.weight"].shape == (12, 24, 3, 3)
    assert official["classifier.0.m.0.net.0.weight"].shape == (128, 160, 3, 3)
    assert msdnet.rescale and not ranet.rescale  # as trained in the official code
    assert set(msdnet.reweight) == {0.5} == set(ranet.reweight)
    with pytest.raises(UserError, match="msdnet-cifar100-batch"):
        published_msdnet("msdnet-cifar10")
    with pytest.raises(UserError, match="ranet-imagenet-anytime"):
        published_ranet("ranet")


SMALL_MSDNETS = {
    "max": {"num_blocks": 3, "base": 2, "step": 1, "channels": 4, "growth_rate": 2},
    "min": {"num_blocks": 3, "base": 3, "step": 2, "channels": 4, "growth_rate": 2, "prune": "min"},
    "lin_grow": {
        "num_blocks": 3,
        "base": 1,
        "step": 1,
        "step_mode": "lin_grow",
        "channels": 4,
        "growth_rate": 2,
        "reduction": 0.0,
    },
    "imagenet": {"num_blocks": 2, "base": 2, "step": 2, "channels": 4, "growth_rate": 2, "stem": "imagenet"},
}
SMALL_RANETS = {
    "even": {"step": 2, "channels": 4, "growth_rate": 4},
    "lin_grow": {"step": 1, "step_mode": "lin_grow", "channels": 4, "growth_rate": 4, "num_blocks": 1, "block_step": 1},
    "imagenet": {"step": 2, "channels": 4, "growth_rate": 4, "stem": "imagenet"},
}


def perturbed(model: nn.Module) -> nn.Module:
    """In eval mode, with statistics and affine parameters of batch norm that are not those of a new one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.add_(torch.rand_like(values) * 0.5)
    return model.eval()


class Reference:
    """The networks as their papers have them, computed from official keys without any module."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def conv(self, x: Tensor, key: str, norm: str, stride: int = 1, pooled: bool = False) -> Tensor:
        weight = self.weights[key + ".weight"]
        x = F.conv2d(x, weight, self.weights.get(key + ".bias"), stride, weight.shape[-1] // 2)
        mean, var, scale, shift = (
            self.weights[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.relu(F.batch_norm(x, mean, var, scale, shift))
        return F.max_pool2d(x, 3, 2, 1) if pooled else x

    def block(self, x: Tensor, key: str, stride: int = 1) -> Tensor:
        if f"{key}.net.3.weight" in self.weights:
            x = self.conv(x, f"{key}.net.0", f"{key}.net.1")
            return self.conv(x, f"{key}.net.3", f"{key}.net.4", stride)
        return self.conv(x, f"{key}.net.0", f"{key}.net.1", stride)

    def first(self, x: Tensor, key: str, strides: list[int]) -> list[Tensor]:
        imagenet = f"{key}.0.0.weight" in self.weights
        maps = [self.conv(x, f"{key}.0.0", f"{key}.0.1", 2, True) if imagenet else self.block(x, f"{key}.0")]
        for k, stride in enumerate(strides, start=1):
            maps.append(self.block(maps[-1], f"{key}.{k}", stride))
        return maps

    def head(self, x: Tensor, n: int) -> Tensor:
        for k in (0, 1):
            x = self.block(x, f"classifier.{n}.m.{k}", stride=2)
        x = F.avg_pool2d(x, 2).flatten(1)
        return F.linear(x, self.weights[f"classifier.{n}.linear.weight"], self.weights[f"classifier.{n}.linear.bias"])

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.weights)

    def msdnet(self, x: Tensor, scales: int) -> list[Tensor]:
        maps = self.first(x, "blocks.0.0.layers", [2] * (scales - 1))
        logits = []
        i = 0
        while self.has(f"blocks.{i}."):
            position = 1 if i == 0 else 0
            while self.has(key := f"blocks.{i}.{position}."):
                maps = self.transition(maps, key) if self.has(f"{key}m.") else self.layer(maps, key)
                position += 1
            logits.append(self.head(maps[-1], i))
            i += 1
        return logits

    def transition(self, maps: list[Tensor], key: str) -> list[Tensor]:
        return [self.block(x, f"{key}m.{s}") for s, x in enumerate(maps)]

    def layer(self, maps: list[Tensor], key: str) -> list[Tensor]:
        dropped = 1 if self.has(f"{key}layers.0.conv_down") else 0
        outputs = []
        for s, x in enumerate(maps[dropped:]):
            parts = [x]
            if self.has(f"{key}layers.{s}.conv_down"):
                parts.append(self.block(maps[s + dropped - 1], f"{key}layers.{s}.conv_down", 2))
            outputs.append(torch.cat([*parts, self.block(x, f"{key}layers.{s}.conv_normal")], 1))
        return outputs

    def ranet(self, x: Tensor, strides: list[int], halving: list[set[int]]) -> list[Tensor]:
        maps = self.first(x, "FirstLayer.layers", strides)[::-1]
        logits: list[Tensor] = []
        low: list[list[Tensor]] = []
        for s, x in enumerate(maps):
            kept = []
            j = 0
            while self.has(key := f"scale_flows.{s}.{j}."):
                intermediates = [x]
                layers = len({k.split(".")[4] for k in self.weights if k.startswith(f"{key}layers.")})
                for k in range(layers):
                    x = intermediates[-1]
                    if j < len(low):
                        stride = 2 if j + 1 in halving[s] and k == layers - 1 else 1
                        new = self.block(x, f"{key}layers.{k}.conv_normal", stride)
                        old = self.block(low[j][k], f"{key}layers.{k}.conv_up")
                        x = torch.cat([self.up(x, new), self.up(old, new), new], 1)
                    else:
                        x = torch.cat([x, self.block(x, f"{key}layers.{k}.conv_normal")], 1)
                    intermediates.append(x)
                if j < len(low):
                    x = torch.cat([x, self.up(self.block(low[j][-1], f"{key}conv_last"), x)], 1)
                if self.has(f"{key}trans"):
                    x = self.block(x, f"{key}trans")
                if j >= len(low):
                    logits.append(self.head(x, len(logits)))
                kept.append(intermediates)
                j += 1
            low = kept
        return logits

    @staticmethod
    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


@pytest.mark.parametrize("name", SMALL_MSDNETS)
@torch.no_grad()
def test_msdnet_computes_what_the_spec_says(name: str) -> None:
    torch.manual_seed(0)
    model = perturbed(MSDNet(7, **SMALL_MSDNETS[name]))
    x = torch.randn(2, 3, 128, 128) if name == "imagenet" else torch.randn(2, 3, 32, 32)
    expected = Reference(ours_to_official(model)).msdnet(x, scales=3)
    for ours, reference in zip(model(x), expected, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("name", SMALL_RANETS)
@torch.no_grad()
def test_ranet_computes_what_the_spec_says(name: str) -> None:
    torch.manual_seed(0)
    model = perturbed(RANet(7, **SMALL_RANETS[name]))
    x = torch.randn(2, 3, 128, 128) if name == "imagenet" else torch.randn(2, 3, 32, 32)
    # Last s-1 of B_0..B_i for the scales 1-2-3-3; for blocks 2-4-6-8 the example of the paper.
    halving = [set(), {1}, {1, 2}, {2, 3}] if name == "lin_grow" else [set(), {2}, {2, 4}, {4, 6}]
    expected = Reference(ours_to_official(model)).ranet(x, strides=[1, 2, 2], halving=halving)
    for ours, reference in zip(model(x), expected, strict=True):
        torch.testing.assert_close(ours, reference)


def test_ranet_transitions_of_the_spec_example() -> None:
    with torch.device("meta"):
        keys = ours_to_official(RANet())
    numbers = {(int(k.split(".")[1]), int(k.split(".")[2]) + 1) for k in keys if ".trans." in k}
    assert numbers == {(1, 2), (2, 2), (2, 4), (3, 2), (3, 5)}


def test_minimal_pruning_and_its_transitions() -> None:
    layers, scales = 7, 3
    maps_left, transitions_after = [], []
    for child in (child for stage in MSDNet(7, **SMALL_MSDNETS["min"]).stages for child in stage):
        kind = type(child).__name__
        if kind == "_MultiScaleLayer":
            maps_left.append(len(child.layers))
        elif kind == "_Transition":
            transitions_after.append(len(maps_left))
    assert maps_left == [min(scales, layers - layer + 1) for layer in range(1, layers + 1)]
    assert transitions_after == [layers // 3, 2 * layers // 3]


@pytest.mark.parametrize(
    ("network", "settings"),
    [(MSDNet, SMALL_MSDNETS["max"]), (MSDNet, SMALL_MSDNETS["min"]), (RANet, SMALL_RANETS["even"])],
    ids=["msdnet-max", "msdnet-min", "ranet"],
)
@torch.no_grad()
def test_samples_can_leave_between_any_two_stages(network: type, settings: dict) -> None:
    torch.manual_seed(0)
    model = perturbed(network(4, **settings))
    x = torch.randn(5, 3, 32, 32)
    whole = model(x)
    for leave_after in range(model.exits):
        state, rows = x, torch.arange(5)
        for n in range(model.exits):
            state, logits = model.run_stage(n, state)
            torch.testing.assert_close(logits, whole[n][rows])
            if n == leave_after:
                rows = torch.tensor([3, 1])
                assert all(leaf.shape[0] == 5 for leaf in tree_leaves(state))
                state = tree_map(lambda leaf, rows=rows: leaf.index_select(0, rows), state)


@torch.no_grad()
def test_ranet_hands_on_only_what_is_still_needed() -> None:
    model = RANet(4, **SMALL_RANETS["even"]).eval()
    state, handed_on = torch.zeros(1, 3, 32, 32), []
    for n in range(model.exits):
        state, _ = model.run_stage(n, state)
        maps, intermediates, _ = state
        handed_on.append((len(maps), [len(block) for block in intermediates]))
    assert handed_on == [
        (3, [3]), (3, [3] * 2), (2, [3] * 3), (2, [3] * 4), (1, [3] * 5), (1, [3] * 6), (0, []), (0, []),
    ]  # fmt: skip


def test_rescaling_touches_the_coarsest_scale_only() -> None:
    model = MSDNet(4, **SMALL_MSDNETS["max"]).train()
    outputs: list[Tensor] = []
    model.stages[0].register_forward_hook(lambda *call: outputs.extend(call[-1]))
    state, logits = model.run_stage(0, torch.randn(2, 3, 32, 32))
    for output in outputs:
        output.retain_grad()
    (sum(x.sum() for x in state) + 0 * logits.sum()).backward()
    *finer, coarsest = (output.grad for output in outputs)
    assert all((gradient == 1).all() for gradient in finer)
    torch.testing.assert_close(coarsest, torch.full_like(coarsest, 2 / 3))  # (N - 1) / N


def test_initialisation_is_the_effective_official_one() -> None:
    torch.manual_seed(0)
    convolution = ours_to_official(MSDNet())["blocks.0.0.layers.2.net.0.weight"]
    assert convolution.shape == (64, 32, 3, 3)
    assert convolution.std().item() == pytest.approx(0.0341, rel=0.02)  # He-normal: 0.0589
    weights = ours_to_official(RANet())
    for key in ("classifier.0.m.1.net.0.weight", "scale_flows.0.0.layers.0.conv_normal.net.3.weight"):
        fan_out = weights[key].shape[0] * 9
        assert weights[key].std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
    first = weights["FirstLayer.layers.3.net.0.weight"]
    assert first.std().item() == pytest.approx(1 / math.sqrt(3 * first.shape[1] * 9), rel=0.03)
    assert not weights["classifier.0.linear.bias"].any()


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (1, 1), (33, 50)])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@torch.no_grad()
def test_images_of_any_size_and_grey_ones(stem: str, size: tuple[int, int]) -> None:
    small = {"channels": 4, "growth_rate": 4, "image_channels": 1, "stem": stem}
    msdnet = MSDNet(4, num_blocks=2, base=1, step=1, growth_factors=(1, 2), bottleneck_factors=(1, 2), **small)
    for model in (msdnet, RANet(4, step=1, **small)):
        for logits in model.eval()(torch.randn(2, 1, *size)):
            assert logits.shape == (2, 4)
            assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (MSDNet, {"num_blocks": 0}, "num_blocks must be a positive integer; got 0"),
        (MSDNet, {"step_mode": "odd"}, "step_mode"),
        (MSDNet, {"prune": "mean"}, "prune"),
        (MSDNet, {"stem": "mnist"}, "stem"),
        (MSDNet, {"growth_factors": (1, 2)}, "one number per scale"),
        (MSDNet, {"growth_factors": (1, 1, 1), "growth_rate": 3}, "must be even"),
        (MSDNet, {"num_blocks": 1, "base": 2, "prune": "min"}, "at least as many layers as scales"),
        (MSDNet, {"reduction": 2.0}, "reduction"),
        (RANet, {"step_mode": "odd"}, "step_mode"),
        (RANet, {"scales": (1, 2, 3)}, "scales must go up from 1"),
        (RANet, {"scales": (1, 2, 4, 4)}, "scales must go up from 1"),
        (RANet, {"growth_rate": 2}, "compression"),
        (RANet, {"bottleneck_factors": (4, 2, 0, 1)}, "must be positive"),
        (RANet, {"block_step": 0}, "block_step"),
        (RANet, {"reduction": 0.0}, "reduction"),
    ],
)
def test_settings_that_make_no_network(network: type, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**settings)
