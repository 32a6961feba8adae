import copy
import json
from pathlib import Path

import pytest
import torch
from weights import draw

from tenfold.cost import count_flops, count_parameters
from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.channels import ChannelLayout
from tenfold.systems.backbone_search.detector.classifiers import from_classifier, load_classifier
from tenfold.systems.backbone_search.detector.darknet import (
    DarknetPlan,
    Focus,
    PyramidPooling,
    StemConvolution,
    TinyPyramidPooling,
    focus_to_convolution,
)
from tenfold.systems.backbone_search.detector.loss import DetectionLoss, Truth
from tenfold.systems.backbone_search.detector.mobile import MobileBackbone, image_flow, mobiledet
from tenfold.systems.backbone_search.detector.official import from_official, load_official, to_official
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite, yolox

# Made once with the official YOLOX code (Megvii, commit 6ddff48): its networks with the weights of `weights.draw`,
# images `torch.rand` of seed 3 times 255, boxes of seed 5; outputs, matches, losses and gradients written down.
GOLDEN = json.loads((Path(__file__).parent / "golden_yolox.json").read_text())


@pytest.mark.parametrize(
    ("name", "multiplier", "side", "parameters", "multiply_adds"),
    [
        ("cpu", 1, 320, 3_006_440, 408_006_272),
        ("cpu", 1, 416, 3_006_440, 688_322_912),
        ("cpu", 0.5, 320, 930_224, 136_682_240),
        ("dsp", 1, 320, 5_839_952, 2_763_353_600),
        ("edgetpu", 1, 320, 2_777_040, 1_473_795_200),
    ],
)
def test_mobiledets_have_the_published_size(name, multiplier, side, parameters, multiply_adds):
    backbone, layout = MobileBackbone(mobiledet(name, multiplier)), ChannelLayout()
    backbone.record(layout, "backbone", image_flow(side, side))
    assert (count_parameters(backbone), layout.multiply_adds) == (parameters, multiply_adds)


@pytest.mark.parametrize(
    ("name", "keys", "parameters", "multiply_adds"),
    [("nano", 642, 912_159, 522_553_408), ("tiny", 462, 5_055_855, None), ("s", 462, 8_968_255, None)],
)
def test_official_yolox_have_the_published_size(name, keys, parameters, multiply_adds):
    detector = YOLOXLite(yolox(name))
    assert (len(detector.state_dict()), count_parameters(detector)) == (keys, parameters)
    counted = detector.layout(416, 416).multiply_adds
    if multiply_adds:
        assert counted == multiply_adds == count_flops(detector, torch.zeros(1, 3, 416, 416)) // 2


@pytest.mark.parametrize(
    ("plan", "parameters", "multiply_adds"),
    [(yolox("nano"), 452_191, 256_869_184), (DetectorPlan(mobiledet("cpu")), 428_639, 244_063_040)],
)
def test_neck_and_head_have_the_published_size(plan, parameters, multiply_adds):
    detector = YOLOXLite(plan)
    outside = [value for name, value in detector.named_parameters() if not name.startswith("backbone")]
    records = [r for r in detector.layout(416, 416).records if not r.name.startswith("backbone")]
    assert (sum(v.numel() for v in outside), sum(r.multiply_adds for r in records)) == (parameters, multiply_adds)


def official(name, num_classes=80):
    detector = YOLOXLite(yolox(name, num_classes))
    detector.load_state_dict(from_official(draw(to_official(detector.state_dict()))))
    return detector


def images(batch, height, width):
    return torch.rand((batch, 3, height, width), generator=torch.Generator().manual_seed(3)) * 255


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_forward_pass_is_the_official_one(name):
    with torch.no_grad():
        output = official(name).eval().detect(images(1, 96, 128))
    golden = GOLDEN[name]
    assert list(output.shape) == golden["shape"]
    picked = output[0, ::37, ::17].flatten()[:16]
    assert torch.allclose(picked, torch.tensor(golden["picked"]), rtol=1e-5, atol=1e-5)
    assert output.double().abs().sum().item() == pytest.approx(golden["abs"], rel=1e-5)


