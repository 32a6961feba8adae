import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from weights import draw

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.darknet import DarknetPlan
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite
from tenfold.systems.backbone_search.mapping.batch_statistics import reestimate_batch_norm
from tenfold.systems.backbone_search.mapping.channels import channel_importance, channel_map
from tenfold.systems.backbone_search.mapping.map_weights import map_weights, nearest_parent
from tenfold.systems.backbone_search.mapping.state_dicts import map_state_dict, shrink_traced
from tenfold.systems.backbone_search.space.mobile_space import SMALL_SEED, MobileSpace

SMALL = {"neck": (16, 16, 16), "head": 16, "num_classes": 2}


def mobile(widths=(16, 24, 32), depths=(2, 2, 2), e=3.0, k=3, ops="iii", se=False, act="silu"):
    names = {"i": "ibn", "f": "fused", "t": "tucker"}
    stages = tuple(
        tuple(BlockPlan(names[o], w, 2 if j == 0 else 1, k, e if o != "t" else 1) for j in range(d))
        for w, d, o in zip((8, *widths), (1, *depths), "i" + ops, strict=True)
    )
    return DetectorPlan(MobilePlan(8, stages, (1, 2, 3), act, se), **SMALL)


def darknet(widths=(8, 16, 16, 24, 32), depths=(1, 1, 1, 1)):
    return DetectorPlan(DarknetPlan(widths, depths, depthwise=True), **SMALL)


def drawn(plan, seed=7):
    model = YOLOXLite(plan)
    model.load_state_dict(draw(model.state_dict(), seed))
    return model.eval()


def mapped(source, plan, **options):
    torch.manual_seed(1)
    target = YOLOXLite(plan)
    return target, map_weights(source, target, **options)


X = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(3)) * 255


def distance(a, b):
    with torch.no_grad():
        ours, theirs = a.eval()(X), b.eval()(X)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("plan", [mobile(ops="ift", se=False), mobile(se=True), darknet()], ids=["ops", "se", "csp"])
@pytest.mark.parametrize("rule", ["fna", "tenfold"])
def test_mapping_to_itself_is_the_identity_bit_for_bit(plan, rule, tmp_path):
    source = drawn(plan)
    target, report = mapped(source, plan, rule=rule)
    assert same(source, target) and report.preserves_function and report.inherited == 1
    read = YOLOXLite(DetectorPlan.from_dict(json.loads(json.dumps(plan.to_dict()))))  # and through a file
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    read.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert same(source, mapped(read.eval(), read.plan, rule=rule)[0])


@pytest.mark.parametrize("growth", ["live", "net2net"])
@pytest.mark.parametrize("se", [False, True])
def test_growing_keeps_the_function(growth, se):
    source = drawn(mobile(se=se))
    for plan in (mobile(e=5, se=se), mobile(widths=(24, 32, 48), se=se), mobile((24, 40, 48), e=6, k=5, se=se)):
        target, report = mapped(source, plan, growth=growth)
        assert distance(target, source) < 1e-4 and report.preserves_function


def test_larger_kernels_and_identity_depth_change_nothing():
    source = drawn(mobile())
    for plan in (mobile(k=5), mobile(k=7), mobile(depths=(3, 4, 2))):
        target, report = mapped(source, plan)
        assert distance(target, source) < 1e-6 and report.preserves_function
    light = drawn(darknet())
    target, report = mapped(light, darknet(depths=(2, 3, 1, 1)))
    assert distance(target, light) < 1e-6 and report.preserves_function
    copied, report = mapped(source, mobile(depths=(3, 4, 2)), deepen="copy")
    assert distance(copied, source) > 1e-3 and not report.preserves_function


def test_a_stage_of_one_strided_block_grows_by_fresh_identities():
    source = drawn(mobile(depths=(1, 1, 1)))
    target, _ = mapped(source, mobile(depths=(2, 1, 3)))
    assert distance(target, source) < 1e-6
    by_fna, _ = mapped(source, mobile(depths=(2, 1, 1)), rule="fna")
    # 8 of the 16 inputs are covered by the strided block's weights, the rest is 0
    added = by_fna.backbone.stages[1][1].expand.conv.weight
    assert torch.equal(added[:24, :8], source.backbone.stages[1][0].expand.conv.weight[:24])
    assert (added[:, 8:] == 0).all()


@pytest.mark.parametrize("plan", [mobile(widths=(24, 32, 48), e=5, depths=(3, 2, 4), k=5)])
def test_growing_and_shrinking_by_order_restores_the_seed(plan):
    source = drawn(mobile())
    large, _ = mapped(source, plan, importance="order")
    # what the growth added to the depths is dropped again: its last scales are 0
    back, _ = mapped(large, mobile(), importance="order")
    assert same(source, back)
    small, _ = mapped(source, mobile(widths=(8, 16, 24), e=2))
    again, _ = mapped(small, small.plan)
    assert same(small, again)


