"""Cached images: the same answers as the model, on disk, whatever happens to the disk."""

import json

import pytest
import torch
from dual_for_tests import ANSWERS, answerer, batch, tokenizer
from filelock import FileLock
from PIL import Image

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.index.encode_files import index_files
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex

QUESTION = "is there a red circle"


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures of several sizes, the fourth of them cut short."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    files = []
    for number in range(10):
        size = (12 + 4 * (number % 2), 12)
        pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
        files.append(folder / f"{number}.png")
        Image.fromarray(pixels.numpy()).save(files[-1])
    files[3].write_bytes(files[3].read_bytes()[:60])
    return files


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("task", ["multilabel", "classes"])
def test_the_split_and_merged_head_gives_the_models_scores(images, task):
    model = answerer(task=task, images=images)
    given = batch(images=images)
    direct = model.model(**given)
    questions = [QUESTION, "what color"]
    vectors = model.model.encode_images(given["pixels"])
    torch.testing.assert_close(model.head(model.encode_questions(questions), vectors), direct, atol=1e-5, rtol=1e-5)
    every = model.head.every_pair(model.encode_questions(questions), vectors)
    torch.testing.assert_close(every.diagonal(dim1=0, dim2=1).T, direct, atol=1e-5, rtol=1e-5)
    few = model.head.every_pair(model.encode_questions(questions), model.head.image(vectors), [2], projected=True)
    torch.testing.assert_close(few[..., 0], every[..., 2])


def test_answers_through_an_index_are_the_models_and_stay_when_it_changes(tmp_path, pictures):
    model = answerer()
    index = index_files(model, tmp_path / "index", pictures[:6], kind="float32", segment=4, batch_size=2)
    assert len(index) == 5 and list(index.manifest.skipped) == [str(pictures[3])]
    names = list(index.ids())
    direct = model(QUESTION, names)
    cached = [few[0] for few in model.answer(QUESTION, index)]
    assert [one.answer for one in cached] == [one.answer for one in direct]
    assert [one.probability for one in cached] == pytest.approx([one.probability for one in direct], abs=1e-5)
    scores = model.scores([QUESTION], index, names)
    index_files(model, tmp_path / "index", pictures, kind="float32", segment=4, batch_size=2)
    index = VisualIndex.open(tmp_path / "index", model.fingerprint)
    index.delete([names[1]])
    assert len(index) == 8 and names[1] not in index
    kept = [name for name in names if name != names[1]]
    assert torch.equal(model.scores([QUESTION], index, kept), scores[:, [0, 2, 3, 4]])
    ranked = model.search(QUESTION, index, "yes", top_k=20)[0]
    by_hand = {str(few[0].image): few for few in model.answer(QUESTION, index, top_k=len(ANSWERS))}
    assert [one.probability for one in ranked] == sorted((one.probability for one in ranked), reverse=True)
    for one in ranked:
        assert one.probability == pytest.approx(
            next(a.probability for a in by_hand[one.image] if a.answer == "yes"), abs=1e-5
        )
    index.verify()
    with pytest.raises(UserError, match="in the index already"):
        index.add([names[0]], torch.zeros(1, 1, 8))
    with pytest.raises(UserError, match="no image"):
        model.scores([QUESTION], index, [names[1]])


def test_a_pair_is_asked_through_an_index(tmp_path, pictures):
    model = answerer(images=2)
    index = index_files(model, tmp_path / "index", pictures[:3], kind="float32")
    names = list(index.ids())
    asked = [(names[0], names[1]), (names[1], names[0])]
    direct, cached = model(QUESTION, asked), model.answer(QUESTION, index, asked)
    assert [few[0].answer for few in cached] == [one.answer for one in direct]
    assert [few[0].probability for few in cached] == pytest.approx([one.probability for one in direct], abs=1e-5)
    assert cached[0][0].image == asked[0]
    with pytest.raises(UserError, match="pairs"):
        model.search(QUESTION, index)


@pytest.mark.parametrize(("kind", "least"), [("float16", 1e-3), ("int8", 0.02)])
def test_smaller_numbers_cost_little(tmp_path, kind, least):
    vectors = torch.randn(50, 1, 8, generator=torch.Generator().manual_seed(0))
    index = VisualIndex.create(tmp_path / kind, "model", (1, 8), kind)
    index.add([str(n) for n in range(50)], vectors)
    found = VisualIndex.open(tmp_path / kind).vectors([str(n) for n in range(50)])
    assert (found - vectors).abs().max() < least
    assert index.nbytes == 50 * {"float16": 16, "int8": 12}[kind]


