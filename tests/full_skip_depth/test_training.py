"""Losses with known values; pairs changed together; the published recipes."""

import math

import pytest
import torch

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth import (
    Augmentation,
    DepthObjective,
    Recipe,
    SiLogLoss,
    bins_chamfer,
    build_network,
)
from tenfold.systems.full_skip_depth.training.augmentation import (
    cut_border,
    kb_box,
    kb_crop,
    kb_paste,
    random_crop,
    rotate,
)
from tenfold.systems.full_skip_depth.training.recipes import one_cycle


def test_silog_of_a_constant_factor():
    truth = torch.rand(2, 8, 9) * 5 + 1
    assert SiLogLoss()(2 * truth, truth).item() == pytest.approx(10 * math.sqrt(0.15) * math.log(2), rel=1e-4)
    assert SiLogLoss()(2 * truth, truth).item() == pytest.approx(2.6846, abs=2e-4)
    forgiving = SiLogLoss(1.0)
    prediction = (2 * truth).requires_grad_()
    loss = forgiving(prediction, truth)
    loss.backward()
    assert loss.item() < 5e-3 and prediction.grad.isfinite().all()
    exact = truth.clone().requires_grad_()
    SiLogLoss()(exact, truth).backward()
    assert exact.grad.isfinite().all()


def test_silog_is_of_the_whole_batch():
    truth = torch.ones(2, 2, 4)
    truth[1, 0, 1:] = 0  # five valid pixels of eight
    prediction = torch.ones(2, 2, 4)
    prediction[0], prediction[1] = math.e, math.e**2
    g = [1.0] * 8 + [2.0] * 5
    mean, square = sum(g) / 13, sum(x * x for x in g) / 13
    assert SiLogLoss()(prediction, truth).item() == pytest.approx(10 * math.sqrt(square - 0.85 * mean**2), rel=1e-5)


def test_pixels_without_truth_do_not_count():
    truth = torch.tensor([[0.0, float("nan"), float("inf"), 20.0, 2.0]])
    loss = SiLogLoss(maximum=10.0)
    assert loss.valid(truth).tolist() == [[False, False, False, False, True]]
    prediction = torch.ones(1, 5, requires_grad=True)
    nothing = loss(prediction, torch.zeros(1, 5))
    nothing.backward()
    assert nothing.item() == 0 and torch.equal(prediction.grad, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="variance_focus"):
        SiLogLoss(2.0)


def test_chamfer_against_all_pairs():
    torch.manual_seed(0)
    centres = torch.rand(3, 7).sort(1).values * 10
    truth = torch.rand(3, 5, 6) * 10
    valid = truth > 2
    valid[2] = False
    expected = 0.0
    for c, d in zip(centres[:2], (truth[i][valid[i]] for i in (0, 1)), strict=True):
        squares = (c[:, None] - d[None]).square()
        expected += squares.min(0).values.mean().item() + squares.min(1).values.mean().item()
    assert bins_chamfer(centres, truth, valid).item() == pytest.approx(expected / 3, rel=1e-5)


def test_depth_is_turned_by_the_nearest_pixel():
    image = torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8)
    depth = torch.full((40, 60), 2.0)
    depth[:, 30:] = 8
    _, turned = rotate(image, depth, 7.0)
    assert set(turned.unique().tolist()) == {0.0, 2.0, 8.0}
    assert turned[0, 0] == 0 and not SiLogLoss().valid(turned)[0, 0]
    marked = torch.zeros(3, 40, 60)
    marked[:, 10:14, 45:49] = 255
    pixels, where = rotate(marked, (marked[0] > 0).float(), 5.0)
    assert ((pixels[0] > 128) == (where > 0)).float().mean() > 0.99  # both are turned the same way


def test_pairs_change_together():
    torch.manual_seed(3)
    depth = torch.arange(48 * 64, dtype=torch.float32).view(48, 64) + 1
    image = (depth % 251).to(torch.uint8).expand(3, -1, -1)
    change = Augmentation(crop=(20, 30), flip=1.0, colour=0.0)
    pixels, values = change(image, depth)
    assert pixels.shape == (3, 20, 30) and torch.equal((pixels[0] * 255).round(), values % 251)
    assert values[0, 0] == values[0, 1] + 1  # flipped
    coloured, same = Augmentation(flip=0.0, colour=1.0)(image, depth)
    assert torch.equal(same, depth) and coloured.min() >= 0 and coloured.max() <= 1
    with pytest.raises(UserError, match="smaller than the training crop"):
        random_crop(image.float(), depth, (50, 30))


def test_kitti_and_nyu_borders():
    assert kb_box(375, 1242) == (23, 13) and kb_box(370, 1226) == (18, 5)
    assert kb_box(376, 1241) == (24, 12)  # rounded down
    x = torch.rand(1, 375, 1242)
    assert torch.equal(kb_crop(kb_paste(kb_crop(x), (375, 1242))), kb_crop(x))
    assert cut_border(torch.rand(3, 480, 640), "nyu").shape == (3, 427, 565)
    for size in ((375, 1200), (351, 1242)):
        with pytest.raises(UserError, match="352 x 1216"):
            kb_crop(torch.rand(*size))


def test_recipes():
    network = build_network("tiny-4-6-8-8-8", width=32)
    optimizer = Recipe().optimizer(network)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([3.57e-5, 3.57e-4])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    factor = one_cycle(1000)
    assert factor(0) == pytest.approx(1 / 25) and factor(299) == pytest.approx(1)
    assert factor(999) == pytest.approx(1 / 2500)
    torch_schedule = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.zeros(1)], lr=1.0), 1.0, total_steps=1000, div_factor=25, final_div_factor=100
    )
    for step in range(1000):
        if step % 111 == 0:
            assert factor(step) == pytest.approx(torch_schedule.get_last_lr()[0], rel=1e-6)
        torch_schedule.optimizer.step()
        torch_schedule.step()
    bts = Recipe("bts", 1e-4, 1e-2, 1.0)
    groups = bts.optimizer(network).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-2, 0.0]
    assert (
        not network.encoder.levels[0][0].weight.requires_grad and not network.encoder.levels[2][1].weight.requires_grad
    )
    assert network.encoder.levels[0][3].weight.requires_grad
    assert bts.schedule(100)(0) == 1 and bts.schedule(100)(100) == pytest.approx(0.1)


def test_the_objective_adds_what_is_asked_for():
    torch.manual_seed(0)
    network = build_network("tiny-4-6-8-8-8", width=32, head="bins", bins=8, auxiliary=1, focal_reference=100.0)
    batch = torch.rand(2, 3, 32, 32), torch.rand(2, 32, 32) * 9 + 0.5, torch.full((2,), 100.0)
    total, logged = DepthObjective(SiLogLoss(), auxiliary=(0.5,))(network, batch)
    total.backward()
    assert set(logged) == {"silog", "chamfer"}
    assert total.item() > logged["silog"].item() + 0.1 * logged["chamfer"].item()
    assert network.head.widths[0].weight.grad.abs().sum() > 0
