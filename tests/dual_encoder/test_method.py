"""Cross-modal attention distillation: golden values, identities, traps of the official program."""

from dataclasses import replace

import pytest
import torch
from dual_for_tests import batch, dual, fusion
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.attention.readers import CrossAttention, SingleStream, TwoTowers
from tenfold.systems.dual_encoder.attention.remembering import remember
from tenfold.systems.dual_encoder.experiment.recipe import pairs_of_layers
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.method import (
    CrossModalAttentionLoss,
    DistillationObjective,
    LossWeights,
    Projections,
    attention_map,
    hard_label_loss,
    soft_label_loss,
)
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder
from tenfold.systems.dual_encoder.sets.grid_qa import grid_qa
from tenfold.systems.dual_encoder.training.initialise import start_from_fusion
from tenfold.systems.dual_encoder.training.optimizers import parameter_groups, warmup_linear


def waves(a, *shape):
    return (2 * torch.sin(a * torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64))).reshape(shape)


STUDENT = Projections(waves(0.7, 2, 2, 3, 4), waves(1.1, 2, 2, 3, 4), waves(0.9, 2, 2, 4, 4), waves(1.3, 2, 2, 4, 4))
JOINT_Q, JOINT_K = waves(0.5, 2, 2, 7, 4), waves(1.7, 2, 2, 7, 4)
TEACHER = Projections(JOINT_Q[:, :, :3], JOINT_K[:, :, :3], JOINT_Q[:, :, 3:], JOINT_K[:, :, 3:])
TEXT_MASK = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
IMAGE_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("masks", "rows", "t2v", "v2t"),
    [
        # By the formula in float64; the first and second rows agree with the official program (old KL semantics).
        ((None, None), "valid", 1.4301723923, 2.8171620899),
        ((TEXT_MASK, IMAGE_MASK), "all", 0.9195656034, 2.1335744295),
        ((TEXT_MASK, IMAGE_MASK), "valid", 0.8498876064, 2.2525831622),
    ],
)
def test_golden_values(masks, rows, t2v, v2t):
    loss = CrossModalAttentionLoss(query_rows=rows)
    parts = loss.parts(STUDENT, TEACHER, *masks)
    assert parts["t2v"].item() == pytest.approx(t2v, abs=1e-9)
    assert parts["v2t"].item() == pytest.approx(v2t, abs=1e-9)
    assert loss(STUDENT, TEACHER, *masks).item() == pytest.approx(t2v + v2t, abs=1e-9)


def test_the_teachers_maps_are_normalized_over_the_other_modality():
    joint = torch.softmax(JOINT_Q @ JOINT_K.transpose(-1, -2) / 2, -1)[:, :, :3, 3:]
    own = attention_map(TEACHER, "t2v", None, None)
    torch.testing.assert_close(own, joint / joint.sum(-1, keepdim=True))
    shifted = JOINT_K.clone()
    shifted[:, :, :3] += 5  # only keys of words: the map over patches does not see them
    moved = Projections(TEACHER.text_queries, shifted[:, :, :3], TEACHER.image_queries, TEACHER.image_keys)
    torch.testing.assert_close(attention_map(moved, "t2v", None, None), own)


def test_one_word_alone_leaves_nothing_to_learn_from_patches_to_words():
    only = torch.tensor([[1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert (attention_map(STUDENT, "v2t", only, None)[..., 0] == 1).all()
    assert CrossModalAttentionLoss(("v2t",))(STUDENT, TEACHER, only, None) == 0


def test_relation_heads_compare_unequal_heads_and_all_else_is_refused():
    wide = Projections(*(torch.cat([x, x], 1) for x in (TEACHER.text_queries, TEACHER.text_keys,
                                                        TEACHER.image_queries, TEACHER.image_keys)))  # fmt: skip
    with pytest.raises(UserError, match="relation heads"):
        CrossModalAttentionLoss()(STUDENT, wide)
    assert CrossModalAttentionLoss(heads=4)(STUDENT, wide) > 0
    with pytest.raises(UserError, match="t2v, v2t"):
        CrossModalAttentionLoss(("t2x",))
    with pytest.raises(UserError, match="none of the maps"):
        CrossModalAttentionLoss()(Projections(), TEACHER)


def test_leading_tokens_that_one_side_lacks_leave():
    extra = torch.randn(2, 2, 2, 4, dtype=torch.float64)
    longer = (torch.cat([x[:, :, :1], extra, x[:, :, 1:]], 2) for x in (STUDENT.image_queries, STUDENT.image_keys))
    more = Projections(STUDENT.text_queries, STUDENT.text_keys, *longer, prefix=3)
    torch.testing.assert_close(CrossModalAttentionLoss()(more, TEACHER), CrossModalAttentionLoss()(STUDENT, TEACHER))


def test_soft_and_hard_labels():
    scores, target = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.3]])
    by_hand = -(target.sigmoid() * scores.sigmoid().log() + (-target).sigmoid() * (-scores).sigmoid().log()).sum()
    torch.testing.assert_close(soft_label_loss(scores, target, "multilabel"), by_hand)
    assert soft_label_loss(scores, scores, "classes").abs() < 1e-7
    labels = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(hard_label_loss(scores, labels, "classes"), -scores.log_softmax(-1)[0, 0])
    # Twice as many answers, twice the loss: the sum over answers, not the mean.
    twice = soft_label_loss(scores.repeat(1, 2), target.repeat(1, 2), "multilabel")
    torch.testing.assert_close(twice, 2 * by_hand)


