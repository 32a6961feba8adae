"""Views, archives, shards, ADE20K, fine-tuning's parts and the measures."""

import io
import math
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tenfold.data import Preprocessing, color_jitter, load_image_archive, normalize, random_resized_crop
from tenfold.data.shards import find_shards, find_unlabelled
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.data.ade20k import IGNORED, TrainingCrop, find_ade20k, read_annotation
from tenfold.systems.relation_distillation.data.finetuning_batches import finetuning_batches
from tenfold.systems.relation_distillation.data.images import few_per_class, load_images
from tenfold.systems.relation_distillation.data.views import pretraining_batches, renormalized
from tenfold.systems.relation_distillation.evaluation.accuracy import knn_accuracy
from tenfold.systems.relation_distillation.evaluation.robustness import (
    ALEXNET_ERRORS,
    evaluate_restricted,
    mean_corruption_error,
)
from tenfold.systems.relation_distillation.evaluation.segmentation import (
    SegmentationScore,
    evaluate_segmentation,
    sliding_logits,
)
from tenfold.systems.relation_distillation.training.finetune import random_erase
from tenfold.systems.relation_distillation.training.optimizers import adamw, layered_groups, plain_groups
from tenfold.systems.relation_distillation.training.segmentation import (
    SegmentationTraining,
    segmentation_groups,
    train_segmentation,
)
from tenfold.systems.relation_distillation.vit.segmentation_network import SegmentationNetwork
from tenfold.systems.relation_distillation.vit.vision_transformer import (
    resize_positions,
    sincos_positions,
    vision_transformer,
)
from tenfold.training import learning_rate_factor
from tenfold.training.options import TrainerOptions


