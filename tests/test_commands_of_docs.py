"""Every command of the README, the guide and the rooms' pages, on a stranger's things; only training is left out.

A command ends with exit code 0, or comes to where training begins, or asks for a file of somebody else that the tests
cannot have; then its line names that file. Data with a broken photo are named with the option that leaves it out, and
with that option the command goes on.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from own_data import graph_with_texts, pairs_with_depth, questions_about_photos, topics, voc_boxes
from PIL import Image

from tenfold.catalog import SYSTEMS, find_system
from tenfold.cli import main
from tenfold.cli.arguments import parse_run
from tenfold.errors import UserError
from tenfold.run import Run
from tenfold.settings import check_settings

ROOT = Path(__file__).parents[1]
PAGES = {
    ROOT / "README.md": "boosted-exits",
    ROOT / "docs/runs.md": "boosted-exits",
    ROOT / "docs/condensed-sets.md": "condensation-audit",
    ROOT / "docs/summarize-my-folder.md": "query-summarizer",
    ROOT / "docs/train-on-my-queries.md": "query-summarizer",
    **{ROOT / f"src/{system.package.replace('.', '/')}/README.md": system.id for system in SYSTEMS},
}
RUN_WITH_ITS_OWN_TESTS = {
    "dual-encoder": ("search", "ask", "checklist", "serve", "bench", "predict"),
    "activation-uncertainty": ("predict", "export", "label", "fit", "score"),
    "full-skip-depth": ("doctor", "calibrate", "predict", "export", "evaluate"),
    "graph-fusion": ("explain", "complete", "describe", "predict", "evaluate", "export"),
}
"""Verbs that a room's own test of its page calls, on things that one command makes for the next."""
RUNS = ("runs/mine", "runs/own", "runs/boosted-exits/small", "RUN", "chain/3-tiny", "tiny")
"""What the pages call a finished run."""
OF_OTHERS = re.compile(
    r"\.pth|\.pt\b|\.tar\b|model --format|DUMP|enwiki|KITTI|FOLDER --(data|to)|ADEChallenge|imagenet-c|"
    r"import graph-fusion|finetune|sparse-diff|--data fashion-mnist|theirs|backbone-search worker|"
    r"vqa-v2|RIG|NUSCENES|results_nusc|\.ckpt|dual-encoder FOLDER|PEERS|PREDICTIONS|SCANS|FILM|RIG|NUSCENES"
)
"""What the tests do not have: official checkpoints, dumps and data sets."""
MISSING = re.compile(
    "no such|not found|there is no|cannot read|holds no|is missing|does not exist|is no|is not a|name the|give|"
    "not there|needs|lacks|takes images",
    re.IGNORECASE,
)
SHORTER = {
    "condense": ["--settings", "{iterations: 2, real_batch: 8}", "--networks", "0", "--recipe", "{epochs: 2}"],
    "redteam": ["--settings", "{iterations: 2, real_batch: 8}", "--networks", "0", "--images_per_class", "1"],
    "quality": ["--seeds", "1"],
    "bench": ["--heads", "2"],
}


LONG = {"calibrate": "tenfold.systems.condensation_audit.cli.auditing._calibrated"}
"""Functions of verbs that train without a run of their own."""


class Reached(UserError):
    """Training would begin now."""


def commands():
    """Each line of the shell blocks that calls tenfold: its page's system, and its words."""
    for page, system in PAGES.items():
        if not page.exists():  # that a room has its page is for other tests
            continue
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for number, line in enumerate(block.splitlines()):
                words = shlex.split(line, comments=True)
                if "uv" in words or "tenfold" not in words or "SYSTEM" in words:
                    continue
                words = words[words.index("tenfold") + 1 :]
                place = page.stem if page.parent in (ROOT, ROOT / "docs") else page.parent.name
                name = "-".join([place.lower(), *words[:2], str(number)])
                yield pytest.param(system, words, id=f"{system}-{re.sub('[^a-z0-9-]+', '_', name)}")