@pytest.mark.parametrize("offsets", [False, True])
def test_assignment_losses_and_gradients_are_the_official_ones(offsets, monkeypatch):
    detector = official("nano", 5).train()
    generator = torch.Generator().manual_seed(5)
    classes = torch.randint(0, 5, (3, 6), generator=generator)
    centres = torch.rand((3, 6, 2), generator=generator) * 128
    boxes = torch.cat([centres, (torch.rand((3, 6, 2), generator=generator) * 0.4 + 0.05) * 128], -1)
    present = torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [False] * 6])
    found = []
    import tenfold.systems.backbone_search.detector.loss as module

    keep = module.assign
    monkeypatch.setattr(module, "assign", lambda *a: found.append(keep(*a)) or found[-1])
    losses = DetectionLoss()(detector(images(3, 128, 128)), (128, 128), Truth(boxes, classes, present), offsets)
    golden = GOLDEN["loss_l1" if offsets else "loss"]
    for image in range(2):
        assert (found[0].box[image] >= 0).nonzero().flatten().tolist() == golden["cells"][image]
        assert found[0].box[image][found[0].box[image] >= 0].tolist() == golden["boxes"][image]
    assert (found[0].box[2] == -1).all()
    ours = [losses.total, losses.box, losses.objectness, losses.classes, losses.offsets]
    assert [float(v.detach()) for v in ours] == pytest.approx(golden["values"], rel=1e-5, abs=1e-6)
    losses.total.backward()
    gradients = dict(detector.named_parameters())
    names = ["backbone.stem.conv.conv.weight", "head.reg_preds.0.weight", "head.cls_preds.2.bias"]
    sums = [gradients[name].grad.double().abs().sum().item() for name in names]
    assert sums == pytest.approx(golden["grads"], rel=2e-3)


def test_focus_is_one_convolution_and_small_maxima_are_the_large_ones():
    focus, stem = Focus(16, "silu").eval(), StemConvolution(16, "silu").eval()
    stem.load_state_dict({**focus.state_dict(), "conv.conv.weight": focus_to_convolution(focus.conv.conv.weight)})
    x = torch.rand(2, 3, 32, 64)
    assert torch.allclose(focus(x), stem(x), atol=1e-5)
    large, small = PyramidPooling(16, 16, "silu").eval(), TinyPyramidPooling(16, 16, "silu").eval()
    small.load_state_dict(large.state_dict())
    y = torch.rand(2, 16, 9, 20)
    assert torch.equal(large(y), small(y))


@pytest.mark.parametrize("stem", ["focus", "conv"])
def test_official_files_load_strictly_and_go_back(tmp_path, stem):
    source = official("nano", 3).eval()
    state = to_official(source.state_dict())
    del state["head.stems.0.bn.num_batches_tracked"]
    torch.save({"model": state, "optimizer": {}, "start_epoch": 3}, tmp_path / "nano.pth")
    loaded = load_official(tmp_path / "nano.pth", stem).eval()
    x = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        assert torch.allclose(source(x), loaded(x), rtol=1e-4, atol=1e-4)
    broken = copy.copy(state)
    del broken["head.obj_preds.1.bias"]
    torch.save({"model": broken}, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=r"lacks 'head.obj_preds.1.bias'"):
        load_official(tmp_path / "broken.pth")
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no YOLOX"):
        load_official(tmp_path / "other.pth")


def test_plans_survive_json_and_refuse_nonsense():
    for plan in (DetectorPlan(mobiledet("edgetpu"), 3), yolox("s")):
        assert DetectorPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    values = DetectorPlan(mobiledet("cpu"), 3).to_dict()
    for change in (
        {"head": 0}, {"neck": [1, 2]}, {"surplus": 1}, {"backbone": {"family": "os.system"}}, {"num_classes": 10**9},
        {"backbone": {**values["backbone"], "taps": [0, 1, 2]}}, {"backbone": {**values["backbone"], "stem": "x"}},
    ):  # fmt: skip
        with pytest.raises(UserError):
            DetectorPlan.from_dict({**values, **change})
    with pytest.raises(UserError):
        DarknetPlan.from_dict({"widths": [16, 32], "depths": [1, 3, 3, 1]})