def test_the_teacher_stays_as_it_is_and_two_passes_give_the_same_maps():
    teacher, student, given = fusion(dropout=0.1), dual(1), batch()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    given["targets"] = torch.rand(2, 4)
    teacher.train()
    objective = DistillationObjective(TwoTowers(), SingleStream(teacher), "multilabel")
    student.train()
    loss, parts = objective(student, given)
    loss.backward()
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert set(parts) == {"soft", "attention"} and parts["attention"] > 0
    assert objective(student, given)[0] == loss
    first, second = (SingleStream(teacher)(given)[1][0][0] for _ in range(2))
    assert torch.equal(first.text_queries, second.text_queries)
    assert CrossModalAttentionLoss()(first, second).abs() < 1e-6


@pytest.mark.parametrize("images", [1, 2])
def test_a_teacher_that_is_remembered_says_the_same(images):
    data = grid_qa(6, validation=1, test=1).train
    data = replace(data, rows=data.rows.repeat(1, images))
    split = QuestionTokenizer.of_words(data.questions, 10)
    tensors = QuestionTensors(data, split, ImagePreparation(patch=8, shorter=16, longest=16))
    sizes = Sizes(vocabulary=len(split.vocabulary), width=8, layers=2, heads=2, patch=8, grid=2, images=images)
    teacher = SingleStream(FusionEncoder(sizes, len(data.answers)), [1, -1])
    kept = remember(teacher, tensors, maps=True)
    given = tensors.batch(torch.tensor([7, 2, 9]))
    for (scores, layers), (again, others) in [(teacher(given), kept(given))]:
        torch.testing.assert_close(again, scores)
        for sides, others_sides in zip(layers, others, strict=True):
            assert len(sides) == images
            for one, other in zip(sides, others_sides, strict=True):
                torch.testing.assert_close(other.text_queries, one.text_queries)
                torch.testing.assert_close(other.image_keys, one.image_keys)
    assert remember(teacher, tensors, maps=True, limit=10) is teacher


def test_no_parameter_of_the_student_is_without_a_gradient():
    student, given = dual(1), batch()
    loss, _ = DistillationObjective(TwoTowers(), SingleStream(fusion()), "multilabel")(student, given)
    loss.backward()
    assert [name for name, p in student.named_parameters() if p.grad is None] == []


def test_padding_changes_neither_scores_nor_loss():
    student, teacher = dual(1), fusion()
    objective = DistillationObjective(TwoTowers(), SingleStream(teacher), "multilabel")
    sizes_of = [(12, 8), (8, 12)]
    given = batch(sizes_of_images=sizes_of)
    longer = dict(given)
    longer["text"] = torch.nn.functional.pad(given["text"], (0, 3))
    longer["text_mask"] = torch.nn.functional.pad(given["text_mask"], (0, 3))
    longer["pixels"] = torch.nn.functional.pad(given["pixels"], (0, 4, 0, 8), value=0.3)
    longer["patch_mask"] = torch.nn.functional.pad(given["patch_mask"], (0, 1, 0, 2))
    for model in (student, teacher):
        torch.testing.assert_close(model(**given), model(**longer), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(objective(student, given)[0], objective(student, longer)[0], atol=1e-5, rtol=1e-5)


def test_effective_weights_decide_and_impossible_ones_are_refused():
    given = batch()
    given["targets"] = torch.rand(2, 4)
    reader, teacher = TwoTowers(), SingleStream(fusion())
    _, parts = DistillationObjective(reader, teacher, "multilabel", LossWeights(0, 0, 1))(dual(1), given)
    assert set(parts) == {"hard"}
    with pytest.raises(UserError, match="teacher"):
        DistillationObjective(reader, None, "multilabel")
    with pytest.raises(UserError, match="nothing to learn"):
        DistillationObjective(reader, teacher, "multilabel", LossWeights(0, 0, 0))
    with pytest.raises(UserError, match="layers 1 to 2"):
        TwoTowers([3])(dual(1), given)
    given["teacher_text"] = given["text"]
    with pytest.raises(UserError, match="tokenizers"):
        reader(dual(1), given)


def test_layers_are_paired_at_the_same_depth():
    assert pairs_of_layers(12, 12, every=False) == [(-1, -1)]
    assert pairs_of_layers(12, 6, every=True) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]
    found = TwoTowers([1, 2])(dual(1), batch())[1]
    assert len(found) == 2 and not torch.equal(found[0][0].text_queries, found[1][0].text_queries)


