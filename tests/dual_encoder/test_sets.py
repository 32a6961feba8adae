"""Questions of published formats, generators and executors, and how answers are judged."""

import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from dual_for_tests import tokenizer
from PIL import Image

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.inputs.augment import OPERATIONS, rand_augment
from tenfold.systems.dual_encoder.inputs.batches import QuestionBatches, QuestionTensors
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.scoring.checklist import choose_thresholds, read_checklist, read_labels, wilson
from tenfold.systems.dual_encoder.scoring.measure import score_answers, summarize
from tenfold.systems.dual_encoder.scoring.result_files import write_predictions
from tenfold.systems.dual_encoder.scoring.retrieval import recalls
from tenfold.systems.dual_encoder.scoring.vqa_accuracy import normalize_answer, vqa_accuracy
from tenfold.systems.dual_encoder.sets.arrow_tables import arrow_tables
from tenfold.systems.dual_encoder.sets.easy_vqa import kind_of
from tenfold.systems.dual_encoder.sets.grid_qa import ANSWERS, COLOURS, SHAPES, grid_qa
from tenfold.systems.dual_encoder.sets.karpathy import karpathy_captions
from tenfold.systems.dual_encoder.sets.load_sets import load_question_sets
from tenfold.systems.dual_encoder.sets.nlvr import PERMUTATIONS, nlvr_questions, render_boxes
from tenfold.systems.dual_encoder.sets.nlvr2 import nlvr2
from tenfold.systems.dual_encoder.sets.photo_folder import photo_questions
from tenfold.systems.dual_encoder.sets.questions import majority_answers
from tenfold.systems.dual_encoder.sets.shapes import draw_scenes, execute_query, parse_query, read_shapes, shapes
from tenfold.systems.dual_encoder.sets.snli_ve import snli_ve, snli_ve_from_snli, write_rows

REAL = Path(os.environ.get("TENFOLD_DATA", "/nowhere")) / "visual-reasoning"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="needs TENFOLD_DATA")


def jpeg(path, value=0, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 30, 60)).save(path, "JPEG")


def test_grid_questions_are_answered_by_their_scenes():
    splits = grid_qa(300, questions_per_scene=2, validation=20, test=40, seed=1)
    train = splits.train
    assert len(train) == 600 and train.images.pixels.shape == (300, 3, 16, 16)
    places = {"nw": (0, 0), "ne": (0, 1), "sw": (1, 0), "se": (1, 1)}
    palette = np.asarray([*COLOURS.values()])
    for question, row, label in zip(train.questions, train.rows[:, 0].tolist(), train.labels, strict=True):
        if question.startswith("what color"):
            down, right = places[question.split()[-1]]
            cell = train.images.pixels[row, :, 8 * down : 8 * down + 8, 8 * right : 8 * right + 8].float()
            lit = cell[:, cell.sum(0) > 0]
            seen = "none"
            if lit.shape[1]:
                seen = list(COLOURS)[np.abs(palette - lit.mean(1).numpy()).sum(1).argmin()]
            assert label == {seen: 1.0}
    asked = [label for question, label in zip(train.questions, train.labels, strict=True) if "is there" in question]
    assert 0.4 < np.mean([label == {"yes": 1.0} for label in asked]) < 0.55
    assert set(ANSWERS) == {*COLOURS, *SHAPES, "none", "yes", "no"}
    again = grid_qa(10, validation=20, test=40, seed=1)
    assert again.test.questions == splits.test.questions  # whatever the number of training scenes
    assert torch.equal(again.test.images.pixels, splits.test.images.pixels)
    with pytest.raises(UserError, match="side 4"):
        grid_qa(side=4)


def test_majority_answers_look_at_no_image():
    train = grid_qa(200, validation=5, test=50).train
    test = grid_qa(5, validation=5, test=50).test
    chosen = majority_answers(train, test)
    assert {ANSWERS[n] for n, q in zip(chosen, test.questions, strict=True) if "color is" in q} <= {*COLOURS, "none"}


