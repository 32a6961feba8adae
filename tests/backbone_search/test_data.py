import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from voc import photo, write_voc

from tenfold.errors import UserError
from tenfold.systems.backbone_search.data.augment import (
    AugmentOptions,
    affine_matrices,
    change_colours,
    mosaic,
    warp,
    warp_boxes,
)
from tenfold.systems.backbone_search.data.average_precision import (
    average_precision,
    coco_precision,
    coco_results,
    voc_results,
)
from tenfold.systems.backbone_search.data.batches import DetectionBatches
from tenfold.systems.backbone_search.data.coco import read_coco
from tenfold.systems.backbone_search.data.detection_set import DetectionSet
from tenfold.systems.backbone_search.data.doctor import examine
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages, letterbox
from tenfold.systems.backbone_search.data.options import DetectionOptions
from tenfold.systems.backbone_search.data.resampling import (
    match,
    resampled_difference,
    weighted_average_precision,
)
from tenfold.systems.backbone_search.data.scenes import make_scenes
from tenfold.systems.backbone_search.data.splits import check_leakage, load_detection
from tenfold.systems.backbone_search.data.voc import read_voc
from tenfold.systems.backbone_search.data.yolo import read_yolo
from tenfold.systems.backbone_search.detector.postprocess import Detections, postprocess, suppress, to_photo