def test_importance_follows_a_permutation_and_order_does_not():
    source = drawn(mobile())
    permuted, order = copy.deepcopy(source), torch.randperm(48, generator=torch.Generator().manual_seed(0))
    block = permuted.backbone.stages[1][1]
    for part in (block.expand, block.dw):
        part.conv.weight.data = part.conv.weight.data[order]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(part.bn, name).data = getattr(part.bn, name).data[order]
    block.proj.conv.weight.data = block.proj.conv.weight.data[:, order]
    assert distance(permuted, source) < 1e-5
    narrow = mobile(e=2)
    by_importance = distance(mapped(permuted, narrow)[0], mapped(source, narrow)[0])
    by_order = distance(mapped(permuted, narrow, importance="order")[0], mapped(source, narrow, importance="order")[0])
    assert by_importance < 1e-4 < 1e-3 < by_order
    for rule in ("gamma", "gamma_l1"):
        assert distance(mapped(permuted, narrow, importance=rule)[0], mapped(source, narrow, importance=rule)[0]) < 1e-4


def test_all_blocks_of_a_stage_keep_the_same_channels():
    source = drawn(mobile(depths=(3, 2, 2)))
    for index, block in enumerate(source.backbone.stages[1]):
        block.proj.bn.bias.data = torch.arange(16.0)  # the signature of a channel
        block.proj.bn.weight.data *= 1 + index
    target, _ = mapped(source, mobile(widths=(8, 24, 32), depths=(3, 2, 2)))
    signatures = [block.proj.bn.bias.tolist() for block in target.backbone.stages[1]]
    assert signatures[0] == signatures[1] == signatures[2] == sorted(signatures[0])
    kept = [int(value) for value in signatures[0]]
    reading = source.backbone.stages[2][0].expand.conv.weight[:, kept, 0, 0].tolist()
    assert all(row in reading for row in target.backbone.stages[2][0].expand.conv.weight[:, :, 0, 0].tolist())


def test_narrower_maps_nest_and_ties_go_to_the_first():
    generator = torch.Generator()
    values = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0])
    kept = [set(channel_map(values, n, "live", generator).source.tolist()) for n in (1, 2, 3, 4)]
    assert kept == [{0}, {0, 2}, {0, 2, 4}, {0, 2, 3, 4}]
    with pytest.raises(UserError):
        channel_importance(drawn(mobile()).layout(), drawn(mobile()).state_dict(), "best", generator)


def test_gradients_reach_new_channels_under_live_growth_and_never_under_zero_fill():
    source, plan = drawn(mobile()), mobile(e=6)
    found = {}
    for name, options in {"live": {}, "fna": {"rule": "fna"}}.items():
        target, _ = mapped(source, plan, **options)
        target.eval()(X).square().mean().backward()
        found[name] = float(target.backbone.stages[1][1].proj.conv.weight.grad[:, 48:].abs().sum())
    assert found["live"] > 0 == found["fna"]
    deep, _ = mapped(source, mobile(depths=(3, 2, 2)))
    deep.eval()(X).square().mean().backward()
    assert float(deep.backbone.stages[1][2].proj.bn.weight.grad.abs().sum()) > 0


def test_fna_is_a_crop_tensor_by_tensor():
    source = drawn(mobile(widths=(16, 24, 32), depths=(2, 3, 2), k=3))
    target, _ = mapped(source, mobile(widths=(8, 24, 40), depths=(3, 2, 2), k=5), rule="fna")
    torch.manual_seed(1)
    fresh = YOLOXLite(target.plan).state_dict()
    renamed = dict(source.state_dict())
    for name, value in source.state_dict().items():  # the deeper stage repeats its last block
        if name.startswith("backbone.stages.1.1."):
            renamed[name.replace("stages.1.1.", "stages.1.2.")] = value
    assert {n: v.tolist() for n, v in target.state_dict().items()} == {
        n: v.tolist() for n, v in map_state_dict(renamed, fresh).items()
    }


@pytest.mark.parametrize("before", "ift")
@pytest.mark.parametrize("after", "ift")
def test_operators_change_into_each_other(before, after):
    source = drawn(mobile(ops=before * 3))
    target, report = mapped(source, mobile(ops=after * 3))
    assert report.inherited > 0.3 and torch.isfinite(target.eval()(X)).all()
    if before == "i" and after == "f":  # the convolution is merged exactly: a hidden unit's weights are a product
        block, old = target.backbone.stages[1][1], source.backbone.stages[1][1]
        scale = old.expand.bn.weight / (old.expand.bn.running_var + 1e-3).sqrt()
        wanted = scale[5] * old.expand.conv.weight[5, 2, 0, 0] * old.dw.conv.weight[5, 0]
        assert torch.allclose(block.fused.conv.weight[5, 2], wanted, atol=1e-6)
        back, _ = mapped(target, mobile(ops="iii"))
        product = (
            back.backbone.stages[1][1].expand.conv.weight[5, :, 0, 0, None, None]
            * (back.backbone.stages[1][1].dw.conv.weight[5, 0])
        )
        assert torch.allclose(product, block.fused.conv.weight[5], atol=1e-5)  # of rank one: nothing is lost