def test_batches_depend_on_seed_and_epoch_only_and_say_what_is_too_long():
    data = grid_qa(20, validation=5, test=5).train
    split = type(tokenizer()).of_words(data.questions, 12)
    tensors = QuestionTensors(data, split, ImagePreparation(patch=8, shorter=16, longest=16))
    batches = QuestionBatches(tensors, 8, seed=0, epoch_batches=3)
    first = list(batches)
    assert len(first) == 3 and first[0]["pixels"].shape == (8, 1, 3, 16, 16) and "patch_mask" not in first[0]
    again = QuestionBatches(tensors, 8, seed=0, epoch_batches=3)
    again.load_state_dict({"epoch": 0, "given": 2})
    assert torch.equal(next(iter(again))["text"], first[2]["text"])
    with pytest.raises(UserError, match=r"question '0': .*limit of 4"):
        QuestionTensors(data, type(split).of_words(data.questions, 4), tensors.preparation)


def test_images_keep_their_proportions_and_black_is_no_padding():
    preparation = ImagePreparation()
    assert preparation.size_of(480, 640) == (384, 512)
    assert preparation.size_of(100, 1000) == (64, 608)  # as the official resize: 639 at most, then whole patches
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    pixels, mask = ImagePreparation(mean=(0, 0, 0), std=(1, 1, 1)).batch([black, black[:, :32]])
    assert mask[0].all() and mask[1].tolist() == [[True, True], [False, False]] and (pixels == 0).all()
    assert ImagePreparation.from_dict(json.loads(json.dumps(preparation.to_dict()))) == preparation
    for wrong in ({"patch": 0}, {"shorter": 16}, {"std": (0, 1, 1)}):
        with pytest.raises(UserError):
            ImagePreparation(**wrong)


