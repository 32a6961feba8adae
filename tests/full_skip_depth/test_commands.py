"""The command line on a finished run: what it writes, what it scores, what it refuses."""

import contextlib
import csv
import io
import json
import re
import shlex
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tenfold
from tenfold import load_results
from tenfold.cli import main
from tenfold.models.onnx import onnx_session
from tenfold.systems.full_skip_depth import load_encoder, read_depth, render_rooms, write_depth_png
from tenfold.systems.full_skip_depth.delivery.point_clouds import to_points
from tenfold.systems.full_skip_depth.sets.depth_files import write_pfm

SYSTEM = "full-skip-depth"
PAGE = (Path(__file__).parents[2] / "src/tenfold/systems/full_skip_depth/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run(SYSTEM)


def call(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1, err
    return err


@pytest.fixture
def model(run, tmp_path):
    """A copy of the run that may be changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.json", "model.safetensors", "config.yaml"):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


def own_pairs(folder):
    """Four rooms as a user's pairs, with sparse depth in millimetres."""
    rooms = render_rooms(4, height=40, width=56, boxes=3)
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    for n in range(4):
        Image.fromarray(rooms.images[n].permute(1, 2, 0).numpy()).save(folder / f"rgb/{n}.png")
        sparse = np.where(np.random.default_rng(n).random((40, 56)) < 0.1, rooms.depths[n].numpy(), 0)
        write_depth_png(folder / f"depth/{n}.png", sparse, 1000)
    return rooms


FAST = ["--quiet", "--arms=[]", "--optimizer.epochs=1", "--optimizer.auxiliary=[0.5]", "--model.encoder=tiny-4-6-8",
        "--model.width=16", "--data.crop=[32, 32]", "--data.degrees=2"]  # fmt: skip


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """The six commands of the page, from pairs with sparse depth to a file that ships, and what they said."""
    folder = tmp_path_factory.mktemp("six")
    rooms = own_pairs(folder / "pairs")
    photo(folder / "photos/a.png")
    Image.open(folder / "photos/a.png").save(folder / "a.png")
    (folder / "tape.csv").write_text("image,x,y,metres\na.png,30,20,3.5\n")
    (block,) = re.findall(r"doctor pairs .*?```", PAGE, re.DOTALL)
    lines = [line for line in ("tenfold full-skip-depth " + block).splitlines() if line.startswith("tenfold")]
    assert len(lines) == 6
    said = []
    with contextlib.chdir(folder):
        for line in lines:
            words = shlex.split(line, comments=True)[1:]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert main(words + (FAST if words[0] == "run" else [])) == 0, line
            said.append(out.getvalue())
    return SimpleNamespace(folder=folder, rooms=rooms, said=said)


def photo(path, height=48, width=70):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def test_the_page_says_what_was_measured(run):
    results = load_results(run / "results.json")
    assert {claim.baseline for claim in results.claims} == {"unet"} and all(c.interval for c in results.claims)
    assert {picture.id for picture in results.pictures} == {"predictions-rooms", "sources-rooms"}
    assert "abs rel" in results.summary and results.plots[0].id == "abs-rel-rooms"
    history = json.loads((run / "steps/rooms/fscn/seed0/result.json").read_text())
    errors = [row["validation/abs_rel"] for row in history["history"]]
    assert history["best_epoch"] == errors.index(min(errors)) + 1  # one epoch, by one metric, on validation frames


def test_predictions_in_every_form(run, tmp_path, capsys):
    photo(tmp_path / "frames" / "a.png")
    photo(tmp_path / "frames" / "b.png", 40, 56)
    code, out, err = call(
        capsys, "predict", run, tmp_path / "frames", "--out", tmp_path / "out", "--intrinsics", "[60]",
        "--uncertainty", "true",
    )  # fmt: skip
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["height"] for line in lines] == [48, 40] and lines[0]["depth_min"] > 0
    depth = np.load(tmp_path / "out/a.npy")
    assert depth.shape == (48, 70) and depth.dtype == np.float32
    unsure = np.load(tmp_path / "out/a-uncertainty.npy")
    assert unsure.shape == depth.shape and unsure.min() >= 0 and lines[0]["uncertainty_median"] > 0
    np.testing.assert_allclose(read_depth(tmp_path / "out/a.png", 1000), depth, atol=0.00051)
    assert Image.open(tmp_path / "out/a-colour.png").size == (70, 48)
    header, body = (tmp_path / "out/a.ply").read_bytes().split(b"end_header\n", 1)
    assert b"element vertex 3360\n" in header and len(body) == 3360 * 15
    first = np.frombuffer(body[:12], "<f4")
    np.testing.assert_allclose(first, to_points(depth, (60, 60, 34.5, 23.5))[0], rtol=1e-6)
    assert first[0] == pytest.approx(-34.5 / 60 * depth[0, 0], rel=1e-5)
    # What is loaded in Python says the same.
    served = tenfold.load(run)
    image = torch.from_numpy(np.array(Image.open(tmp_path / "frames/b.png"))).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        np.testing.assert_allclose(served(image)[0, 0].numpy(), np.load(tmp_path / "out/b.npy"), rtol=1e-5)


def test_a_video_frame_by_frame(run, tmp_path, capsys):
    av = pytest.importorskip("av")
    (tmp_path / "films").mkdir()
    with av.open(str(tmp_path / "films/clip.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(3):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 * n, np.uint8), format="rgb24")))
        film.mux(stream.encode())
    given = ["predict", run, tmp_path / "films", "--every", "2"]
    code, out, err = call(capsys, *given, "--out", tmp_path / "out")
    assert code == 0 and [json.loads(line)["frame"] for line in out.splitlines()] == [0, 2], err
    assert np.load(tmp_path / "out/clip-000002.npy").shape == (48, 64)
    whole = (tmp_path / "films/clip.mp4").read_bytes()
    for content, words in (
        (whole[:900], "damaged or no video"),
        (b"ffconcat version 1.0\nfile /etc/x\n", "not permitted"),
    ):
        (tmp_path / "films/clip.mp4").write_bytes(content)
        assert words in refused(capsys, *given)


def test_calibration_from_one_measured_distance(model, tmp_path, capsys):
    photo(tmp_path / "a.png")
    _, out, _ = call(capsys, "predict", model, tmp_path / "a.png", "--out", tmp_path / "before")
    before = np.load(tmp_path / "before/a.npy")
    around = float(np.median(before[18:23, 28:33]))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "x", "y", "metres"], ["a.png", 30, 20, 2 * around]])
    code, out, err = call(capsys, SYSTEM, "calibrate", model, "--distances", tmp_path / "d.csv", "--save", "true")
    answer = json.loads(out)
    assert code == 0 and answer["scale"] == pytest.approx(2, rel=1e-5) and answer["interval"] is None, err
    call(capsys, "predict", model, tmp_path / "a.png", "--out", tmp_path / "after")
    np.testing.assert_allclose(np.load(tmp_path / "after/a.npy"), 2 * before, rtol=1e-5)
    # A tape measures along the ray: what it says of a pixel off the axis is more than its depth.
    code, out, _ = call(capsys, SYSTEM, "calibrate", model, "--distances", tmp_path / "d.csv", "--intrinsics", "[30]")
    assert json.loads(out)["along_axis"][0] == pytest.approx(
        2 * around / np.sqrt(1 + (4.5 / 30) ** 2 + (3.5 / 30) ** 2), rel=1e-3
    )
    for rows, words in (
        ("a.png,99,1,2", "not in the 70 x 48"),
        ("a.png,1,1,-2", "above 0"),
        ("../a.png,1,1,2", "leaves"),
        ("a.png,x,1,2", "numbers"),
    ):
        (tmp_path / "d.csv").write_text(f"image,x,y,metres\n{rows}\n")
        assert words in refused(capsys, SYSTEM, "calibrate", model, "--distances", tmp_path / "d.csv")