def picture(seed=0, size=(24, 20)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_both_views_have_one_geometry():
    """Only colours differ: edges of an image's luminance lie at the same places."""
    splits = load_images("digits")
    batches = pretraining_batches(splits, 32, seed=0, crop_scale=(0.3, 1.0), jitter=0.4)
    views, _ = next(iter(batches))
    ours, clean = views.unbind(1)
    assert ours.shape == (32, 1, 8, 8) and not torch.equal(ours, clean)
    for one, other in zip(ours.flatten(1), clean.flatten(1), strict=True):
        if other.std() > 0.1:
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.9
    again, _ = next(iter(pretraining_batches(splits, 32, seed=0, crop_scale=(0.3, 1.0), jitter=0.4)))
    assert torch.equal(views, again)
    mirrored = clean.flip(-1)
    assert (ours - mirrored).abs().mean() > 2 * (ours - clean).abs().mean()


def test_random_crops_stay_inside_and_jitter_keeps_the_place():
    ramp = torch.arange(16, dtype=torch.uint8).mul(16).view(1, 1, 1, 16).expand(64, 3, 16, 16).contiguous()
    generator = torch.Generator().manual_seed(0)
    crops = random_resized_crop(16, scale=(0.2, 0.5))(ramp, generator).float()
    assert (crops.diff(dim=-1) >= -1).all()  # a ramp stays one
    widths = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert widths.max() < 0.9 * 240 and widths.min() > 0.2 * 240
    whole = random_resized_crop(16, scale=(1.0, 1.0), ratio=(1.0, 1.0))(ramp, generator)
    assert (whole.int() - ramp.int()).abs().max() <= 1
    grey = color_jitter(0.0, 0.0, 1.0)(ramp, generator)
    assert (grey.int() - ramp.int()).abs().max() <= 1  # a grey image has no saturation


def test_a_teacher_gets_its_own_normalization():
    splits = load_images("digits")
    images = next(iter(splits.test_batches(4)))[0]
    other = renormalized(images, splits, (0.5,), (0.5,))
    pixels = images * splits.std[0] + splits.mean[0]
    torch.testing.assert_close(other, (pixels - 0.5) / 0.5, atol=1e-5, rtol=1e-5)


def test_few_labels_per_class():
    splits = load_images("digits")
    few = few_per_class(splits.train, 3, seed=1)
    assert few.labels.bincount().tolist() == [3] * 10
    assert not torch.equal(few.images, few_per_class(splits.train, 3, seed=2).images)


def test_an_archive_of_images(tmp_path):
    files = {
        f"set/{split}/{name}/{n}.png": picture(n) for split in ("train", "test") for name in "ba" for n in range(3)
    }
    write_tar(tmp_path / "set.tar.gz", files, "w:gz")
    data = load_image_archive(tmp_path / "set.tar.gz", "train", size=8)
    assert (
        data.images.shape == (6, 3, 8, 8) and data.classes == ("a", "b") and data.labels.tolist() == [0] * 3 + [1] * 3
    )
    with pytest.raises(UserError, match="0 classes"):
        load_image_archive(tmp_path / "set.tar.gz", "validation", size=8)
    content = (tmp_path / "set.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut short or damaged"):
        load_image_archive(tmp_path / "cut.tar.gz", "train", size=8)
    write_tar(tmp_path / "bad.tar", {"set/train/a/1.png": b"no image", "set/train/b/1.png": picture()})
    with pytest.raises(UserError, match=r"train/a/1\.png"):
        load_image_archive(tmp_path / "bad.tar", "train", size=8)


def test_shards_are_read_at_any_place(tmp_path):
    for shard in range(2):
        files = {}
        for n in range(3):
            files[f"{shard}{n}.png"] = picture(10 * shard + n)
            files[f"{shard}{n}.cls"] = str(n).encode()
        write_tar(tmp_path / f"train-{shard:04}.tar", files)
    data = find_shards(str(tmp_path / "train-{0000..0001}.tar"))
    assert len(data) == 6 and data.labels == (0, 1, 2, 0, 1, 2)
    image, label = data[4]
    assert label == 1 and image.tobytes() == Image.open(io.BytesIO(picture(11))).tobytes()
    assert len(find_shards(str(tmp_path / "*.tar")).subset([0, 5])) == 2
    with pytest.raises(UserError, match=r"train-0002\.tar"):
        find_shards(str(tmp_path / "train-{0000..0002}.tar"))
    write_tar(tmp_path / "gz.tar", {"1.png": picture()}, "w:gz")
    with pytest.raises(UserError, match="uncompressed"):
        find_shards(str(tmp_path / "gz.tar"))
    splits = load_images("digits")
    batch, _ = next(iter(pretraining_batches(splits, 4, seed=0, images=data)))
    assert batch.shape == (4, 3, 8, 8)


def test_imagenet_as_kaggle_has_it(tmp_path):
    from tenfold.data import find_imagenet

    place = tmp_path / "ILSVRC/Data/CLS-LOC"
    (place / "val").mkdir(parents=True)
    for wnid in ("n02", "n01"):
        (place / "train" / wnid).mkdir(parents=True)
        (place / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(picture())
    rows = ["ImageId,PredictionString"]
    for n, wnid in enumerate(("n02", "n01"), 1):
        (place / "val" / f"ILSVRC2012_val_{n:08}.JPEG").write_bytes(picture(n))
        rows.append(f"ILSVRC2012_val_{n:08},{wnid} 1 2 3 4 {wnid} 5 6 7 8")
    with pytest.raises(UserError, match="LOC_val_solution"):
        find_imagenet(tmp_path, "val")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    assert find_imagenet(tmp_path, "val").labels == (1, 0)
    assert find_imagenet(tmp_path, "train").classes == find_imagenet(tmp_path, "val").classes == ("n01", "n02")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows[:2]))
    with pytest.raises(UserError, match="no label"):
        find_imagenet(tmp_path, "val")


def test_unlabelled_folders(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "1.png").write_bytes(picture())
    assert len(find_unlabelled(tmp_path)) == 1
    with pytest.raises(UserError, match="no images"):
        (tmp_path / "empty").mkdir()
        find_unlabelled(tmp_path / "empty")