def test_classifiers_give_their_backbones(tmp_path):
    """torchvision's MobileNetV2 under its own names, and the same weights under those of FNA and OFA."""
    from torchvision.models import mobilenet_v2

    classifier = mobilenet_v2(weights=None).eval()
    classifier.load_state_dict(draw(classifier.state_dict()))
    state = classifier.state_dict()
    torch.save(state, tmp_path / "mobilenet.pth")
    plan = DetectorPlan(mobiledet("cpu"), 3)
    ours = load_classifier(tmp_path / "mobilenet.pth", plan).eval()
    assert [len(stage) for stage in ours.plan.backbone.stages] == [1, 2, 3, 4, 3, 3, 1]
    image = torch.randint(0, 256, (1, 3, 64, 96)).float()
    normal = (image.flip(1) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        theirs = classifier.features[0](normal)
        assert torch.allclose(ours.backbone.stem(image)[..., 1:, 1:], theirs[..., 1:, 1:], atol=1e-4)
        for stage, layers in ((0, [1]), (1, [2, 3]), (2, [4, 5, 6]), (3, range(7, 11)), (4, range(11, 14))):
            x = theirs
            for layer in layers:
                theirs = classifier.features[layer](theirs)
            assert torch.allclose(ours.backbone.stages[stage](x), theirs, atol=2e-4, rtol=1e-4)

    kinds = {"0.0": 0, "0.1": 1, "1.0": 2, "1.1": 3, "2": 4, "3": 5}
    light = {"0.0": 2, "0.1": 3, "1": 4, "2": 5}
    parts = ["inverted_bottleneck.conv.conv", "inverted_bottleneck.bn.bn", "depth_conv.conv.conv", "depth_conv.bn.bn",
             "point_linear.conv.conv", "point_linear.bn.bn"]  # fmt: skip
    fna = {0: "0", 1: "1", 2: "3", 3: "4", 4: "6", 5: "7"}
    places = [(s + 1, j) for s, depth in enumerate([1, 2, 3, 4, 3, 3, 1]) for j in range(depth)]
    renamed = {"fna": {}, "ofa": {}}
    for name, value in state.items():
        _, layer, *rest, leaf = name.split(".")
        if name.startswith("features.0."):
            renamed["fna"][f"blocks.0.{rest[0]}.{leaf}"] = value
            renamed["ofa"][f"first_conv.{('conv', 'bn')[int(rest[0])]}.{leaf}"] = value
        elif name.startswith("features.") and int(layer) < 18:
            kind = (light if layer == "1" else kinds)[".".join(rest[1:])]
            stage, j = places[int(layer) - 1]
            number = fna[kind - 2 if layer == "1" else kind]
            renamed["fna"][f"blocks.{stage}.layers.{j}.op.{number}.{leaf}"] = value
            renamed["ofa"][f"blocks.{int(layer) - 1}.mobile_inverted_conv.{parts[kind]}.{leaf}"] = value
    for other in renamed.values():
        found, weights = from_classifier(other)
        assert found == ours.plan.backbone
        assert all(torch.equal(value, ours.backbone.state_dict()[name]) for name, value in weights.items())
    with pytest.raises(UserError, match="no stem"):
        from_classifier({"conv1.weight": torch.zeros(1)})
    larger = dict(renamed["ofa"])  # OFA's kernels shrink under matrices of their own
    name = "blocks.3.mobile_inverted_conv.depth_conv.conv"
    old = larger[f"{name}.conv.weight"]
    larger[f"{name}.conv.weight"] = torch.nn.functional.pad(old.flip(0), [1] * 4)
    larger[f"{name}.5to3_matrix"] = 2 * torch.eye(9)
    found, weights = from_classifier(larger, kernel=3)
    assert found == ours.plan.backbone and torch.equal(weights["stages.2.0.dw.conv.weight"], 2 * old.flip(0))
    assert from_classifier(larger)[0].stages[2][0].kernel == 5