def test_six_commands_from_pairs_to_a_file_that_ships(six):
    doctor, _, calibrated, evaluated, predicted, exported = six.said
    report = json.loads(doctor)
    assert [line for line in report["findings"] if "usual scales" not in line] == []
    assert report["depth_scale"] == 1000 and 0.05 < report["valid_share"] < 0.2
    own = six.folder / "runs/own"
    results = load_results(own / "results.json")
    assert any("2 train, 1 validation, 1 test frames" in note for note in results.notes)
    manifest = json.loads((own / "model.json").read_text())
    largest = float(six.rooms.depths[:2].max())
    assert 0.9 * largest < manifest["arguments"]["max_depth"] <= 1.05 * largest + 0.2  # of its own training frames
    scale = json.loads(calibrated)["scale"]
    assert manifest["extra"]["calibration"]["scale"] == scale
    assert [score["protocol"] for score in json.loads(evaluated)["scores"]] == ["all", "median"]
    line = json.loads(predicted)
    assert np.load(six.folder / "depth/a.npy")[20, 30] == pytest.approx(3.5, rel=0.1)  # as the tape said
    assert [Path(name).name for name in line["files"]] == ["a.png", "a.npy", "a-colour.png", "a.ply"]
    assert json.loads(exported)["largest_difference"] < 1e-4 * scale * manifest["arguments"]["max_depth"]