def test_a_build_that_was_killed_leaves_the_same_files(tmp_path, pictures):
    model = answerer()
    index_files(model, tmp_path / "whole", pictures, segment=3, batch_size=2)

    class Killed(Exception):
        pass

    def stop(done, total):
        raise Killed

    with pytest.raises(Killed):
        index_files(model, tmp_path / "killed", pictures, segment=3, batch_size=2, progress=stop)
    assert len(VisualIndex.open(tmp_path / "killed")) == 3
    # As a kill between a segment's files and the manifest leaves it.
    (tmp_path / "killed/000001.vectors").write_bytes(b"half")
    index_files(model, tmp_path / "killed", pictures, segment=3, batch_size=2)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    pictures[3].write_bytes(pictures[4].read_bytes())  # mended meanwhile
    mended = index_files(model, tmp_path / "killed", pictures, segment=3)
    assert len(mended) == 10 and not mended.manifest.skipped


def test_two_writers_do_not_spoil_an_index(tmp_path):
    index = VisualIndex.create(tmp_path / "index", "model", (1, 4))
    other = VisualIndex.open(tmp_path / "index")
    index.add(["a"], torch.ones(1, 1, 4))
    other.add(["b"], torch.zeros(1, 1, 4))  # it reads what the first one wrote
    with FileLock(tmp_path / "index/.lock"), pytest.raises(UserError, match="another process writes"):
        index.add(["c"], torch.zeros(1, 1, 4))
    assert list(VisualIndex.open(tmp_path / "index").ids()) == ["a", "b"]


def test_damage_and_other_models_are_named(tmp_path):
    folder = tmp_path / "index"
    index = VisualIndex.create(folder, "model", (1, 4))
    index.add(["a", "b"], torch.ones(2, 1, 4))
    with pytest.raises(UserError, match="another model"):
        VisualIndex.open(folder, "other")
    with pytest.raises(UserError, match="NaN"):
        index.add(["c"], torch.full((1, 1, 4), float("nan")))
    with pytest.raises(UserError, match="not empty"):
        VisualIndex.create(folder, "model", (1, 4))
    good = content(folder)
    for name, damaged, word in (
        ("000000.vectors", good["000000.vectors"][:-1], "000000.vectors has 15 bytes"),
        ("000000.ids", b"[]", "000000.ids"),
        ("index.json", b"{}", "index.json is damaged"),
        ("index.json", good["index.json"].replace(b'"000000"', b'"../../x"'), "index.json is damaged"),
        ("index.json", good["index.json"].replace(b'"deleted": []', b'"deleted": [9]'), "has not"),
    ):
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=word):
            list(VisualIndex.open(folder).ids())
        (folder / name).write_bytes(good[name])
    flipped = bytearray(good["000000.vectors"])
    flipped[0] ^= 1
    (folder / "000000.vectors").write_bytes(bytes(flipped))
    with pytest.raises(UserError, match="was changed"):
        VisualIndex.open(folder).verify()
    with pytest.raises(UserError, match="holds no index"):
        VisualIndex.open(tmp_path)


def test_a_question_that_cannot_be_asked_is_one_line(tmp_path, pictures):
    model = answerer()
    index = index_files(model, tmp_path / "index", pictures[:2])
    for wrong, word in ((("red " * 9, "yes"), "limit of 10"), (("", "yes"), "empty"), ((QUESTION, "maybe"), "maybe")):
        with pytest.raises(UserError, match=word):
            model.search(wrong[0], index, wrong[1])
    with pytest.raises(UserError, match="another model"):
        answerer(seed=5).search(QUESTION, index)
    with pytest.raises(UserError, match="no images"):
        index_files(model, tmp_path / "none", [])


def test_a_tokenizer_splits_words_and_says_what_it_does_not_know():
    split = tokenizer()
    assert split.encode("Is there a RED circle?")[1:4] == split.encode("is there a")[1:4]
    assert split.unknown_words("is there a zebra") == ["zebra"]
    assert json.loads(json.dumps(split.to_dict())) == split.to_dict()
    assert type(split).from_dict(split.to_dict()).encode("red") == split.encode("red")
    with pytest.raises(UserError, match="lacks"):
        type(split)(["a"])
