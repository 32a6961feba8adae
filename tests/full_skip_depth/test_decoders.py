"""The decoder against formulas written a second time: wiring, fusion, resizing, heads, planes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth import (
    AdaptiveConcat,
    BinsHead,
    FullSkipDecoder,
    LocalPlanarDecoder,
    RangeHead,
    TimmEncoder,
    TinyEncoder,
    UNetDecoder,
    build_network,
    decoder_widths,
    planar_depth,
    predict_depth,
    sources_of,
    unet3plus_decoder,
)
from tenfold.systems.full_skip_depth.decoders.adaptive_concat import FUSIONS
from tenfold.systems.full_skip_depth.decoders.full_skip import CONNECTIVITIES
from tenfold.systems.full_skip_depth.decoders.resizing import RESIZES, shrink, shrink_in_turn

CHANNELS = [8, 10, 12, 14, 16]


def pyramid(height=64, width=96, batch=2, channels=CHANNELS):
    torch.manual_seed(1)
    sizes = []
    for _ in channels:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return [torch.randn(batch, c, *size, requires_grad=True) for c, size in zip(channels, sizes, strict=True)]


class PlainUNet(nn.Module):
    """A U-Net decoder as one writes it without any of this."""

    def __init__(self, channels, width):
        super().__init__()
        self.start = nn.Conv2d(channels[-1], width, 1)
        self.joins, self.convolutions = nn.ModuleList(), nn.ModuleList()
        below = width
        for c in channels[-2::-1]:
            out = max(16, below // 2)
            join = [nn.Conv2d(c + below, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            two = []
            for _ in range(2):
                two += [nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            self.joins.append(nn.Sequential(*join))
            self.convolutions.append(nn.Sequential(*two))
            below = out

    def forward(self, features):
        x = self.start(features[-1])
        for join, two, skip in zip(self.joins, self.convolutions, features[-2::-1], strict=True):
            up = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = two(join(torch.cat([skip, up], 1)))
        return x


@pytest.mark.parametrize("size", [(64, 96), (53, 71)])
def test_same_and_concat_is_a_plain_unet(size):
    torch.manual_seed(0)
    ours, plain = FullSkipDecoder(CHANNELS, width=64, connectivity="same", fusion="concat"), PlainUNet(CHANNELS, 64)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())
    plain.load_state_dict(dict(zip(plain.state_dict(), _in_order(ours), strict=True)))
    features = pyramid(*size)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(features)[0], plain.train(mode)(features), rtol=0, atol=1e-6)


def _in_order(decoder):
    """The decoder's tensors in the plain network's order: start, all joins, all convolutions."""
    state = decoder.state_dict()
    keys = [k for k in state if k.startswith("bottleneck")]
    keys += [k for k in state if ".acm." in k] + [k for k in state if ".block." in k]
    return [state[k] for k in keys]


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@pytest.mark.parametrize("fusion", ["scalar", "se", "scalar+se", "pixel"])
def test_before_training_acm_is_the_plain_concatenation_bit_for_bit(connectivity, fusion):
    torch.manual_seed(0)
    plain = FullSkipDecoder(CHANNELS, connectivity=connectivity, fusion="concat")
    adaptive = FullSkipDecoder(CHANNELS, connectivity=connectivity, fusion=fusion)
    adaptive.load_state_dict(plain.state_dict(), strict=False)
    features = pyramid()
    for mode, batch in ((True, 2), (False, 2), (False, 1)):
        one, two = (d.train(mode)([x[:batch] for x in features]) for d in (plain, adaptive))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("size", [(64, 96), (53, 71)])
def test_one_image_a_batch_and_what_is_exported_agree_after_training(size, monkeypatch):
    decoder = FullSkipDecoder(CHANNELS, width=64)
    for name, values in decoder.state_dict().items():
        if values.is_floating_point():
            nn.init.uniform_(values, 0.5, 1.5) if "running_var" in name else nn.init.normal_(values, std=0.2)
    features = pyramid(*size)
    decoder.eval()
    together = decoder(features)[0]
    alone = decoder([x[1:] for x in features])[0]
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(decoder(features)[0], together, rtol=1e-4, atol=1e-4)


def test_levels_see_what_the_table_says():
    assert [sources_of(i, 5, "shallow") for i in (4, 3, 2, 1)] == [[1, 2, 3, 4], [1, 2, 3], [1, 2], [1]]
    assert [sources_of(i, 5, "same") for i in (4, 1)] == [[4], [1]]
    assert sources_of(2, 5, "full") == [1, 2, 3, 4, 5] and sources_of(3, 5, "none") == []
    assert decoder_widths(512, 5) == [32, 64, 128, 256, 512] and decoder_widths(64, 5)[0] == 16
    decoder = FullSkipDecoder(CHANNELS, width=256)
    widths = [level["acm"].channels for level in decoder.levels.values()]
    d = {5: 256, 4: 128, 3: 64, 2: 32}
    assert widths == [sum(CHANNELS[:4]) + d[5], sum(CHANNELS[:3]) + d[4], sum(CHANNELS[:2]) + d[3], CHANNELS[0] + d[2]]


def test_a_source_whose_weights_are_zero_has_no_gradient_and_only_it():
    decoder = FullSkipDecoder(CHANNELS, width=64)
    level, source = 3, 2
    start = sum(CHANNELS[: source - 1])
    with torch.no_grad():
        decoder.levels[str(level)]["acm"].out[0].weight[:, start : start + CHANNELS[source - 1]] = 0
        # What the finer levels take themselves is cut, so that only the way through this level is left.
        for finer in ("2", "1"):
            acm = decoder.levels[finer]["acm"]
            acm.out[0].weight[:, : sum(acm.source_channels)] = 0
        acm = decoder.levels["4"]["acm"]
        acm.out[0].weight[:, : sum(acm.source_channels)] = 0
    features = pyramid()
    decoder(features)[0].square().sum().backward()
    alive = [x.grad is not None and bool(x.grad.abs().sum() > 0) for x in features]
    assert alive == [True, False, True, False, True]


def test_area_uses_every_pixel_alike_and_plain_bilinear_loses_most():
    for mode, used in (("area", 64), ("bilinear", 4)):
        x = torch.rand(1, 1, 64, 96, requires_grad=True)
        y = shrink(x, (8, 12), mode)
        y.sum().backward()
        blocks = x.grad[0, 0].unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 64)
        assert ((blocks > 0).sum(1) == used).all()
        if mode == "area":
            assert torch.allclose(x.grad, torch.full_like(x.grad, 1 / 64))
            assert torch.allclose(y.mean(), x.mean())


@pytest.mark.parametrize("size", [(64, 96), (53, 71)])
@pytest.mark.parametrize("mode", ["area", "max"])
def test_sizes_made_in_turn_are_those_made_directly(mode, size):
    x = torch.rand(2, 3, *size)
    sizes = [(-(-size[0] // k), -(-size[1] // k)) for k in (2, 4, 8)]
    pool = F.adaptive_avg_pool2d if mode == "area" else F.adaptive_max_pool2d
    for made, target in zip(shrink_in_turn(x, sizes, mode), sizes, strict=True):
        torch.testing.assert_close(made, pool(x, target), rtol=0, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_wiring_and_size(fusion):
    image = torch.rand(2, 3, 45, 61)
    for resize in RESIZES if fusion == "concat" else ["area"]:
        for connectivity in ("none", "full"):
            decoder = FullSkipDecoder(
                CHANNELS, fusion=fusion, connectivity=connectivity, resize=resize, skip_projection=6, image_channels=3
            )
            maps = decoder(pyramid(45, 61), image)
            assert [tuple(x.shape[2:]) for x in maps] == [(23, 31), (12, 16), (6, 8), (3, 4)]
            maps[0].sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
    taken = decoder.contributions(pyramid(45, 61), image)
    assert set(taken) == {1, 2, 3, 4} and all(sum(row.values()) == pytest.approx(1) for row in taken.values())


def test_source_weights_are_n_times_softmax():
    acm = AdaptiveConcat([4, 4, 4], 8, 16, fusion="scalar")
    assert acm.source_weights().tolist() == pytest.approx([1, 1, 1])
    with torch.no_grad():
        acm.a.copy_(torch.tensor([0.0, math.log(2), 0.0]))
    assert acm.source_weights().tolist() == pytest.approx([0.75, 1.5, 0.75])
    with pytest.raises(ValueError, match="no fusion"):
        AdaptiveConcat([4], 8, 16, fusion="sum")


def test_edge_branch_starts_as_sobel():
    weight = AdaptiveConcat([4], 4, 6, fusion="cbam").edge.weight
    assert weight[0, 0].tolist() == [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    assert torch.equal(weight[1, 1], weight[0, 0].T) and weight[0, 1].abs().sum() == 0


def test_ranges_hold_at_the_ends():
    x = torch.tensor([-1e4, 0.0, 1e4]).view(1, 1, 1, 3)
    for kind, middle in (("sigmoid", 5.5), ("exp", 1.0), ("softplus", 1 + math.log(2))):
        head = RangeHead(1, low=1.0, high=10.0, kind=kind)
        with torch.no_grad():
            head.convolution.weight.zero_()
            head.convolution.weight[0, 0, 1, 1] = 1
            head.convolution.bias.zero_()
            y, _ = head(x, (1, 3))
        assert y.flatten().tolist() == pytest.approx([1, middle, 10], rel=1e-4)
    with pytest.raises(ValueError, match="empty"):
        RangeHead(1, low=2.0, high=1.0)


def test_bin_centres_are_midpoints_of_normalized_widths():
    head = BinsHead(4, low=0.0, high=10.0, bins=4)
    centres = head.centres(torch.tensor([[-1.0, 0.0, 0.3, -5.0]]))  # widths 0.1, 0.1, 0.4, 0.1
    assert centres[0].tolist() == pytest.approx([10 / 14, 30 / 14, 80 / 14, 130 / 14])
    depth, _ = head(torch.randn(2, 4, 9, 5), (20, 12))
    assert depth.shape == (2, 1, 20, 12) and depth.min() > 0 and depth.max() < 10


def test_planes():
    flat = torch.tensor([-50.0, 0.3, 0.0]).view(1, 3, 1, 1)  # theta = 0: the plane faces the camera
    assert torch.allclose(planar_depth(flat, 8, high=10.0), torch.full((1, 1, 8, 8), 5.0))
    # theta = 60 degrees, phi = 225 degrees: at a corner of 8 x 8 the denominator is below zero.
    steep = torch.tensor([50.0, math.log(0.625 / 0.375), 0.0]).view(1, 3, 1, 1)
    raw = planar_depth(steep, 8, high=10.0, floor=None)
    assert raw.min() < 0 and 5 / raw.min() == pytest.approx(-0.036, abs=1e-3)
    assert planar_depth(steep, 8, high=10.0).min() > 0
    for stride in (2, 4):
        assert planar_depth(steep, stride, high=10.0, floor=None).min() > 0
    n = (math.sin(math.pi / 3) * math.cos(1.25 * math.pi), math.sin(math.pi / 3) * math.sin(1.25 * math.pi), 0.5)
    expected = 5 / (n[0] * 0.25 + n[1] * -0.25 + n[2])  # row 0, column 1 of 2 x 2: u = .25, v = -.25
    assert planar_depth(steep, 2, high=10.0)[0, 0, 0, 1].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [LocalPlanarDecoder, UNetDecoder, unet3plus_decoder])
@pytest.mark.parametrize("channels", [CHANNELS, CHANNELS[1:]])
def test_baselines_take_any_size(make, channels):
    features = pyramid(45, 61)[5 - len(channels) :]
    decoder = make(channels, width=64)
    image = torch.rand(2, 3, 45, 61)
    assert len(decoder(features, image)[0]) == 2


@pytest.mark.parametrize(
    ("decoder", "head"),
    [("full-skip", "sigmoid"), ("unet", "bins"), ("bts", "exp"), ("unet3plus", "softplus"), ("dpt", "sigmoid")],
)
def test_networks_give_the_images_size(decoder, head):
    network = build_network("tiny-4-6-8-8-8", decoder=decoder, head=head, width=32, max_depth=8.0)
    answer = network(torch.rand(2, 3, 71, 53))
    assert answer.shape == (2, 1, 71, 53) and answer.min() >= 0 and answer.max() <= 8.0001


def test_any_timm_backbone_or_one_line():
    network = build_network("timm/resnet18", width=32, skip_projection=8)
    assert network.encoder.channels == [64, 64, 128, 256, 512]
    assert network(torch.rand(1, 3, 50, 66)).shape == (1, 1, 50, 66)
    assert network.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    for name, words in (("vit_tiny_patch16_224", "no pyramid"), ("no_such_network", "no feature maps")):
        with pytest.raises(UserError, match=words):
            TimmEncoder(name)
    with pytest.raises(UserError, match="no connectivity"):
        build_network(connectivity="dense")


def test_focal_length_and_flip():
    network = build_network("tiny-4-6-8-8-8", width=32, focal_reference=715.0873).eval()
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        half = network(images, torch.tensor([715.0873, 715.0873 / 2]))
        whole = network(images, torch.full((2,), 715.0873))
    torch.testing.assert_close(half[1], whole[1] / 2)
    with pytest.raises(UserError, match="focal"):
        network(images)

    class Ramp(nn.Module):  # a network that knows left from right and nothing else
        def forward(self, x):
            return torch.arange(1.0, x.shape[-1] + 1).expand(len(x), 1, *x.shape[-2:])

    flipped = predict_depth(Ramp(), images, flip=True)
    assert torch.allclose(flipped, torch.full_like(flipped, 24.5))
    clipped = predict_depth(Ramp(), images, flip=True, limits=(1.0, 10.0))
    assert clipped[0, 0, 0].item() == pytest.approx((1 + 10) / 2)


def test_frozen_statistics_stay_frozen_after_every_train():
    network = build_network("tiny-4-6-8-8-8", width=32, frozen_batch_norm=True, auxiliary=2)
    for _ in range(2):
        network.train()
        assert not any(m.training for m in network.encoder.modules() if isinstance(m, nn.BatchNorm2d))
        assert all(m.training for m in network.decoder.modules() if isinstance(m, nn.BatchNorm2d))
    before = network.encoder.levels[0][1].running_mean.clone()
    assert len(network.predict(torch.rand(2, 3, 32, 32)).auxiliary) == 2
    assert torch.equal(before, network.encoder.levels[0][1].running_mean)
    assert TinyEncoder().channels == [16, 24, 32, 48, 64]