def test_image_files_are_resized_bicubically_for_evaluation(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for split in ("train", "test"):
        for label in ("one", "other"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    splits = load_images("folder", root=str(tmp_path), validation=1, image_size=14)
    seen = next(iter(splits.test_batches()))[0][0]
    resized = F.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (16, 16), mode="bicubic", antialias=True
    )
    expected = normalize(resized.round().clamp(0, 255)[:, :, 1:15, 1:15].byte(), splits.mean, splits.std)[0]
    torch.testing.assert_close(seen, expected, atol=0.03, rtol=0)


def test_clipping_float16_gradients_takes_the_optimizer_that_allows_it():
    parameter = torch.nn.Parameter(torch.zeros(3))
    groups = [{"params": [parameter]}]
    for options, fused in (
        (None, True),
        (TrainerOptions(gradient_clip=1.0), True),
        (TrainerOptions(precision="16-mixed"), True),
        (TrainerOptions(precision="16-mixed", gradient_clip=1.0), False),
    ):
        assert adamw(groups, 1.0, (0.9, 0.95), options).param_groups[0]["fused"] is fused


def by_name(model, groups, what):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group[what] for group in groups for parameter in group["params"]}


def test_learning_rates_fall_with_the_layers():
    """Base of 12 blocks, r = 0.65."""
    model = vision_transformer(image_size=32, patch=16, width=24, depth=12, heads=2, num_classes=3)
    groups = layered_groups(model, learning_rate=1.0, weight_decay=0.05, layer_decay=0.65)
    rates, decays = by_name(model, groups, "lr"), by_name(model, groups, "weight_decay")
    assert rates["patch_embed.proj.weight"] == pytest.approx(0.65**13)
    assert rates["pos_embed"] == rates["cls_token"] == pytest.approx(0.65**13)
    assert rates["blocks.0.norm1.weight"] == pytest.approx(0.65**12)
    assert rates["blocks.11.mlp.fc2.weight"] == pytest.approx(0.65)
    assert rates["head.weight"] == rates["fc_norm.weight"] == 1
    assert decays["head.weight"] == 0.05 and decays["head.bias"] == decays["cls_token"] == decays["fc_norm.weight"] == 0
    pretraining = by_name(model, plain_groups(model, weight_decay=0.05), "weight_decay")
    assert pretraining["cls_token"] == pretraining["pos_embed"] == 0.05 and pretraining["head.bias"] == 0
    assert set(pretraining) == set(rates) == {name for name, _ in model.named_parameters()}


def test_positions_are_resized_as_the_official_code_does():
    """MAE's `interpolate_pos_embed`: bicubic, without antialiasing."""
    positions = sincos_positions(8, (14, 14))
    small = resize_positions(positions, (4, 4), 1)
    patches = positions[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, (4, 4), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(small[:, 1:], expected)
    assert (
        small[:, 1:] - F.interpolate(patches, (4, 4), mode="bicubic", antialias=True).flatten(2).mT
    ).abs().max() > 0.01


def test_the_learning_rate_rises_as_in_the_official_code():
    """MAE: `lr * epoch / warmup_epochs` before each step, from 0, then a cosine to the lowest rate."""
    factor = learning_rate_factor(
        "cosine", total_steps=100, steps_per_epoch=10, warmup_epochs=2, warmup_from=0.0, lowest=0.1
    )
    assert [factor(0), factor(5), factor(20)] == pytest.approx([0, 0.25, 1])
    assert factor(60) == pytest.approx(0.1 + 0.9 * 0.5) and factor(100) == pytest.approx(0.1)
    linear = learning_rate_factor("linear", total_steps=10, steps_per_epoch=1, warmup_epochs=4, warmup_from=1e-6)
    assert [linear(0), linear(2), linear(8)] == pytest.approx([1e-6, 0.8 * (1e-6 + (1 - 1e-6) / 2), 0.2])


def test_random_erasing():
    torch.manual_seed(0)
    erased = random_erase(torch.zeros(400, 1, 16, 16), 0.25)
    touched = (erased != 0).flatten(1).float().mean(1)
    assert 0.15 < (touched > 0).float().mean() < 0.35
    assert touched.max() < 0.5
    assert random_erase(torch.ones(3, 1, 4, 4), 0.0).equal(torch.ones(3, 1, 4, 4))


def test_randaugment_depends_on_the_seed_alone(tmp_path):
    import random

    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "test" / name).mkdir(parents=True)
        for n in range(4):
            (tmp_path / "train" / name / f"{n}.png").write_bytes(picture(n))
            (tmp_path / "test" / name / f"{n}.png").write_bytes(picture(n))
    splits = load_images("folder", root=str(tmp_path), validation=2, image_size=16)
    found = []
    for seed in (1, 2):
        random.seed(seed)
        state = random.getstate()
        batches = finetuning_batches(splits, 4, seed=0, randaugment="rand-m9-mstd0.5-inc1")
        found.append(next(iter(batches))[0])
        assert random.getstate() == state
    assert torch.equal(*found)
    with pytest.raises(UserError, match="in memory"):
        finetuning_batches(load_images("digits"), 4, seed=0, randaugment="rand-m9-mstd0.5-inc1")