def test_batch_statistics_are_those_of_the_batches():
    model = YOLOXLite(mobile())
    before = {name: module.momentum for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    model.eval()
    reestimate_batch_norm(model, [X])
    stem = model.backbone.stem
    written = stem.conv(X)
    assert torch.allclose(stem.bn.running_mean, written.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(stem.bn.running_var, written.var((0, 2, 3), unbiased=True), rtol=1e-4)
    assert not model.training
    assert before == {n: m.momentum for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_mapping_refuses_other_families_and_takes_other_classes():
    source = drawn(mobile())
    with pytest.raises(UserError, match="not between them"):
        mapped(source, darknet())
    with pytest.raises(UserError, match="stages"):
        mapped(source, DetectorPlan(MobileSpace().plan(MobileSpace().seed), **SMALL))
    for option in ({"rule": "x"}, {"growth": "x"}, {"deepen": "x"}, {"importance": "x"}):
        with pytest.raises(UserError):
            mapped(source, mobile(), **option)
    target, _ = mapped(source, DetectorPlan(**{**mobile().__dict__, "num_classes": 5}))
    assert torch.equal(target.head.reg_preds[0].weight, source.head.reg_preds[0].weight)
    only, _ = mapped(source, mobile(), parts="backbone")
    assert torch.equal(only.backbone.stem.conv.weight, source.backbone.stem.conv.weight)
    assert not torch.equal(only.neck.lateral_conv0.conv.weight, source.neck.lateral_conv0.conv.weight)


def test_any_genome_of_the_small_space_can_inherit():
    import numpy as np

    space = MobileSpace(SMALL_SEED, mode="full")
    source = drawn(DetectorPlan(space.plan(space.seed), **SMALL))
    generator = np.random.default_rng(0)
    for _ in range(6):
        target, report = mapped(source, DetectorPlan(space.plan(space.random(generator)), **SMALL))
        assert 0 < report.inherited <= 1 and torch.isfinite(target.eval()(X)).all()


def test_own_networks_map_by_name_and_depth():
    def net(width, depth, kernel):
        layers = [nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width))] * depth
        return nn.ModuleDict({"stem": nn.Conv2d(3, width, 3), "layers": nn.Sequential(*map(copy.deepcopy, layers))})

    source, target = net(6, 2, 3), net(4, 3, 5)
    mapped_state = map_state_dict(source.state_dict(), target.state_dict(), depth=["layers.{i}."])
    target.load_state_dict(mapped_state)
    assert torch.equal(target["layers"][2][0].weight[:, :, 1:4, 1:4], source["layers"][1][0].weight[:4, :4])
    assert (target["layers"][2][0].weight[:, :, 0] == 0).all()
    with pytest.raises(UserError, match="depth pattern"):
        map_state_dict(source.state_dict(), target.state_dict(), depth=["layers"])
    assert nearest_parent({"a": 1, "b": 2}, {"y": {"a": 1, "b": 3}, "x": {"a": 4, "b": 3}}) == "y"


def test_any_traceable_network_shrinks_by_its_dependencies():
    pytest.importorskip("torch_pruning")

    class Forked(nn.Module):
        """Two branches that are added: their channels hang together."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 1)
            self.norm, self.out = nn.BatchNorm2d(16), nn.Conv2d(16, 5, 1)

        def forward(self, x):
            return self.out(self.norm(self.a(x) + self.b(x)).relu()).mean((2, 3))

    net = Forked().eval()
    with torch.no_grad():  # eight channels matter, eight do not
        for part in (net.a, net.b):
            part.weight[1::2] *= 1e-3
            part.bias[1::2] = 0
        net.norm.weight[1::2] = 1e-6
        net.out.weight[:, 1::2] *= 1e-3
    narrow = shrink_traced(net, X[:, :, :8, :8], 0.5, keep=[net.out])
    assert narrow.a.out_channels == narrow.b.out_channels == narrow.norm.num_features == narrow.out.in_channels == 8
    assert torch.equal(narrow.a.weight, net.a.weight[::2]) and narrow.out.out_channels == 5
    assert torch.allclose(narrow(X[:, :, :8, :8]), net(X[:, :, :8, :8]), atol=1e-4) and net.a.out_channels == 16
    for share in (0, 1.5):
        with pytest.raises(UserError, match="share"):
            shrink_traced(net, X, share)
