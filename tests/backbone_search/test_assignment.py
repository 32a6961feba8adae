import pytest
import torch
import torch.nn.functional as F

from tenfold.systems.backbone_search.detector.assignment import assign, pairwise_iou
from tenfold.systems.backbone_search.detector.head import decode, make_grid
from tenfold.systems.backbone_search.detector.loss import DetectionLoss, Truth


def slowly(boxes, objectness, classes, places, strides, true_boxes, true_classes):
    """SimOTA of one image, box by box, as the paper's algorithm 1 and the public code have it."""
    owner = torch.full((len(boxes),), -1)
    centres = (places + 0.5) * strides[:, None]
    near = ((centres - true_boxes[:, None, :2]).abs() < 1.5 * strides[:, None]).all(-1)
    cells = near.any(0).nonzero().flatten()
    if len(cells) == 0:
        return owner
    iou = pairwise_iou(true_boxes, boxes[cells])
    p = (classes[cells].sigmoid() * objectness[cells].sigmoid()[:, None]).sqrt()
    onehot = F.one_hot(true_classes, classes.shape[1]).float()
    cost = torch.stack([F.binary_cross_entropy(p, o.expand_as(p), reduction="none").sum(1) for o in onehot])
    cost = cost - 3 * torch.log(iou + 1e-8) + 1e6 * ~near[:, cells]
    taken = torch.zeros_like(cost, dtype=torch.bool)
    for g in range(len(true_boxes)):
        k = max(int(iou[g].topk(min(10, len(cells))).values.sum()), 1)
        taken[g, cost[g].topk(k, largest=False).indices] = True
    for position, cell in enumerate(cells.tolist()):
        wanting = taken[:, position].nonzero().flatten()
        if len(wanting) == 1:
            owner[cell] = wanting[0]
        elif len(wanting) > 1:
            owner[cell] = cost[:, position].argmin()
    return owner


def scene(seed, batch, most, num_classes, side=128):
    generator = torch.Generator().manual_seed(seed)
    places, strides = make_grid(side, side)
    raw = torch.randn((batch, len(strides), 5 + num_classes), generator=generator)
    raw[..., 2:4] += 1
    boxes = torch.cat(
        [
            torch.rand((batch, most, 2), generator=generator) * side,
            (torch.rand((batch, most, 2), generator=generator) * 0.4 + 0.05) * side,
        ],
        -1,
    )
    classes = torch.randint(0, num_classes, (batch, most), generator=generator)
    counts = torch.randint(0, most + 1, (batch,), generator=generator)
    present = torch.arange(most) < counts[:, None]
    return raw, places, strides, boxes, classes, present


def check(raw, places, strides, boxes, classes, present):
    predicted = decode(raw, places, strides)
    found = assign(predicted, raw[..., 4], raw[..., 5:], places, strides, boxes, classes, present)
    for image in range(len(raw)):
        n = present[image]
        expected = slowly(
            predicted[image], raw[image, :, 4], raw[image, :, 5:], places, strides, boxes[image][n], classes[image][n]
        )
        # present boxes come first in these scenes, so that numbers agree
        assert torch.equal(found.box[image], expected)
    return found


@pytest.mark.parametrize(("batch", "most", "num_classes"), [(6, 8, 5), (3, 20, 1), (2, 150, 3), (1, 1, 80)])
def test_whole_batches_are_assigned_as_image_by_image(batch, most, num_classes):
    for seed in range(4):
        check(*scene(seed, batch, most, num_classes))


def test_edge_cases_of_assignment():
    raw, places, strides, boxes, classes, present = scene(1, 3, 4, 2)
    present[:] = True
    present[0] = False  # an image without boxes
    boxes[1, :, :2] = -500.0  # no candidate at all: the official top-k would raise
    boxes[2, 1], classes[2, 1] = boxes[2, 0], classes[2, 0]  # twice the same
    found = check(raw, places, strides, boxes, classes, present)
    assert (found.box[:2] == -1).all()
    assert (found.box[2] == 0).any() and not (found.box[2] == 1).any()
    boxes[:, :, :2] = -500
    nothing = assign(decode(raw, places, strides), raw[..., 4], raw[..., 5:], places, strides, boxes, classes, present)
    assert (nothing.box == -1).all()
    empty = torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.bool)
    assert (assign(decode(raw, places, strides), raw[..., 4], raw[..., 5:], places, strides, *empty).box == -1).all()


def test_number_of_cells_of_a_box_is_cut_not_rounded():
    places, strides = make_grid(64, 64)
    raw = torch.zeros(1, len(strides), 6)
    box = torch.tensor([[[28.0, 28.0, 24.0, 24.0]]])
    cells = ((places * strides[:, None] + strides[:, None] / 2 - 28).abs() < 1.5 * strides[:, None]).all(-1)
    predicted = torch.full((1, len(strides), 4), 28.0)
    predicted[..., 2:] = 24.0 * (0.19**0.5)  # ten overlaps of 0.19 are 1.9: one cell
    found = assign(
        predicted, raw[..., 4], raw[..., 5:], places, strides, box, torch.zeros(1, 1, dtype=torch.int64),
        torch.ones(1, 1, dtype=torch.bool),
    )  # fmt: skip
    assert cells.sum() >= 10 and (found.box >= 0).sum() == 1


def test_images_without_boxes_have_a_loss_and_half_precision_is_as_single():
    raw, _, _, boxes, classes, present = scene(3, 2, 5, 3)
    present[:] = False
    losses = DetectionLoss()(raw.requires_grad_(), (128, 128), Truth(boxes, classes, present))
    assert losses.total == losses.objectness > 0 and losses.positives == 0
    losses.total.backward()
    assert raw.grad[..., 4].abs().sum() > 0 and raw.grad[..., 5:].abs().sum() == 0
    present[:] = True
    half = raw.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = DetectionLoss()(half, (128, 128), Truth(boxes, classes, present))
    assert torch.equal(low.total, DetectionLoss()(half.float(), (128, 128), Truth(boxes, classes, present)).total)
    half[..., 2:4] = 100.0  # clamped: no exponential overflows
    assert DetectionLoss()(half, (128, 128), Truth(boxes, classes, present)).total.isfinite()