@pytest.fixture
def things(photos, tmp_path, monkeypatch):
    """What the pages' commands name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "PHOTOS", "LABELLED"):
        (tmp_path / name).symlink_to(photos)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    for name in ("cat.jpg", "photo.jpg", "PHOTO.jpg", "image.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage/nets.py").write_text(
        "from torchvision.models import resnet18\n\n\ndef make(num_classes):\n"
        "    return resnet18(num_classes=num_classes)\n"
    )
    voc_boxes(tmp_path / "my-boxes")
    pairs_with_depth(tmp_path / "pairs")
    (tmp_path / "tape.csv").write_text("image,x,y,metres\nphoto.jpg,20,20,2.5\n")
    graph_with_texts(tmp_path / "graph")
    topics(tmp_path / "topics")
    for path in [*(tmp_path / "graph").iterdir(), *(tmp_path / "topics").iterdir()]:
        path.rename(tmp_path / path.name)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    for name in ("topics.jsonl", "other.jsonl"):
        shutil.copy(tmp_path / "test.jsonl", tmp_path / name)
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({k: row[k] for k in ("query", "document")}) + "\n" for row in rows)
    )
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER/report.txt").write_text(
        "Rain fell all day. The old bridge was paid for by the town. It is green."
    )
    return tmp_path


def ended(capsys, arguments):
    """Exit code, and what was said last."""
    capsys.readouterr()
    code = main(arguments)
    return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("tenfold: ")]


@pytest.mark.parametrize(("system", "words"), commands())
def test_a_command_of_the_docs_works(system, words, things, finished_run, monkeypatch, capsys):
    if system in RUN_WITH_ITS_OWN_TESTS and {*words[:2]} & {*RUN_WITH_ITS_OWN_TESTS[system]}:
        return
    presets = [name for name in find_system(system).settings.PRESETS if name != "tiny"]
    if words[0] == "run" and {*words} & {*presets}:  # of data that are not here, or a training of hours
        with monkeypatch.context() as somewhere:
            somewhere.setenv("TENFOLD_DATA", str(things))
            _, config = parse_run(find_system(system), words[2:])
            if config.data.root is None:
                check_settings(config)
                return

    if system == "dual-encoder":  # whose photos come with a table of questions
        (things / "PHOTOS").unlink()
        questions_about_photos(things / "PHOTOS")
        (things / "PHOTOS/questions.csv").rename(things / "PHOTOS/asked.csv")
    for name in RUNS:
        if any(word == name or word.startswith(f"{name}/") for word in words) and words[0] != "run":
            shutil.copytree(finished_run(system), name)
            if name == "chain/3-tiny":  # which is not fine-tuned yet
                shutil.copytree(finished_run(system) / "pretrained", name, dirs_exist_ok=True)
    if "mine.cset" in words and "import-set" not in words and "condense" not in words:
        made = ["--data", "folder", "--root", "photos", "--resize", "32", "--unreadable", "leave-out"]
        assert main([system, "condense", "--out", "mine.cset", *made, *SHORTER["condense"]]) == 0

    def reached(*arguments, **named):
        raise Reached(Reached.__name__)

    for name in ("expect", "step"):
        monkeypatch.setattr(Run, name, reached)
    for name in {*LONG} & {*words}:
        monkeypatch.setattr(LONG[name], reached)
    words = words + SHORTER.get(words[1] if len(words) > 1 else "", [])
    code, said = ended(capsys, words)
    if code == 2 and "leave-out" in said[-1]:  # the broken photo is named, and the way on
        assert "photo197.jpg" in said[-1]
        option = re.search(r"(--(?:data\.)?unreadable) leave-out", said[-1])[1]
        code, said = ended(capsys, [*words, option, "leave-out"])
    if code == 2 and Reached.__name__ in said[-1]:
        return
    if code == 2 and OF_OTHERS.search(shlex.join(words)):
        assert MISSING.search(said[-1]), said
        assert not re.search(r"unrecognized|no verb|must be|not a valid", said[-1]), said
        return
    assert code == 0, said