def test_pairs_are_summed_and_sides_are_told_apart():
    student, teacher, given = dual(1, images=2), fusion(images=2), batch(images=2)
    swapped = given | {"pixels": given["pixels"].flip(1)}
    for model in (student, teacher):
        assert not torch.allclose(model(**given), model(**swapped))
    same = given["pixels"][:, :1].expand(-1, 2, -1, -1, -1)
    left, right = student.encode_images(same).unbind(1)
    assert not torch.allclose(left, right)
    _, ours = TwoTowers()(student, given)
    _, theirs = SingleStream(teacher)(given)
    loss = CrossModalAttentionLoss()
    by_side = [loss(one, other, given["text_mask"]) for one, other in zip(ours[0], theirs[0], strict=True)]
    _, parts = DistillationObjective(TwoTowers(), SingleStream(teacher), "multilabel")(student, given)
    torch.testing.assert_close(parts["attention"], sum(by_side))


def test_the_text_comes_first_in_the_fusion():
    model = dual()
    with torch.no_grad():
        model.fusion[0].weight[:, 8:] = 0  # the half of the image
    given = batch()
    other = given | {"pixels": given["pixels"] + 1}
    assert torch.equal(model(**given), model(**other))
    assert not torch.allclose(model(**given), model(**given | {"text": given["text"].flip(0)}))


def test_towers_start_from_the_teacher():
    student, teacher, given = dual(1), fusion(), batch()
    start_from_fusion(student, teacher)
    words = teacher.text_embeddings(given["text"]) + teacher.token_type_embeddings.weight[0]
    torch.testing.assert_close(student.text_tower.tokens(given["text"], given["text_mask"]),
                               teacher.transformer.run(words, given["text_mask"]))  # fmt: skip
    with pytest.raises(UserError, match="more blocks"):
        start_from_fusion(dual(1, layers=1), teacher)


def test_the_classifier_alone_learns_faster_and_each_parameter_is_in_one_group():
    model = dual()
    groups = parameter_groups(model, 1e-4, 0.01, classifier_factor=10)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert rate[id(model.classifier[3].weight)] == pytest.approx((1e-3, 0.01))
    assert rate[id(model.fusion[0].weight)] == pytest.approx((1e-4, 0.01))
    assert rate[id(model.fusion[1].weight)] == pytest.approx((1e-4, 0.01))  # the head's norm decays, as published
    assert rate[id(model.text_tower.transformer.norm.weight)] == pytest.approx((1e-4, 0.0))
    factor = warmup_linear(100, 0.1)
    assert [factor(0), factor(9), factor(10), factor(55), factor(100)] == pytest.approx([0.1, 1, 1, 0.5, 0])


class Meeting(nn.Module):
    """A teacher whose words look at patches in a cross-attention module, as in BLIP."""

    def __init__(self):
        super().__init__()
        self.words, self.patches = nn.Embedding(30, 8), nn.Conv2d(3, 8, 4, 4)
        self.cross = nn.Module()
        self.cross.num_attention_heads = 2
        self.cross.query, self.cross.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, text, text_mask, pixels, patch_mask=None):
        words, patches = self.words(text), self.patches(pixels[:, 0]).flatten(2).transpose(1, 2)
        weights = (self.cross.query(words) @ self.cross.key(patches).transpose(1, 2)).softmax(-1)
        return self.out((weights @ patches).mean(1))


def test_a_teacher_with_cross_attention_modules_is_read():
    student, given = dual(1), batch()
    teacher = CrossAttention(Meeting(), "cross", prefix=0)
    loss, parts = DistillationObjective(TwoTowers(), teacher, "multilabel")(student, given)
    assert parts["attention"] > 0 and loss.isfinite()
    with pytest.raises(UserError, match="no module"):
        CrossAttention(Meeting(), "crossed")
    with pytest.raises(UserError, match="projection"):
        CrossAttention(Meeting(), "out", heads=2)