# --- ADE20K -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ade20k(tmp_path):
    random = np.random.default_rng(0)
    for split, kind in (("training", "train"), ("validation", "val")):
        for part in ("images", "annotations"):
            (tmp_path / part / split).mkdir(parents=True)
        for n in range(3):
            shape = (40 + 8 * n, 56)
            labels = np.zeros(shape, np.uint8)
            labels[:, :20], labels[:20, 20:], labels[20:, 20:] = 1, 150, 7
            labels[:4] = 0
            pixels = (labels[..., None] % 5 * 40 + random.integers(0, 30, (*shape, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"ADE_{kind}_{n:08}.jpg")
            Image.fromarray(labels).save(tmp_path / "annotations" / split / f"ADE_{kind}_{n:08}.png")
    return tmp_path


def test_other_is_ignored_before_anything_counts_it(ade20k):
    """Label 0 becomes 255 first: a crop of nothing else has no class, rather than too much of one."""
    labels = read_annotation(ade20k / "annotations/training/ADE_train_00000000.png")
    assert set(np.unique(labels)) == {0, 149, 6, IGNORED} and (labels[:4] == IGNORED).all()
    crop = TrainingCrop(32, (0.5, 0.5, 0.5))
    half = torch.full((4, 4), IGNORED)
    half[:2, :2], half[:2, 2:] = 1, 2
    assert crop.acceptable(half)
    half[:2] = 1
    assert not crop.acceptable(half)
    torch.manual_seed(0)
    files = find_ade20k(ade20k, "training")
    pair = crop(files[0][0])
    assert pair.shape == (4, 32, 32) and pair.dtype == torch.uint8
    assert set(pair[3].unique().tolist()) <= {0, 149, 6, IGNORED}


def test_the_score_sums_before_it_divides():
    score = SegmentationScore(4)
    score.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]))
    score.update(torch.tensor([[1]]), torch.tensor([[1]]))
    assert score.compute()["miou"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)  # classes 2 and 3 are nowhere
    assert score.compute()["pixel_accuracy"] == pytest.approx(75)
    from torchmetrics.classification import MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(0)
    predictions, labels = (torch.randint(0, 4, (2, 9, 9), generator=generator) for _ in range(2))
    labels[0, :3] = 255
    exact = SegmentationScore(4)
    exact.update(predictions, labels)
    reference = MulticlassJaccardIndex(4, ignore_index=255)(predictions, labels)
    assert exact.compute()["miou"] == pytest.approx(100 * float(reference), abs=1e-4)


def test_windows_cover_an_image_of_any_size():
    def model(x):
        return torch.stack([x[:, 0], -x[:, 0]], 1)

    image = torch.randn(3, 37, 21)
    logits = sliding_logits(model, image, 16, 11, 2)
    torch.testing.assert_close(logits[0], image[0])


