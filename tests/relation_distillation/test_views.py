"""Fixed views with the teacher's side kept: the same losses as with a teacher that runs in every step."""

import pytest
import torch

from tenfold.data import normalize
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.data.images import load_images
from tenfold.systems.relation_distillation.data.views import pretraining_batches
from tenfold.systems.relation_distillation.method import RelationDistiller
from tenfold.systems.relation_distillation.training.feature_targets import FeatureDistiller
from tenfold.systems.relation_distillation.training.teacher_cache import TeacherCache
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer

SPLITS = load_images("digits", limit=60)


def batches(seed=0, views=2):
    return pretraining_batches(SPLITS, 20, seed=seed, crop_scale=(0.5, 1.0), jitter=0.4, views=views)


def cached(task, crops, limit_mb=100):
    return TeacherCache(
        task.of_teacher, crops, lambda x: normalize(x, SPLITS.mean, SPLITS.std), limit_mb=limit_mb, batch_size=32
    )


def test_epochs_show_the_views_in_turn_with_a_jitter_of_their_own():
    data = batches()
    epochs = [list(data) for _ in range(3)]
    places = [torch.cat([batch[2] for batch in epoch]).sort().values for epoch in epochs]
    assert places[0].tolist() == places[2].tolist() == list(range(60))
    assert places[1].tolist() == list(range(60, 120))
    for images, labels, where in epochs[1]:
        assert torch.equal(images[:, 1], normalize(data.crops[where], SPLITS.mean, SPLITS.std))
        assert torch.equal(labels, SPLITS.train.labels[where - 60])
    first, third = (torch.cat([b[0][b[2].argsort()] for b in epoch]) for epoch in (epochs[0], epochs[2]))
    assert not torch.equal(first[:, 0], third[:, 0])  # the student's jitter is new
    assert torch.equal(batches(seed=5).crops, data.crops)  # all seeds and arms see the same crops
    again = batches()
    again.load_state_dict({"epoch": 1, "given": 1})
    assert torch.equal(next(iter(again))[0], epochs[1][1][0])


@pytest.mark.parametrize("target", ["relations", "cls", "qkv"])
def test_a_kept_teacher_gives_the_losses_of_a_live_one(target):
    torch.manual_seed(0)
    student = vision_transformer(image_size=8, patch=2, width=16, depth=2, heads=2, channels=1)
    teacher = vision_transformer(image_size=8, patch=2, width=32, depth=3, heads=4, channels=1)
    task = RelationDistiller(student, teacher) if target == "relations" else FeatureDistiller(student, teacher, target)
    task.eval()
    data = batches()
    kept = cached(task, data.crops)
    assert task.fixed_teacher
    for _ in range(2):
        for images, _, places in data:
            ours, clean = images.unbind(1)
            torch.testing.assert_close(task.loss((ours, kept.at(places)))["loss"], task.loss((ours, clean))["loss"])


def test_what_cannot_be_kept():
    torch.manual_seed(0)
    student = vision_transformer(image_size=8, patch=2, width=16, depth=2, heads=2, channels=1)
    teacher = vision_transformer(image_size=8, patch=2, width=256, depth=2, heads=4, channels=1)
    task = RelationDistiller(student, teacher, mask_ratio=0.5)
    assert not task.fixed_teacher
    with pytest.raises(UserError, match="take fewer views"):
        cached(task, batches().crops, limit_mb=1)
    with pytest.raises(UserError, match="at least one view"):
        batches(views=0)
