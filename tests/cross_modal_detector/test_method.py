"""The method: identities that a wrong matrix or order breaks, and the official code's numbers.

``golden.json`` holds what the official code (junjie18/CMT, commit of 2023) gave for random inputs: its encodings, query
rays, denoising groups, cost, losses, coder and heads, with mmdet's focal loss and scipy's assignment in place of mmdet.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector import (
    CoordinateEncoding,
    DetectionLoss,
    SensorBatch,
    build_small,
    decode_boxes,
    denoising_queries,
    detect,
    encode_boxes,
    match_cost,
    predicted_codes,
    sine_encoding,
)
from tenfold.systems.cross_modal_detector.matching.assignment import assign
from tenfold.systems.cross_modal_detector.matching.denoising import positive_share
from tenfold.systems.cross_modal_detector.networks.heads import TaskHead

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
AREA = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


def golden(name):
    return torch.tensor(GOLDEN[name])


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=tolerance, atol=tolerance)


def encoding(dim=8, depths=4, **options):
    torch.manual_seed(0)
    return CoordinateEncoding(dim, AREA, depths=depths, **options)


def test_sine_encoding_has_y_first_and_its_odd_divisors():
    code = sine_encoding(torch.zeros(1, 2), 256)
    assert torch.equal(code, torch.tensor([0.0, 1.0]).repeat(256)[None])
    quarter = sine_encoding(torch.tensor([[0.25, 0.0]]), 256)
    assert quarter[0, 256] == pytest.approx(1.0) and quarter[0, 0] == 0  # x stands in the second half
    last = sine_encoding(torch.tensor([[0.0, 1.0]]), 256)
    assert last[0, 255] == pytest.approx(math.cos(2 * math.pi / 1.9921875), abs=1e-6)
    close(sine_encoding(golden("pos"), 8), golden("pos2embed"))


def test_rays_and_query_codes_are_the_official_ones():
    coded = encoding()
    matrices = golden("lidar2img").float()[None]
    inverse = torch.linalg.inv(matrices.double()).float()
    coded.ray = nn.Identity()
    tokens = coded.image_tokens((2, 4), (32, 64), inverse).view(2, 2, 4, 12)
    close(tokens[:, :, [0, 3]], golden("rv_pe").view(2, 2, 2, 12), 1e-4)
    weight, bias = GOLDEN["lin"]
    coded.ray = nn.Linear(12, 8)
    coded.ray.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    reference = golden("ref")
    both = coded.queries(reference, matrices, (32, 64))
    rays = both - coded.queries(reference, None, None)
    assert golden("rv_query").abs().sum(-1).count_nonzero() >= 1
    # The official function takes the points as they are; queries clamps them through the sigmoid, as its caller does.
    close(rays, golden("rv_query"), 1e-4)


def test_a_query_and_a_token_on_one_ray_have_one_code():
    coded = encoding(depths=8)
    matrices = golden("lidar2img").float()[None]
    points = torch.rand(1, 200, 3, generator=torch.Generator().manual_seed(0))
    pixels, seen = coded.pixels_of(points, matrices, (32, 64))
    assert 10 < seen.sum() < 200
    inverse = torch.linalg.inv(matrices)
    from_query, from_pixel = coded.rays_of(pixels, inverse), coded.rays_of(pixels[..., :2], inverse)
    close(from_query[seen], from_pixel[seen], 1e-4)
    metric = points * (coded.high - coded.low) + coded.low
    far = (metric[0] - 0)[seen[0].any(0)]
    on_ray = from_query[0].view(2, 200, 8, 3) * (coded.high - coded.low) + coded.low
    start, end = on_ray[:, :, 0], on_ray[:, :, -1]
    direction = nn.functional.normalize(end - start, dim=-1)
    for view in range(2):  # the point itself lies on its ray
        own = seen[0, view]
        away = metric[0, own] - start[view, own]
        off = away - (away * direction[view, own]).sum(-1, keepdim=True) * direction[view, own]
        assert off.norm(dim=-1).max() < 1e-3 * max(1.0, float(far.abs().max()))


def test_denoising_is_the_official_one():
    boxes, labels = [torch.tensor(b) for b in GOLDEN["boxes"]], [torch.tensor(part) for part in GOLDEN["labels"]]
    drawn = golden("noise")  # group by group, the samples' boxes one after the other
    noise = torch.zeros(2, 2, 3, 3)
    for group in range(2):
        noise[group, 0], noise[group, 1, 0] = drawn[4 * group : 4 * group + 3], drawn[4 * group + 3]
    found = denoising_queries(boxes, labels, torch.tensor(AREA), queries=6, none=3, groups=2, noise=2 * noise - 1)
    close(found.reference, golden("dn_ref")[:, :6])
    assert torch.equal(found.blocked, golden("dn_mask").bool())
    said = found.labels[found.valid].tolist()
    official = golden("dn_labels").tolist()
    assert said == [*official[:3], *official[4:7], official[3], official[7]]
    loss = DetectionLoss([3]).denoised(golden("dn_logits")[None], golden("dn_codes")[None], found, 0)
    close(torch.stack(list(loss.values())), torch.tensor(GOLDEN["dn_loss"]))


def test_cost_losses_and_coder_are_the_official_ones():
    boxes, labels = [torch.tensor(b) for b in GOLDEN["boxes"]], [torch.tensor(part) for part in GOLDEN["labels"]]
    logits, codes = golden("logits"), golden("codes")
    close(match_cost(logits[0], codes[0], labels[0], encode_boxes(boxes[0])), golden("cost0"))
    found = DetectionLoss([3]).matched(logits[None], codes[None], boxes, labels)
    close(torch.stack(list(found.values())), torch.tensor(GOLDEN["loss"]))
    close(decode_boxes(codes[0])[:, :7], golden("decoded")[:, :7])


def test_grouped_heads_are_the_official_ones():
    head = TaskHead(8, 3, 2, hidden=4)
    head.load_state_dict(
        {name: torch.tensor(GOLDEN["task_state"][name]) for name in GOLDEN["task_state"]}, strict=False
    )
    found = head(golden("task_x"))
    close(found["center"], golden("task_center"))
    close(found["cls_logits"], golden("task_cls"))


def test_box_codes_invert_and_differ():
    box = torch.tensor([[3.0, -7.0, -0.5, 4.5, 1.9, 1.6, 2.5, 1.0, -2.0]])
    close(decode_boxes(encode_boxes(box)), box)
    outputs = {"center": torch.zeros(1, 2), "height": torch.full((1, 1), 0.3), "dim": torch.tensor([[0.1, 0.2, 0.4]]),
               "rot": torch.zeros(1, 2), "vel": torch.zeros(1, 2)}  # fmt: skip
    reference, area = torch.full((1, 3), 0.5), torch.tensor(AREA)
    clean, cmt = (predicted_codes(outputs, reference, area, code) for code in ("clean", "cmt"))
    height = 8 / (1 + math.exp(-0.3)) - 5
    assert clean[0, 2:6].tolist() == pytest.approx([0.1, 0.2, height, 0.4], abs=1e-5)
    assert cmt[0, 2:6].tolist() == pytest.approx([height, 0.1, 0.2, 0.4], abs=1e-5)  # ln l, ln w, z, ln h


def test_matching_finds_the_perfect_query_and_lives_without_boxes():
    box = torch.tensor([[3.0, -7.0, -0.5, 4.5, 1.9, 1.6, 2.5, 0.0, 0.0]])
    codes = torch.randn(1, 2, 5, 10, generator=torch.Generator().manual_seed(0))
    codes[0, 0, 3] = encode_boxes(box)[0]
    logits = torch.zeros(1, 2, 5, 2)
    empty = (torch.zeros(0, 9), torch.zeros(0, dtype=torch.long))
    found = assign(logits, codes, [torch.tensor([1]), empty[1]], [encode_boxes(box), encode_boxes(empty[0])])
    assert found[0, 0].tolist() == [-1, -1, -1, 0, -1] and (found[0, 1] == -1).all()
    shifted = codes.clone()
    shifted[..., 8:] += 100  # velocity is not in the cost
    assert torch.equal(
        assign(logits, shifted, [torch.tensor([1]), empty[1]], [encode_boxes(box), empty[0].new_zeros(0, 10)]), found
    )
    losses = DetectionLoss([2])
    flat = box * torch.tensor([1.0] * 3 + [0.0] + [1.0] * 5)
    for boxes, labels in (([empty[0]] * 2, [empty[1]] * 2), ([flat, empty[0]], [torch.tensor([1]), empty[1]])):
        parts = losses.matched(logits, codes, boxes, labels)
        assert all(torch.isfinite(value) for value in parts.values())
    area = torch.tensor(AREA)
    assert denoising_queries([empty[0]], [empty[1]], area, queries=5, none=2) is None
    many = torch.zeros(9, dtype=torch.long)
    assert denoising_queries([box.repeat(9, 1)], [many], area, queries=5, none=2) is None


def test_share_of_positives_is_that_of_the_ball():
    noise = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert positive_share(0.75) == pytest.approx(0.2209, abs=1e-4)
    assert float((noise.norm(dim=1) < 0.75).float().mean()) == pytest.approx(0.2209, abs=2e-3)


AREA_SMALL = (-10.0, -10.0, -3.0, 10.0, 10.0, 3.0)


def small_batch(samples=2, views=2):
    draw = torch.Generator().manual_seed(0)
    points = [
        torch.cat(((torch.rand(300, 3, generator=draw) - 0.5) * 18, torch.zeros(300, 2)), 1) for _ in range(samples)
    ]
    matrices = golden("lidar2img").float()[None, :views].repeat(samples, 1, 1, 1)
    images = torch.rand(samples, views, 3, 32, 64, generator=draw) * 255
    return SensorBatch(points, None, images, None, matrices)


def small_detector(**options):
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "queries": 12, "layers": 2, "depths": 4, "hidden": 32, "pillar_grid": (16, 16)}
    return build_small(area=AREA_SMALL, classes=3, **sizes | {"pillar_width": 8} | options).eval()


def test_denoising_queries_are_not_seen_by_others():
    detector, batch = small_detector().train(), small_batch()
    boxes = [torch.tensor([[1.0, 2, 0, 1, 1, 1, 0, 0, 0], [4.0, 2, 0, 1, 1, 1, 0, 0, 0]])] * 2
    labels = [torch.tensor([0, 1])] * 2
    noise = torch.rand(3, 2, 2, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def run(moved, noise):
        queries = denoising_queries(
            [part + moved for part in boxes], labels, detector.area, queries=12, none=3, groups=3, noise=noise
        )
        with torch.no_grad():
            return detector(batch, queries)

    first, other = run(0.0, noise), run(torch.tensor([2.0, -3, 0, 0, 0, 0, 0, 0, 0]), noise)
    close(first.codes[0], other.codes[0], 1e-5)
    assert (first.denoised_codes[0] - other.denoised_codes[0]).abs().max() > 1e-3
    changed = noise.clone()
    changed[2] = -changed[2]
    third = run(0.0, changed)
    close(first.denoised_codes[0][:, :, :4], third.denoised_codes[0][:, :, :4], 1e-5)
    assert (first.denoised_codes[0][:, :, 4:] - third.denoised_codes[0][:, :, 4:]).abs().max() > 1e-3


def test_missing_sensors_are_dropped_or_zeroed():
    detector, batch = small_detector(), small_batch()

    def codes(**changes):
        values = {name: getattr(batch, name) for name in vars(batch)} | changes
        with torch.no_grad():
            return detector(SensorBatch(**values)).codes[0]

    none, all_ = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    # Dropped: nothing depends on what is not there.
    close(codes(cameras=none), codes(cameras=none, images=batch.images * 0 + 7), 1e-6)
    assert (codes(cameras=none) - codes(cameras=all_)).abs().max() > 1e-4
    mixed = torch.tensor([[True, False], [True, True]])  # another camera in each sample: masked in one batch
    alone = codes(cameras=mixed)
    close(alone[:, :1], codes(cameras=torch.tensor([[True, False], [True, False]]))[:, :1], 1e-5)
    lidar = torch.tensor([False, True])
    close(codes(lidar=lidar)[:, 1:], codes()[:, 1:], 1e-5)
    nowhere = [batch.points[0] * 0, batch.points[1]]
    assert (codes(points=nowhere) - codes(lidar=lidar)).abs().max() > 1e-5
    # Zeroed before normalization: the network sees minus mean over deviation.
    assert detector.normalize(torch.zeros(1, 3, 8, 8))[0, :, 0, 0].tolist() == pytest.approx(
        [-103.53 / 57.375, -116.28 / 57.12, -123.675 / 58.395], abs=1e-5
    )
    # An empty cloud, no cameras at all, no clouds at all.
    empty = [torch.zeros(0, 5)] * 2
    assert torch.isfinite(codes(points=empty)).all()
    assert torch.isfinite(codes(images=None, cameras=None, lidar_to_image=None)).all()
    assert torch.isfinite(codes(points=None)).all()
    with pytest.raises(UserError, match=r"sample 0 .* no cloud and no image"):
        codes(cameras=none, lidar=lidar)
    assert len(detect(detector, batch)) == 2


def test_attention_weights_are_never_materialised():
    """900 queries and 20,000 tokens of 8 heads would take 576 MB a layer; the peak stays far below."""
    from tenfold.systems.cross_modal_detector.networks.decoder import Attention

    attention = Attention(64, 8).eval()
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        attention(torch.randn(1, 900, 64), torch.randn(1, 20_000, 64), torch.randn(1, 20_000, 64))
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 900 * 20_000 * 8 * 4 / 8


def test_boxes_have_nuscenes_conventions():
    from tenfold.systems.cross_modal_detector import corners_of, points_in_boxes

    box = np.array([[1.0, 2.0, 0.5, 4.0, 2.0, 1.0, np.pi / 2, 0, 0]])
    assert np.ptp(corners_of(box)[0], axis=0) == pytest.approx([2, 4, 1])  # turned: the length lies along y
    assert corners_of(box)[0].mean(0) == pytest.approx([1, 2, 0.5])  # z is the centre of gravity
    assert points_in_boxes(np.array([[1, 3.9, 0.9], [2.5, 2, 0.5]]), box).tolist() == [[True], [False]]
