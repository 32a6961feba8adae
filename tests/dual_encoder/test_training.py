"""Pre-training and the distillation of any teacher into any towers."""

import pytest
import torch
from dual_for_tests import ANSWERS, batch, dual, fusion, tokenizer

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.method import CrossModalAttentionLoss
from tenfold.systems.dual_encoder.scoring.retrieval import caption_similarity
from tenfold.systems.dual_encoder.sets.images import ArrayImages
from tenfold.systems.dual_encoder.sets.questions import every_question
from tenfold.systems.dual_encoder.training.distil import common_heads, distil_dual_encoder
from tenfold.systems.dual_encoder.training.pretraining import (
    Pretraining,
    PretrainingObjective,
    PretrainingWeights,
    contrastive_loss,
    hard_negatives,
    mask_words,
)

SPECIAL = (0, 1, 2, 3, 4)


def test_contrast_is_lowest_for_the_own_pairs():
    sure = 50 * torch.eye(3)
    assert contrastive_loss(sure) < 1e-6
    assert contrastive_loss(torch.zeros(3, 3)).item() == pytest.approx(torch.tensor(3.0).log().item())
    assert contrastive_loss(sure[1:], 1) < 1e-6  # the second and third text, of another process


def test_a_hard_negative_is_never_the_own_pair_and_mostly_the_likest():
    similarity = torch.tensor([[9.0, 8.0, -9.0], [-9.0, 9.0, 8.0], [8.0, -9.0, 9.0]])
    drawn = torch.stack([hard_negatives(similarity, torch.Generator().manual_seed(n)) for n in range(20)])
    assert (drawn == torch.tensor([1, 2, 0])).all()


def test_masked_words_are_words():
    torch.manual_seed(0)
    text, mask = tokenizer().batch(["is there a red circle", "what color"] * 20)
    found, chosen = mask_words(text, mask, SPECIAL, 4, len(tokenizer().vocabulary))
    assert not (chosen & ((text < 5) | ~mask)).any()
    assert 0.1 < chosen.sum() / (mask & (text > 4)).sum() < 0.2
    assert torch.equal(found[~chosen], text[~chosen]) and (found[chosen] == 4).float().mean() > 0.6
    _, one = mask_words(text[:1], mask[:1], SPECIAL, 4, 9, share=0.0)
    assert one.sum() == 1


def test_pretraining_reaches_every_parameter_and_leaves_parts_out():
    torch.manual_seed(0)
    stage, given = Pretraining(dual(1, answers=2), dim=6), batch()
    loss, parts = PretrainingObjective(fusion(answers=2), SPECIAL, 4)(stage, given)
    loss.backward()
    assert set(parts) == {"contrast", "match", "words", "soft", "attention"} and loss.isfinite()
    assert [name for name, p in stage.named_parameters() if p.grad is None] == []
    weights = PretrainingWeights(words=0, soft=0, attention=0)
    assert set(PretrainingObjective(None, SPECIAL, 4, weights)(stage, given)[1]) == {"contrast", "match"}


def test_captions_are_compared_with_images_as_in_training():
    torch.manual_seed(0)
    stage = Pretraining(dual(1, answers=2), dim=6).eval()
    pixels = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    preparation, captions = ImagePreparation(patch=4, shorter=12, longest=12), ["is there a red circle", "what color"]
    found = caption_similarity(stage, captions, ArrayImages(pixels), tokenizer(), preparation, batch_size=2)
    text, mask = tokenizer().batch(captions)
    v = stage.model.encode_images(preparation.batch(list(pixels))[0][:, None])[:, 0]
    torch.testing.assert_close(found, stage.similarity(stage.model.encode_text(text, mask), v), atol=1e-5, rtol=1e-5)
    assert found.shape == (2, 3)


def test_distillation_brings_the_student_nearer_and_goes_on_where_it_stopped(tmp_path):
    preparation = ImagePreparation(patch=4, shorter=12, longest=12)
    pixels = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = every_question(ArrayImages(pixels), ["is there a red circle", "what color", "is there a square"], ANSWERS)

    def run(folder):
        student = dual(1)
        rest = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "folder": folder}
        found = distil_dual_encoder(student, fusion(), data, tokenizer(), preparation, **rest)
        return found, student

    found, student = run(tmp_path / "a")
    assert found.steps == 12 and found.history[-1]["train/attention"] < found.history[0]["train/attention"]
    again, same = run(tmp_path / "a")  # its last checkpoint is there: nothing is left to do
    assert again.steps == 12 and all(map(torch.equal, same.state_dict().values(), student.state_dict().values()))


def test_unequal_heads_are_compared_by_relation_heads(tmp_path):
    student, teacher = dual(1, width=8, heads=4), fusion(width=12, heads=3)
    assert common_heads(dual(1), fusion()) is None
    heads = common_heads(student, teacher)
    assert heads == 2
    preparation = ImagePreparation(patch=4, shorter=12, longest=12)
    data = every_question(ArrayImages(torch.zeros(2, 3, 12, 12, dtype=torch.uint8)), ["what color"], ANSWERS)
    given = {"steps": 1, "batch_size": 2, "folder": tmp_path / "a"}
    found = distil_dual_encoder(student, teacher, data, tokenizer(), preparation, **given)
    assert found.history[0]["train/attention"] >= 0
    with pytest.raises(UserError, match="relation heads"):
        given["folder"] = tmp_path / "b"
        distil_dual_encoder(
            student, teacher, data, tokenizer(), preparation, attention=CrossModalAttentionLoss(), **given
        )