def test_augmentations_are_drawn_from_the_generator():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    assert len(OPERATIONS) == 14
    for change in OPERATIONS.values():
        assert change(picture, 1).size == picture.size
    one, two = (rand_augment(picture, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert len(np.unique(np.asarray(OPERATIONS["posterize"](picture, 1)))) == 2


@pytest.mark.parametrize(
    ("raw", "normal"),
    # By the official evaluation program.
    [("Yes.", "yes"), ("two dogs", "2 dogs"), ("a red-ball", "red ball"), ("2,000", "2000"), ("3.", "3"),
     ("t-shirt", "t shirt"), ("black & white", "black & white"), ("none", "0"), ("no, it isnt", "no it isn't"),
     ("u.s.a.", "usa"), ("one , two", "1 2"), ("5 - 6", "5 6"), ("6'2\"", "6'2"), ("10:30 pm", "10:30 pm"),
     ("its", "its")],
)  # fmt: skip
def test_answers_are_normalized_as_officially(raw, normal):
    assert normalize_answer(raw) == normal


def test_vqa_accuracy():
    people = ["yes"] * 8 + ["no"] * 2
    assert vqa_accuracy("yes", people) == 1.0
    assert vqa_accuracy("no", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0  # all agree: nothing is normalized
    assert vqa_accuracy("Yes.", people) == 1.0


def vqa_folder(root, images=4):
    for split, first in (("train2014", 1), ("val2014", 100)):
        questions, annotations = [], []
        for number in range(first, first + images):
            jpeg(root / split / f"COCO_{split}_{number:012d}.jpg", number)
            questions.append({"image_id": number, "question": f"what is {number}?", "question_id": 10 * number})
            people = ["red"] * 7 + ["blue"] * 3 if number % 2 else ["blue"] * 10
            annotations.append(
                {"question_id": 10 * number, "image_id": number, "answer_type": "other", "question_type": "what",
                 "multiple_choice_answer": people[0], "answers": [{"answer": a, "answer_id": n} for n, a in
                                                                  enumerate(people)]}
            )  # fmt: skip
        (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": questions}))
        (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))


def test_vqa_in_its_published_layout(tmp_path):
    vqa_folder(tmp_path)
    splits = load_question_sets("vqa-v2", str(tmp_path), least_count=2, scenes=0, test=0)
    assert splits.train.answers == ("red", "blue") and len(splits.train) == 4 and len(splits.test) == 4
    assert splits.train.labels[0] == {"red": 1.0, "blue": 0.9}
    assert splits.train.targets([0]).tolist() == [[1.0, pytest.approx(0.9)]]
    chosen = np.array([0, 0, 1, 1])
    scores = score_answers(splits.test, chosen)
    assert scores[1] == 1.0 and 0 < scores[3] < 1.0
    write_predictions(tmp_path / "out.json", "vqa-v2", splits.test, chosen)
    assert json.loads((tmp_path / "out.json").read_text())[0] == {"question_id": 1000, "answer": "red"}
    with pytest.raises(UserError, match="least_count"):
        load_question_sets("vqa-v2", str(tmp_path), least_count=50)
    (tmp_path / "train2014/COCO_train2014_000000000002.jpg").unlink()
    with pytest.raises(UserError, match="000000000002"):
        load_question_sets("vqa-v2", str(tmp_path), least_count=2)


def test_nlvr2_with_consistency_and_names_that_lie(tmp_path):
    def rows(split, count, directory):
        found = []
        for pair in range(count):
            identifier = f"{split}-{pair // 2}-{pair % 2}-0"
            row = {"identifier": identifier, "sentence": "two dogs", "label": "True" if pair % 3 else "False"}
            base = tmp_path / "images" / split
            if directory:
                row["directory"] = 99 if pair < 2 else pair
                base = base / str(row["directory"])
            for side in (0, 1):
                jpeg(base / f"{split}-{pair // 2}-{pair % 2}-img{side}.png", 40 * pair + side)
            found.append(json.dumps(row))
        (tmp_path / f"{split}.json").write_text("\n".join(found) + "\n")

    rows("train", 6, True)
    rows("dev", 4, False)
    splits = nlvr2(tmp_path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 2, 4]
    assert splits.test.images_per_question == 2 and splits.test.answers == ("False", "True")
    found = summarize(splits.test, np.array([1.0, 1.0, 1.0, 0.0]))
    assert found["accuracy"] == 75 and found["consistency"] == 50
    write_predictions(tmp_path / "out.csv", "nlvr2", splits.test, np.array([1, 0, 1, 1]))
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "dev-0-0-0,true"
    prepared = splits.test.images.prepared([0, 1], ImagePreparation(patch=4, shorter=8, longest=16))
    assert prepared[0].shape == (3, 8, 8)


def test_snli_ve_in_its_files_and_made_again_from_snli(tmp_path):
    snli = [
        {"gold_label": label, "captionID": f"{image}.jpg#0", "pairID": f"{image}.jpg#0r1", "sentence1": "x",
         "sentence2": "a man"} for image, label in (("11", "neutral"), ("12", "-"), ("vg_3", "neutral"),
                                                    ("13", "entailment"))
    ]  # fmt: skip
    made = snli_ve_from_snli(snli, ["11", "12.jpg", "vg_3"])
    assert [row["Flickr30K_ID"] for row in made] == ["11"]
    for split in ("train", "dev"):
        write_rows(tmp_path / f"snli_ve_{split}.jsonl", made)
    (tmp_path / "test.json").write_text(json.dumps([{"image": "x/11.jpg", "sentence": "b", "label": "entailment"}]))
    jpeg(tmp_path / "flickr30k_images/11.jpg")
    splits = snli_ve(tmp_path)
    assert splits.test.labels == ({"entailment": 1.0},) and splits.train.ids == ("11.jpg#0r1",)
    (tmp_path / "snli_ve_dev.jsonl").write_text('{"gold_label": "maybe"}\n')
    with pytest.raises(UserError, match="damaged"):
        snli_ve(tmp_path)


def test_arrow_tables_of_the_vilt_family(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    content = io.BytesIO()
    Image.new("RGB", (12, 8), (9, 9, 9)).save(content, "PNG")

    def write(name, **columns):
        table = arrow.table(columns)
        with (
            arrow.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink,
            arrow.RecordBatchFileWriter(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    picture = content.getvalue()
    for name in ("vqav2_train", "vqav2_trainable_val", "vqav2_rest_val"):
        write(name, image=[picture, picture], questions=[["q1", "q2"], ["q3"]],
              answers=[[["red"], ["blue", "red"]], [["blue"]]], answer_scores=[[[1.0], [0.6, 0.3]], [[0.9]]],
              question_id=[[1, 2], [3]], image_id=["a", "b"], split=["x", "x"])  # fmt: skip
    splits = arrow_tables(tmp_path, "vqav2")
    assert len(splits.train) == 6 and len(splits.test) == 3 and splits.train.answers == ("blue", "red")
    assert splits.test.labels[1] == {"blue": 0.6, "red": 0.3} and splits.test.ids == ("1", "2", "3")
    assert splits.test.images.prepared([1], ImagePreparation(patch=4, shorter=8, longest=12))[0].shape == (3, 8, 12)
    for name in ("nlvr2_train", "nlvr2_dev", "nlvr2_test1"):
        write(name, image_0=[picture], image_1=[picture], questions=[["s"]], answers=[["True"]], identifier=["d-1-0-2"])
    pairs = arrow_tables(tmp_path, "nlvr2")
    assert pairs.test.rows.tolist() == [[0, 1]] and pairs.test.groups == ("d-1-2",)
    (tmp_path / "nlvr2_dev.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match=r"nlvr2_dev\.arrow"):
        arrow_tables(tmp_path, "nlvr2")


def test_captions_and_recall(tmp_path):
    jpeg(tmp_path / "val2014/a.jpg")
    row = {
        "filename": "a.jpg",
        "filepath": "val2014",
        "split": "restval",
        "sentences": [{"raw": "one"}, {"raw": "two"}],
    }
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [row], "dataset": "coco"}))
    found = karpathy_captions(tmp_path / "dataset_coco.json", tmp_path, "train")
    assert found.captions == ("one", "two") and found.rows == (0, 0)
    with pytest.raises(UserError, match="no captions"):
        karpathy_captions(tmp_path / "dataset_coco.json", tmp_path, "test")
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.5, 0.4, 0.3]])
    assert recalls(similarity, [0, 1, 2], at=(1, 2)) == pytest.approx(
        {"text_to_image@1": 100 / 3, "image_to_text@1": 100, "text_to_image@2": 200 / 3, "image_to_text@2": 100}
    )


def test_queries_of_shapes_are_executed():
    colours = np.array([[[0, -1, 1], [2, 0, 0], [-1, -1, 1]]])
    forms = np.array([[[0, -1, 2], [1, 1, 0], [-1, -1, 0]]])
    for text, right in (
        ("(is red square)", True), ("(is blue square)", False), ("(is red (left_of square))", True),
        ("(is square (left_of circle))", False), ("(is red (above blue))", True),
        ("(is triangle (above (above square)))", True),
    ):  # fmt: skip
        assert execute_query(parse_query(text), colours, forms).tolist() == [right], text
    for wrong in ("(is red", "(is red square) x", "(was red square)", "(is red purple)"):
        with pytest.raises(UserError):
            execute_query(parse_query(wrong), colours, forms)


def in_cells(images):
    """``(n, 30, 30, 3)`` as ``(n, 3, 3, 100, 3)``."""
    return images.reshape(-1, 3, 10, 3, 10, 3).swapaxes(2, 3).reshape(-1, 3, 3, 100, 3)


def outlines(images):
    """The brightest channel of each cell, ``(cells, 100)``, brightest pixel 1."""
    found = in_cells(images).max(-1).reshape(-1, 100).astype(np.float32)
    return found / np.maximum(found.max(1, keepdims=True), 1)


@needs_data
def test_the_published_shapes_agree_with_the_executor():
    data = read_shapes(REAL / "shapes", "val")
    queries = gzip.decompress((REAL / "shapes/val.query.gz").read_bytes()).decode().splitlines()
    real = np.moveaxis(data.images.pixels.numpy(), 1, -1)
    drawn, _, known = draw_scenes(150, np.random.default_rng(0))
    colours = np.where(in_cells(real).max((-1, -2)) > 100, in_cells(real)[..., 40:60, :].mean(-2).argmax(-1), -1)
    # The shape of a published cell is that of the drawn cell most like it: so both are tested, executor and drawing.
    templates, cells = outlines(drawn), outlines(real)
    nearest = (cells @ templates.T - (templates**2).sum(1) / 2).argmax(1)
    forms = np.where(colours < 0, -1, known.reshape(-1)[nearest].reshape(colours.shape))
    right = [
        execute_query(parse_query(query), colours[n : n + 1], forms[n : n + 1])[0] == (label == {"yes": 1.0})
        for n, (query, label) in enumerate(zip(queries, data.labels, strict=True))
    ]
    assert np.mean(right) > 0.99
    splits = shapes(str(REAL), questions=424, test=64)
    assert len(splits.train) == 424 and not set(splits.train.questions) & set(splits.test.questions)
    assert 0.2 < np.mean([label == {"yes": 1.0} for label in splits.train.labels]) < 0.55
    assert majority_answers(splits.train, splits.validation).shape == (1024,)


def test_drawn_scenes_have_the_published_distribution():
    images, colours, forms = draw_scenes(200, np.random.default_rng(0))
    assert images.shape == (200, 30, 30, 3) and images.dtype == np.uint8
    assert 0.75 < (forms >= 0).mean() < 0.85 and ((colours >= 0) == (forms >= 0)).all()
    cell = images[:, :10, :10][(colours[:, 0, 0] == 0)]
    assert cell[:, 4:6, 4:6, 0].mean() > 200 > 60 > cell[:, 4:6, 4:6, 1].mean()


@needs_data
def test_sentences_of_nlvr_are_drawn_as_published():
    data = nlvr_questions(REAL / "nlvr/dev/dev.json.gz", permutations=[0])
    assert len(data) == 989 and {len(PERMUTATIONS)} == {6}
    share = np.mean([label == {"true": 1.0} for label in data.labels])
    assert max(share, 1 - share) == pytest.approx(0.553, abs=0.001)
    errors = []
    for path in sorted((REAL / "nlvr/dev/images").rglob("*.png"))[:6]:
        number, m, k = map(int, path.stem.split("-")[1:])
        place = data.ids.index(f"{number}-{m}-0")
        row = json.loads(gzip.decompress((REAL / "nlvr/dev/dev.json.gz").read_bytes()).decode().splitlines()[place])
        ours = render_boxes(row["structured_rep"], PERMUTATIONS[k]).astype(float)
        errors.append(np.abs(ours - np.asarray(Image.open(path).convert("RGB"), float)).mean())
    assert errors and max(errors) < 0.5


def test_a_folder_of_ones_own(tmp_path):
    lines = ["image,question,answer,kind"]
    for number in range(20):
        jpeg(tmp_path / f"{number}.jpg", 10 * number)
        lines += [f"{number}.jpg,is it {word},{answer},easy" for word, answer in (("big", "yes"), ("wet", "no"))]
    (tmp_path / "asked.csv").write_text("\n".join(lines) + "\n")
    splits = photo_questions(tmp_path, "asked.csv", validation=6, test=8)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(map(len, parts)) == 40 and len(splits.test) == 8
    images = [set(part.rows.flatten().tolist()) for part in parts]
    assert not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])
    for content, word in (
        ("image,question,answer\n../x.jpg,q,a\n", "leaves the folder"), ("image,question,answer\n7.png,q,a\n", "7.png"),
        ("image,answer\n1.jpg,a\n", "'question' is missing"), ("image,question,answer\n1.jpg,q,\n", "'answer'"),
        ("image,question,answer,split\n1.jpg,q,a,often\n", "often"), ("image,question,answer\n", "no questions"),
        ("image,question,answer\n1.jpg,q,a\n", "no question for"),
    ):  # fmt: skip
        (tmp_path / "wrong.csv").write_text(content)
        with pytest.raises(UserError, match=word):
            photo_questions(tmp_path, "wrong.csv")