def test_segmentation_trains_and_is_measured_at_original_size(ade20k, tmp_path):
    torch.manual_seed(0)
    backbone = vision_transformer(image_size=32, patch=8, width=24, depth=3, heads=[2, 2, 4])
    model = SegmentationNetwork(backbone, crop=32, channels=16, auxiliary_channels=8)
    images = torch.randn(2, 3, 32, 32)
    seen = []
    handle = model.backbone.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.eval()(images)
    handle.remove()
    expected = []
    backbone.blocks[-1].register_forward_hook(lambda module, inputs, output: expected.append(output))
    backbone.eval()(images)
    torch.testing.assert_close(seen[0], expected[0], atol=1e-5, rtol=1e-5)  # begins as the pre-trained one
    assert [tuple(scale.shape[-2:]) for scale in model.scales(images)] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    rates = by_name(model, segmentation_groups(model, 1.0, 0.05, 0.75), "lr")
    assert set(rates) == {name for name, _ in model.named_parameters()}
    assert rates["backbone.patch_embed.proj.weight"] == pytest.approx(0.75**4)
    assert rates["backbone.blocks.2.attn.qkv.weight"] == pytest.approx(0.75)
    assert rates["neck.1.weight"] == rates["decoder.bottleneck.conv.weight"] == 1
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    training, validation = find_ade20k(ade20k, "training"), find_ade20k(ade20k, "validation")
    recipe = SegmentationTraining(iterations=12, batch_size=3, learning_rate=1e-2, warmup=1, drop_path=0.0)
    fitted = train_segmentation(model, training, recipe, folder=tmp_path / "fit", **statistics)
    losses = [row["train/decoder"] for row in fitted.history]
    assert losses[-1] < 0.9 * losses[0]
    found = evaluate_segmentation(model, validation, **statistics)
    assert 0 <= found["miou"] <= 100 and math.isfinite(found["pixel_accuracy"])


def test_wrong_ade20k_folders(ade20k, tmp_path):
    path = ade20k / "annotations/training/ADE_train_00000000.png"
    Image.fromarray(np.full((40, 56), 151, np.uint8)).save(path)
    with pytest.raises(UserError, match="151"):
        read_annotation(path)
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match="one channel"):
        read_annotation(path)
    path.unlink()
    with pytest.raises(UserError, match="no annotation"):
        find_ade20k(ade20k, "training")
    full = tmp_path / "full" / "images" / "ADE" / "training"
    full.mkdir(parents=True)
    (full / "ADE_train_00000001_seg.png").write_bytes(picture())
    with pytest.raises(UserError, match="full-size release"):
        find_ade20k(tmp_path / "full", "training")


# --- measures ---------------------------------------------------------------------------------------------------------


def test_nearest_neighbours():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.eye(8)[labels] + 0.1 * torch.randn(60, 8, generator=generator)
    assert knn_accuracy(features[:40], labels[:40], features[40:], labels[40:]) == 100


def test_mean_corruption_error():
    alexnet = {name: [rate] * 5 for name, rate in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(alexnet) == pytest.approx(100)
    with pytest.raises(UserError, match="snow"):
        mean_corruption_error({name: rates for name, rates in alexnet.items() if name != "snow"})


def test_test_sets_with_some_of_the_classes(tmp_path):
    for name in ("n02", "n04"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture())

    class Best(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Parameter(torch.tensor([9.0, 3.0, 8.0, 2.0]))

        def forward(self, x):
            return self.scores.expand(len(x), -1)

    preprocessing = Preprocessing.cropped(16, (0.5,) * 3, (0.5,) * 3)
    found = evaluate_restricted(Best(), tmp_path, ["n01", "n02", "n03", "n04"], preprocessing)
    assert found == {"images": 2, "classes": 2, "top1": 50.0}  # n01 and n03 score higher, but are not there
    with pytest.raises(UserError, match="n02"):
        evaluate_restricted(Best(), tmp_path, ["n01", "n03", "n04", "n05"], preprocessing)