def test_onnx_takes_any_size_and_gives_metres(six, capsys):
    answer = json.loads(six.said[-1])
    assert len({tuple(size) for size in answer["checked_sizes"]}) == 3
    session = onnx_session(six.folder / answer["onnx"])
    image = np.random.default_rng(0).random((1, 3, 61, 83), np.float32)
    (depth,) = session.run(None, {"images": image})
    with torch.no_grad():
        expected = tenfold.load(six.folder / "runs/own")(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(depth, expected, rtol=1e-4, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["tenfold.output"].startswith("metres")
    given = six.folder / "runs/own", six.folder / answer["onnx"]
    ours, theirs = (json.loads(call(capsys, "predict", one, six.folder / "a.png")[1]) for one in given)
    assert ours["depth_median"] == pytest.approx(theirs["depth_median"], rel=2e-4)


def test_the_page_runs_as_it_stands():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks and max(len(block.strip().splitlines()) for block in blocks) <= 10
    for block in blocks:
        exec(compile(block, "page", "exec"), {})


def test_scores_of_anybodys_files(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in ("truth", "ours"):
        (tmp_path / name).mkdir()
    for n in range(2):
        truth = random.uniform(1, 9, (20, 30)).astype(np.float32)
        np.save(tmp_path / f"truth/{n}.npy", truth)
        np.save(tmp_path / f"ours/{n}.npy", truth * 1.1)
    code, out, err = call(
        capsys, SYSTEM, "score", tmp_path / "ours", tmp_path / "truth", "--protocol", "[all, median]",
        "--distances", "[0, 5, 10]", "--out", tmp_path / "rows.json",
    )  # fmt: skip
    assert code == 0, err
    assert "0.100000" in out and "all: every valid pixel, no crop" in out and "0-5 m: abs rel 0.1000" in out
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert kept[1]["metrics"]["abs_rel"] == pytest.approx(0, abs=1e-6) and len(kept[0]["rows"]) == 2
    (tmp_path / "ours/1.npy").unlink()
    assert "no prediction, the first is '1'" in refused(capsys, SYSTEM, "score", tmp_path / "ours", tmp_path / "truth")
    np.save(tmp_path / "ours/1.npy", truth[:5])
    assert "1: the prediction has 5 x 30" in refused(capsys, SYSTEM, "score", tmp_path / "ours", tmp_path / "truth")
    np.save(tmp_path / "ours/1.npy", truth)
    write_pfm(tmp_path / "ours/1.pfm", truth)
    assert "--suffix" in refused(capsys, SYSTEM, "score", tmp_path / "ours", tmp_path / "truth")
    assert call(capsys, SYSTEM, "score", tmp_path / "ours", tmp_path / "truth", "--suffix", "npy")[0] == 0
    assert "no protocol" in refused(
        capsys, SYSTEM, "score", tmp_path / "ours", tmp_path / "truth", "--protocol", "[eigen]"
    )
    code, out, _ = call(capsys, SYSTEM, "protocols")
    assert code == 0 and "kitti-garg-cropped" in out


def test_archive_for_the_server(run, tmp_path, capsys):
    for n in range(2):
        photo(tmp_path / f"image/{n:010d}.png", 352, 1216)
    code, out, err = call(capsys, SYSTEM, "kitti-zip", run, tmp_path, "--out", tmp_path / "s.zip")
    assert code == 0 and json.loads(out)["complete"] is False, err
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["0000000000.png", "0000000001.png"]
        with archive.open("0000000001.png") as file, Image.open(file) as image:
            assert image.size == (1216, 352) and image.mode.startswith("I")
    photo(tmp_path / "image/0000000001.png", 300, 1216)
    assert "not 352 x 1216" in refused(capsys, SYSTEM, "kitti-zip", run, tmp_path, "--out", tmp_path / "s.zip")


def _other_size(folder):
    np.save(folder / "depth/3.npy", np.ones((20, 28), np.float32))
    (folder / "depth/3.png").unlink()


def _no_value(folder):
    for n in range(4):
        (folder / f"depth/{n}.png").unlink()
        np.save(folder / f"depth/{n}.npy", np.full((40, 56), np.nan if n % 2 else np.inf, np.float32))


def _two_sizes(folder):
    photo(folder / "rgb/1.png", 44, 60)
    write_depth_png(folder / "depth/1.png", np.full((44, 60), 2, np.float32), 1000)


DAMAGE = {
    "2 training frames have 2 sizes": _two_sizes,
    "40 x 56 pixels and its depth map 20 x 28": _other_size,
    "valid pixel": _no_value,
    "is damaged": lambda folder: (folder / "depth/3.png").write_bytes((folder / "depth/3.png").read_bytes()[:700]),
    "1 images without depth": lambda folder: (folder / "depth/3.png").unlink(),
    "8 bits": lambda folder: Image.fromarray(np.zeros((40, 56), np.uint8)).save(folder / "depth/3.png"),
    "smaller than KITTI's crop": ["--data.border=kitti"],
    "cannot train on": ["--optimizer.batch_size=1", "--data.crop=[32, 32]"],
}
"""What is done to pairs, or which settings do not fit them, by words of the line that says so; the last frame tests."""


def test_bad_pairs_end_a_run_at_its_start(tmp_path, capsys):
    for number, (words, damage) in enumerate(DAMAGE.items()):
        folder = tmp_path / str(number)
        own_pairs(folder)
        more = damage if isinstance(damage, list) else []
        if not more:
            damage(folder)
        given = ["--data.name=pairs", f"--data.root={folder}", "--quiet", *more]
        scale = [] if words == "valid pixel" else ["--data.depth_scale=1000"]
        assert words in refused(capsys, "run", SYSTEM, "--out", tmp_path / "bad", *given, *scale)
        assert not (tmp_path / "bad").exists()


def test_sources_are_printed(six, capsys):
    code, out, err = call(capsys, SYSTEM, "sources", six.folder / "runs/own")
    assert code == 0 and "E1" in out, err


def test_scans_become_depth_maps(tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    # The LiDAR's x points forward, y left, z up, and it stands 1 m behind the camera.
    np.array([[6.0, 0, 0, 9], [9, -2, 0, 9], [-5, 0, 0, 9]], "<f4").tofile(tmp_path / "scans/a.bin")
    np.save(tmp_path / "scans/b.npy", np.array([[4.0, 0, 0]]))
    (tmp_path / "pose.txt").write_text("0 -1 0 0\n0 0 -1 0\n1 0 0 -1\n")
    given = [SYSTEM, "project", tmp_path / "scans", "--intrinsics", "[20]", "--size", "[9, 21]",
             "--out", tmp_path / "depth", "--extrinsics", tmp_path / "pose.txt"]  # fmt: skip
    code, out, err = call(capsys, *given)
    assert code == 0 and json.loads(out)["depth_maps"] == 2, err
    depth = read_depth(tmp_path / "depth/a.png", 256)
    assert depth[4, 10] == 5 and depth[4, 15] == 8 and (depth > 0).sum() == 2
    for text, words in (("0 -1 0 0 0 0 -1 0 1 0 0", "12 or 16"), ("2 0 0 0 0 1 0 0 0 0 1 0", "no rotation"),
                        ("1 0 0 0 0 1 0 0 0 0 1 -99", "no point falls")):  # fmt: skip
        (tmp_path / "pose.txt").write_text(text)
        assert words in refused(capsys, *given)
    (tmp_path / "scans/a.bin").write_bytes(b"12345")
    assert "no rows" in refused(capsys, *given)


def test_a_manifest_asks_for_nothing_but_a_network(model, capsys):
    manifest = json.loads((model / "model.json").read_text())
    for name, value in (
        ("encoder", "timm/hf-hub:stranger/net"),
        ("encoder", "elsewhere/x"),
        ("pretrained", True),
        ("checkpoint_path", "x.pth"),
        ("width", "wide"),
    ):
        changed = {**manifest, "arguments": {**manifest["arguments"], name: value}}
        (model / "model.json").write_text(json.dumps(changed))
        refused(capsys, SYSTEM, "sources", model)


def test_encoders_of_official_checkpoints(tmp_path, capsys):
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    torch.manual_seed(0)
    source = torchvision.models.resnet18(weights=None).eval()
    bts = {f"module.encoder.base_model.{name}": value for name, value in source.state_dict().items()}
    torch.save({"model": bts | {"module.decoder.x": torch.zeros(1)}, "global_step": 5}, tmp_path / "bts.pth")
    arguments = ["--format", "bts", "--encoder", "timm/resnet18", "--width", "16", "--out", tmp_path / "model"]
    code, out, err = call(capsys, "import", SYSTEM, tmp_path / "bts.pth", *arguments)
    assert code == 0 and json.loads(out)["unused_tensors"] == 2, err  # the classifier's
    network = tenfold.load(tmp_path / "model").network
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = source.maxpool(source.relu(source.bn1(source.conv1(images))))
        for layer in (source.layer1, source.layer2, source.layer3, source.layer4):
            x = layer(x)
        torch.testing.assert_close(network.encoder(images)[-1], x)
    from tenfold.errors import UserError

    for path, words in (("bts.pth", "no encoder of adabins"), ("none.pth", "none.pth")):
        with pytest.raises(UserError, match=words):
            load_encoder(network.encoder, tmp_path / path, "adabins")


def test_a_depth_model_of_transformers_in_the_same_scorer(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=42, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type="metric", max_depth=10,
    )  # fmt: skip
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / "dav2")
    own_pairs(tmp_path / "own")
    code, out, err = call(
        capsys, SYSTEM, "evaluate-transformers", tmp_path / "dav2", "--data", "pairs", "--root", tmp_path / "own",
        "--depth_scale", "1000", "--max_depth", "10",
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    assert answer["gives"] == "metres" and 0 < answer["scores"][0]["metrics"]["abs_rel"] < 5
    assert "config.json" in refused(capsys, SYSTEM, "evaluate-transformers", tmp_path)