def test_thresholds_find_the_wanted_share(tmp_path):
    chance = np.linspace(0, 1, 101)
    labels = chance > 0.3
    check = choose_thresholds(chance, labels, "q", recall=0.9, abstain=0.05)
    assert check.recall >= 0.9 and check.no_below < check.yes_from and check.precision == 1.0
    assert [check.decide(p) for p in (0.0, check.no_below, 1.0)] == ["no", "unsure", "yes"]
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1 and wilson(0, 0) == (0, 1)
    with pytest.raises(UserError, match="no labelled image"):
        choose_thresholds(chance, chance > 2, "q")
    (tmp_path / "labels.jsonl").write_text('{"image": "a", "question": "q", "label": true}\n')
    assert read_labels(tmp_path / "labels.jsonl") == {("a", "q"): True}
    (tmp_path / "labels.jsonl").write_text('{"image": "a", "question": "q", "label": "perhaps"}\n')
    with pytest.raises(UserError, match="line 1"):
        read_labels(tmp_path / "labels.jsonl")
    (tmp_path / "list.txt").write_text("is it wet\n\nis it big\n")
    assert [check.question for check in read_checklist(tmp_path / "list.txt")] == ["is it wet", "is it big"]


def test_kinds_of_easy_vqa():
    asked = ("what color is the shape?", "what is the blue shape?", "is there not a circle?", "is there a circle?")
    assert [kind_of(question) for question in asked] == ["colour", "shape", "is there not", "is there"]