def write_coco(folder, count=10, change=None):
    """A small COCO folder with gaps in its ids, a crowd, an image without boxes and one wider than high."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}]}
    for number in range(count):
        name = f"{number:012d}.png"
        Image.fromarray(photo(number)).save(folder / "images" / name)
        content["images"].append({"id": 100 + number, "file_name": name, "height": 40, "width": 60})
        if number:
            for k in range(2):
                entry = {
                    "image_id": 100 + number,
                    "category_id": 9 if k else 3,
                    "bbox": [5 + k, 6, 20.5, 10],
                    "area": 205,
                }
                content["annotations"].append({"id": 2 * number + k, "iscrowd": int(number == 2 and k), **entry})
    if change:
        change(content)
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_coco_files_are_read_with_their_ids(tmp_path):
    data = read_coco(write_coco(tmp_path) / "instances.json")
    assert data.classes == ("a", "b") and data.category_ids == (3, 9) and data.count == 17
    assert data.boxes[1].corners[0].tolist() == [5, 6, 25.5, 16] and data.boxes[2].crowd.tolist() == [False, True]
    assert len(data.boxes[0].corners) == 0 and (data.image(3) == photo(3)).all()
    found = [Detections(b.corners, torch.ones(len(b.labels)), b.labels) for b in data.boxes]
    lines = coco_results(found, data, data.image_ids)
    assert {line["category_id"] for line in lines} == {3, 9} and lines[0]["image_id"] == 101
    assert lines[0]["bbox"] == [5, 6, 20.5, 10]
    assert data.to_coco()["annotations"][0]["category_id"] == 3


def cut(content):
    content["annotations"][0]["bbox"] = [-5, 0, 1000, 5]
    content["annotations"][1]["bbox"] = [70, 0, 10, 5]
    content["annotations"][2]["bbox"] = [5, 5, 0, 0]


def test_boxes_outside_or_without_extent_are_cut_or_left_out_and_said(tmp_path):
    data = read_coco(write_coco(tmp_path, change=cut) / "instances.json")
    assert data.boxes[1].corners.tolist() == [[0, 0, 60, 5]]
    assert "1 boxes reached beyond" in data.notes[0] and "2 boxes had no extent" in data.notes[1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c["annotations"].clear(), "no box"),
        (lambda c: c["annotations"][3].update(category_id=4), "category 4"),
        (lambda c: c["annotations"][3].update(image_id=7), "image 7"),
        (lambda c: c["annotations"][3].update(bbox=[1, 2, 3]), "annotation 3"),
        (lambda c: c["annotations"][3].update(bbox=[1, 2, float("nan"), 3]), "no box"),
        (lambda c: c["images"][3].update(file_name="none.png"), "none.png"),
        (lambda c: c["images"][3].update(file_name="../instances.json"), "outside"),
        (lambda c: c["images"][3].update(id=100), "one id"),
        (lambda c: c.pop("categories"), "not a COCO annotation file"),
        (lambda c: c.pop("annotations"), "no list 'annotations'"),
        (lambda c: c["images"].clear(), "no images"),
        (lambda c: c["categories"][0].pop("name"), "name"),
    ],
)
def test_wrong_coco_files_are_refused_in_one_line(tmp_path, change, word):
    with pytest.raises(UserError, match=word) as caught:
        read_coco(write_coco(tmp_path, 5, change) / "instances.json")
    assert "\n" not in str(caught.value)


def test_images_that_are_damaged_or_of_another_size_are_refused(tmp_path):
    folder = write_coco(tmp_path, 6)
    Image.fromarray(photo(1, 60, 40)).save(folder / "images" / f"{3:012d}.png")
    (folder / "images" / f"{4:012d}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    data = read_coco(folder / "instances.json")
    with pytest.raises(UserError, match="40 x 60 pixels, but its record says 60 x 40"):
        data.image(3)
    with pytest.raises(UserError, match="cannot read the image"):
        data.image(4)
    with pytest.raises(UserError, match=r"1 of 6 images cannot be read, \S*000000000004\.png first"):
        load_detection(DetectionOptions(name="coco", root=str(folder), train="instances.json"))  # before any training
    problems = " ".join(examine(DetectionOptions(name="coco", root=str(folder)))["problems"])
    assert "1 images are damaged" in problems and "another size" in problems and "category ids" in problems


def test_an_image_that_is_cut_short_is_named_before_any_work(tmp_path):
    folder = write_coco(tmp_path, 6)
    whole = folder / "images" / f"{4:012d}.png"
    whole.write_bytes(whole.read_bytes()[:-200])  # its header is right
    options = DetectionOptions(name="coco", root=str(folder), train="instances.json", height=32, width=64)
    with pytest.raises(UserError, match=r"1 of 6 images cannot be read, \S*000000000004\.png first"):
        load_detection(options)


def test_voc_folders_are_read_with_inclusive_corners(tmp_path):
    data = read_voc(write_voc(tmp_path / "VOC"), "trainval")
    assert data.classes == ("cat", "dog") and data.image_ids[0] == "i0"
    assert data.boxes[0].corners.tolist() == [[1, 2, 30, 20], [4, 4, 5, 5]]  # a box of one point is one pixel
    assert data.boxes[1].crowd.tolist() == [False, True]
    text = voc_results([Detections(b.corners, torch.ones(len(b.labels)), b.labels) for b in data.boxes], data)
    assert text["comp4_det_test_dog.txt"].splitlines()[0] == "i0 1.000000 2.0 3.0 30.0 20.0"
    splits = load_detection(DetectionOptions(name="voc", root=str(tmp_path / "VOC"), height=32, width=64))
    assert (
        len(splits.fit) == 4 and len(splits.search) == len(splits.test) == 2 and "kept for data.test" in splits.notes[0]
    )


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("<object><name>cow</name><bndbox><xmin>x</xmin><ymin>1</ymin></bndbox></object>", "not a number"),
        ("<object>", "not XML"),
    ],
)  # fmt: skip
def test_wrong_voc_folders_are_refused(tmp_path, extra, word):
    with pytest.raises(UserError, match=word):
        read_voc(write_voc(tmp_path / "VOC", extra), "trainval")
    with pytest.raises(UserError, match="none of dog"):
        read_voc(write_voc(tmp_path / "other"), "trainval", ["dog"])
    with pytest.raises(UserError, match="cannot read the split"):
        read_voc(tmp_path / "other", "test")
    bomb = tmp_path / "other" / "Annotations" / "i0.xml"
    bomb.write_text('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>')
    with pytest.raises(UserError, match="entities"):
        read_voc(tmp_path / "other", "trainval")
    assert ElementTree is not None


def write_yolo(folder, line="1 0.5 0.5 0.5 0.25"):
    for name in ("images/train", "labels/train"):
        (folder / name).mkdir(parents=True)
    (folder / "data.yaml").write_text("names: {0: cup, 1: fork}\n")
    for number in range(6):
        Image.fromarray(photo(number)).save(folder / "images/train" / f"i{number}.png")
        if number:
            (folder / "labels/train" / f"i{number}.txt").write_text(line + "\n")
    return folder


def test_yolo_folders_are_read_and_wrong_ones_refused(tmp_path):
    data = read_yolo(write_yolo(tmp_path / "y"), "train")
    assert data.boxes[1].corners.tolist() == [[15, 15, 45, 25]] and data.classes == ("cup", "fork")
    assert len(data.boxes[0].labels) == 0
    for number, (line, word) in enumerate(
        [("2 .5 .5 .1 .1", "class 2"), ("1 300 200 50 50", "in pixels"), ("1 .5 .5 .1", "expected"), ("", "no image")]
    ):
        with pytest.raises(UserError, match=word):
            read_yolo(write_yolo(tmp_path / str(number), line), "train")
    with pytest.raises(UserError, match="no split"):
        read_yolo(tmp_path / "y", "val")
    (tmp_path / "y" / "data.yaml").write_text("names: {0: cup, 2: fork}\n")
    with pytest.raises(UserError, match="without gaps"):
        read_yolo(tmp_path / "y", "train")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"name": "coco"}, "data.root"),
        ({"name": "scenes", "root": "x"}, "no effect"),
        ({"name": "bccd", "train": "x"}, "no effect"),
        ({"name": "voc", "root": "x", "images": "y"}, "coco only"),
        ({"height": 100}, "multiples of 32"),
        ({"name": "yolo", "root": ".", "search_share": 0}, "share"),
        ({"name": "yolo", "root": "/nowhere"}, "no folder"),
        ({"scenes": 1}, "equal to 3"),
    ],
)
def test_settings_without_meaning_are_refused(settings, word):
    with pytest.raises(UserError, match=word):
        load_detection(DetectionOptions(**settings))


def test_an_image_in_two_splits_is_refused():
    first, other = make_scenes(4, 0), make_scenes(4, 1)
    check_leakage({"train": first, "test": other})
    mixed = first.subset([1, 2], "mixed")
    with pytest.raises(UserError, match="2 images are in two splits"):
        check_leakage({"train": first, "search": other, "test": mixed})


def test_scenes_are_the_same_for_one_seed_and_hold_all_classes():
    scenes = make_scenes(40, 3, 64, 96)
    assert (scenes.image(7) == make_scenes(8, 3, 64, 96).image(7)).all() and scenes.image(0).shape == (64, 96, 3)
    assert torch.cat([b.labels for b in scenes.boxes]).unique().tolist() == [0, 1, 2]
    corners = torch.cat([b.corners for b in scenes.boxes])
    assert (corners >= 0).all() and (corners[:, 2] <= 96).all() and (corners[:, 3] <= 64).all()


def test_letterbox_is_the_published_one_and_can_be_undone():
    image = photo(0, 50, 80)
    pixels, ratio = letterbox(image, 96, 128)
    assert ratio == 1.6 and pixels.shape == (3, 96, 128) and (pixels[:, 80:] == 114).all()
    assert letterbox(image, 50, 80)[0].permute(1, 2, 0).numpy()[..., ::-1].tolist() == image.tolist()
    box = torch.tensor([[3.0, 4.0, 33.3, 44.4]])
    back = to_photo(Detections(box * ratio, torch.ones(1), torch.zeros(1)), ratio, (50, 80))
    assert torch.allclose(back.boxes, box, atol=1e-3)


def test_mosaic_and_affine_move_boxes_with_their_pixels():
    images = torch.zeros(1, 4, 3, 32, 64, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 8.0, 20.0, 16.0]])
    images[:, :, :, 8:16, 10:20] = 255
    inner = torch.full((1, 4, 2), 32)
    inner[..., 1] = 64
    centres = torch.tensor([[50, 40]])
    canvas, moved, there = mosaic(
        images, inner, boxes.expand(1, 4, 1, 4), torch.ones(1, 4, 1, dtype=torch.bool), centres
    )
    for x1, y1, x2, y2 in moved[0].int().tolist():
        assert (canvas[0, :, y1:y2, x1:x2] == 255).all()
    assert canvas.shape == (1, 3, 64, 128) and (canvas[0, :, 0, 0] == 114).all() and there.all()
    plain = torch.tensor([[[1.0, 0, 5], [0, 1, 3]]])
    shifted = warp(canvas, plain, 32, 64)[0, :, 3:, 5:]
    assert torch.allclose(shifted, canvas[0, :, :29, :59].float(), atol=0.1)
    generator = torch.Generator().manual_seed(0)
    matrices = affine_matrices(200, 32, 64, AugmentOptions(), generator)
    scales = torch.linalg.det(matrices[:, :, :2]).sqrt()
    assert 0.45 < scales.min() < scales.max() < 1.55
    inside = warp_boxes(moved.expand(200, -1, -1), matrices, 32, 64)
    assert (inside[..., 2:] >= inside[..., :2]).all() and inside.max() <= 64


def test_colours_change_only_where_a_coin_says_so():
    images = torch.randint(0, 256, (64, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = change_colours(images, (0, 0, 0), torch.Generator().manual_seed(0))
    assert torch.allclose(same, images.float(), atol=0.01)
    changed = change_colours(images, (5, 30, 30), torch.Generator().manual_seed(0))
    untouched = torch.isclose(changed, images.float(), atol=0.01).flatten(1).all(1).float().mean()
    assert 0.02 < untouched < 0.4 and changed.min() >= 0 and changed.max() <= 255


def test_batches_resume_and_mosaics_end():
    images = LetterboxedImages(make_scenes(12, 0, 64, 96), 64, 96)
    strong = AugmentOptions(mosaic=1.0, sizes=(2, 4), every=1)

    def made(start):
        batches = DetectionBatches(images, 4, 5, strong, epochs=2, plain_epochs=1)
        batches.load_state_dict({"epoch": start // 3, "given": start % 3})
        return [batch for _ in range(2 - start // 3) for batch in batches]

    whole, rest = made(0), made(2)
    assert [batch.plain for batch in whole] == [False] * 3 + [True] * 3 and len(rest) == 4
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.truth.boxes, b.truth.boxes)
    sizes = {tuple(batch.images.shape[-2:]) for batch in whole}
    assert len(sizes) > 1 and all(side % 32 == 0 for size in sizes for side in size)
    for batch in whole:
        shown = batch.truth.boxes[batch.truth.present]
        assert (shown[:, 2:] > 1).all() and batch.truth.present.sum() > 0
    plain = DetectionBatches(images, 4, 0)
    assert len(plain) == 3 and next(iter(plain)).images.shape == (4, 3, 64, 96)


def perfect(data):
    return [Detections(b.corners[~b.crowd], torch.ones(int((~b.crowd).sum())), b.labels[~b.crowd]) for b in data.boxes]


def test_average_precision_of_everything_and_of_nothing():
    scenes = make_scenes(6, 0, 64, 96)
    assert average_precision(perfect(scenes), scenes)["map"] == pytest.approx(1.0)
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))] * 6
    assert average_precision(nothing, scenes)["map"] == 0.0
    more = DetectionSet(**{**scenes.__dict__, "classes": (*scenes.classes, "never"), "category_ids": (1, 2, 3, 4)})
    found = average_precision(perfect(more), more)
    assert found["map"] == pytest.approx(1.0) and "never" not in found["classes"]
    empty = make_scenes(1, 0, 64, 96)
    empty.boxes = [type(empty.boxes[0]).of([], [], [], [])]
    with pytest.raises(UserError, match="holds no box"):
        average_precision(nothing[:1], empty)


def test_average_precision_is_that_of_pycocotools(capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    scenes = make_scenes(20, 1, 64, 96)
    scenes.boxes[2].crowd[:1] = True
    generator = torch.Generator().manual_seed(0)
    found = []
    for boxes in scenes.boxes:  # true boxes shaken, some twice with one score, some wrong
        many = torch.cat([boxes.corners, boxes.corners, torch.rand((2, 4), generator=generator) * 30 + 10])
        many = many + torch.randn(many.shape, generator=generator) * 2
        many[:, 2:] = torch.maximum(many[:, 2:], many[:, :2] + 1)
        scores = (torch.rand(len(many), generator=generator) * 5).round() / 5
        labels = torch.cat([boxes.labels, boxes.labels, torch.randint(0, 3, (2,), generator=generator)])
        order = scores.argsort(descending=True, stable=True)
        found.append(Detections(many[order], scores[order], labels[order]))
    truth = COCO()
    truth.dataset = scenes.to_coco()
    truth.createIndex()
    oracle = COCOeval(truth, truth.loadRes(coco_results(found, scenes, range(1, 21))), "bbox")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    assert average_precision(found, scenes)["map"] == pytest.approx(oracle.stats[0], abs=1e-9)
    assert np.allclose(coco_precision(found, scenes), oracle.eval["precision"][:, :, :, 0, -1], atol=1e-9)
    # an image that is drawn twice counts twice, one that is not drawn not at all
    matches, weights = match(found, scenes), torch.ones(3, 20)
    weights[1] *= 2
    weights[2, 10:] = 0
    part = average_precision(found[:10], scenes.subset(range(10), "part"))["map"]
    means = weighted_average_precision(matches, weights).tolist()
    assert means == pytest.approx([oracle.stats[0], oracle.stats[0], part], abs=1e-9)
    worse = match([Detections(d.boxes + 1, d.scores, d.classes) for d in found], scenes)
    shaken = resampled_difference(matches, worse)
    assert shaken.low < shaken.mean < shaken.high and shaken.pairs == 20
    nothing = match([Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))] * 20, scenes)
    assert weighted_average_precision(nothing, weights).tolist() == [0, 0, 0]


def test_suppression_is_by_class_and_scores_are_products():
    output = torch.tensor(
        [
            [
                [10.0, 10, 8, 8, 0.9, 0.8, 0.1],
                [10, 10, 8, 8, 0.9, 0.7, 0.1],
                [10, 10, 8, 8, 0.5, 0.1, 0.9],
                [30, 30, 4, 4, 0.001, 1, 0],
            ]
        ]
    )
    found = postprocess(output)[0]
    assert found.classes.tolist() == [0, 1] and found.boxes[0].tolist() == [6, 6, 14, 14]
    assert found.scores.tolist() == pytest.approx([0.72, 0.45])
    assert len(postprocess(output, most=1)[0].scores) == 1


def test_suppression_is_that_of_torchvision():
    from torchvision.ops import batched_nms

    generator = torch.Generator().manual_seed(0)
    low = torch.rand((300, 2), generator=generator) * 60
    boxes = torch.cat([low, low + torch.rand((300, 2), generator=generator) * 30], 1)
    scores, classes = torch.rand(300, generator=generator), torch.randint(0, 3, (300,), generator=generator)
    for overlap in (0.3, 0.65):
        assert torch.equal(suppress(boxes, scores, classes, overlap), batched_nms(boxes, scores, classes, overlap))
