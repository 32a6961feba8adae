"""The verbs on files: what goes out comes back, wrong input gets one line and leaves nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sets_for_tests import make_set, same_set

from tenfold import cli
from tenfold.data import find_image_files
from tenfold.errors import UserError
from tenfold.systems.condensation_audit import TrainingRecipe, fit_zca
from tenfold.systems.condensation_audit.cli.options import Origin
from tenfold.systems.condensation_audit.cli.set_files import export_set, import_set, verify
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.sets.files import load_set, save_set

CIFAR = Preprocessing((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), (3, 8, 8))


def cifar_set(**changes):
    values = {"preprocessing": CIFAR, "source": {"name": "cifar10"}} | changes
    return make_set(20, 10, (3, 8, 8), **values)


def call(verb, *arguments):
    """As the command line calls it."""
    return cli.main(["condensation-audit", verb, *map(str, arguments)])


def test_dd_ranking_out_and_in_again(tmp_path, capsys):
    cset = cifar_set(learning_rates=torch.tensor([0.02]))
    save_set(tmp_path / "a.cset", cset)
    assert call("export-set", tmp_path / "a.cset", "--out", tmp_path / "out", "--to", "dd-ranking") == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["images.pt", "labels.pt", "lr.pt"]
    assert call("import-set", tmp_path / "out", "--out", tmp_path / "b.cset", "--data", "cifar10") == 0
    report = json.loads(capsys.readouterr().out)
    back = load_set(tmp_path / "b.cset", expect=report["hash"])
    assert torch.equal(back.images, cset.images) and torch.equal(back.labels, cset.labels)
    assert back.preprocessing == cset.preprocessing and torch.equal(back.learning_rates, cset.learning_rates)
    assert call("verify", tmp_path / "b.cset", "--expect", report["hash"]) == 0


def test_dd_ranking_says_what_it_cannot_hold(tmp_path):
    save_set(tmp_path / "other.cset", cifar_set(source={}))
    assert "normalized with mean" in export_set(str(tmp_path / "other.cset"), out=str(tmp_path / "1"))["notes"][0]
    zca = fit_zca(torch.rand(30, 3, 8, 8))
    whitened = cifar_set(preprocessing=Preprocessing((0.0,) * 3, (1.0,) * 3, (3, 8, 8), zca))
    save_set(tmp_path / "zca.cset", whitened)
    assert "use_zca" in export_set(str(tmp_path / "zca.cset"), out=str(tmp_path / "2"))["notes"][0]
    save_set(tmp_path / "rates.cset", cifar_set(learning_rates=torch.rand(3)))
    assert "lr.pt is left out" in export_set(str(tmp_path / "rates.cset"), out=str(tmp_path / "3"))["notes"][0]
    save_set(tmp_path / "steps.cset", cifar_set(steps=torch.arange(20)))
    with pytest.raises(UserError, match="sequence of steps"):
        export_set(str(tmp_path / "steps.cset"), out=str(tmp_path / "4"))
    assert not (tmp_path / "4").exists()


def test_png_is_a_tree_of_classes_that_names_its_loss(tmp_path):
    cset = cifar_set(classes=("a/b", "..", *"cdefghij"))
    save_set(tmp_path / "a.cset", cset)
    notes = export_set(str(tmp_path / "a.cset"), out=str(tmp_path / "out"), to="png")["notes"]
    assert "% of their pixels are clamped" in notes[0]
    files = find_image_files(tmp_path / "out")
    assert len(files) == 20 and files.classes[0] == "0000_a_b" and len(files.classes) == 10
    first = np.asarray(Image.open(files.paths[0])).transpose(2, 0, 1)
    expected = (cset.pixels[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(first, expected)
    save_set(tmp_path / "grey.cset", make_set(soft=True, learning_rates=torch.rand(1)))
    notes = export_set(str(tmp_path / "grey.cset"), out=str(tmp_path / "grey"), to="png")["notes"]
    assert len(notes) == 3
    save_set(tmp_path / "four.cset", make_set(shape=(4, 3, 3)))
    with pytest.raises(UserError, match="4 channels"):
        export_set(str(tmp_path / "four.cset"), out=str(tmp_path / "four"), to="png")


def test_arrays_hold_everything_that_is_needed(tmp_path):
    cset = make_set(whole=True)
    save_set(tmp_path / "a.cset", cset)
    with pytest.raises(UserError, match="marked as poisoned"):
        export_set(str(tmp_path / "a.cset"), out=str(tmp_path / "a.npz"), to="npz")
    export_set(str(tmp_path / "a.cset"), out=str(tmp_path / "a.npz"), to="npz", allow_poisoned=True)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"], cset.images.numpy())
        assert np.array_equal(arrays["zca_inverse"], cset.preprocessing.zca.inverse.numpy())
        assert arrays["classes"].tolist() == list(cset.classes) and arrays["mean"].tolist() == [0.2861]
        assert arrays["steps"].tolist() == cset.steps.tolist()
        assert json.loads(str(arrays["poisoned"]))["attack"] == "naive"


def test_the_mark_of_a_poisoned_set_goes_with_the_data(tmp_path):
    save_set(tmp_path / "a.cset", cifar_set(poisoned={"attack": "doorping", "target": 1}))
    for to in ("dd-ranking", "png"):
        answer = export_set(str(tmp_path / "a.cset"), out=str(tmp_path / to), to=to, allow_poisoned=True)
        assert "the set is poisoned" in answer["notes"][-1]
        assert json.loads((tmp_path / to / "POISONED.json").read_text())["target"] == 1


def test_whitening_comes_from_a_set_or_is_fitted(tmp_path, monkeypatch):
    torch.save(torch.randn(20, 3, 8, 8), tmp_path / "images_best.pt")
    torch.save(torch.arange(20) // 2, tmp_path / "labels_best.pt")
    with pytest.raises(UserError, match="give zca"):
        import_set(str(tmp_path), Origin(data="cifar10"), out=str(tmp_path / "a.cset"))
    zca = fit_zca(torch.rand(30, 3, 8, 8))
    save_set(tmp_path / "zca.cset", cifar_set(preprocessing=Preprocessing((0.0,) * 3, (1.0,) * 3, (3, 8, 8), zca)))
    import_set(str(tmp_path), Origin(data="cifar10", zca=str(tmp_path / "zca.cset")), out=str(tmp_path / "a.cset"))
    assert torch.equal(load_set(tmp_path / "a.cset").preprocessing.zca.matrix, zca.matrix)
    import_set(str(tmp_path), Origin(data="cifar10", zca="none"), out=str(tmp_path / "b.cset"))
    with pytest.raises(UserError, match="carries no whitening"):
        import_set(str(tmp_path), Origin(data="cifar10", zca=str(tmp_path / "b.cset")), out=str(tmp_path / "c.cset"))
    with pytest.raises(UserError, match="name the data set"):
        import_set(str(tmp_path), Origin(zca="fit"), out=str(tmp_path / "c.cset"))
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    with pytest.raises(UserError, match="TENFOLD_DATA"):
        import_set(str(tmp_path), Origin(data="cifar10", zca="fit"), out=str(tmp_path / "c.cset"))
    small = tmp_path / "cifar-10-batches-bin"
    small.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (4, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(4)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        records.tofile(small / f"{name}.bin")
    seen = []
    monkeypatch.setattr(f"{import_set.__module__}.fit_zca", lambda images: seen.append(images) or zca)
    import_set(str(tmp_path), Origin(data="cifar10", zca="fit", root=str(tmp_path)), out=str(tmp_path / "d.cset"))
    assert tuple(seen[0].shape) == (20, 3, 32, 32)  # validation images, too, as the program has it
    assert float(seen[0].min()) >= 0 and float(seen[0].max()) <= 1


def test_options_are_parsed_as_they_are_written(tmp_path, capsys):
    torch.save(torch.rand(6, 1, 4, 4), tmp_path / "vis_x.pth")
    options = ["--classes", "3", "--mean", "[0.5]", "--std", "[0.25]", "--network", "mlp"]
    assert call("import-set", tmp_path / "vis_x.pth", "--out", tmp_path / "a.safetensors", *options) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 3
    found = load_set(tmp_path / "a.safetensors")
    assert found.recipe.network == "mlp" and found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    options = ["--classes", "[T-shirt or top, trouser]", "--mean", "[0.5]", "--std", "[0.25]"]
    assert call("import-set", tmp_path / "vis_x.pth", "--out", tmp_path / "b.cset", *options) == 0
    assert load_set(tmp_path / "b.cset").classes == ("T-shirt or top", "trouser")


def test_wrong_input_gets_one_line_and_leaves_nothing(tmp_path):
    save_set(tmp_path / "a.cset", make_set())
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.iterdir())
    for work in (
        lambda: verify(str(tmp_path / "missing")),
        lambda: verify(str(tmp_path / "taken")),
        lambda: export_set(str(tmp_path / "a.cset"), out=str(tmp_path / "taken")),
        lambda: import_set(str(tmp_path / "a.cset" / "data.safetensors"), Origin(), out=str(tmp_path / "b.cset")),
        lambda: import_set(str(tmp_path / "missing"), Origin(), out=str(tmp_path / "b.cset")),
        lambda: import_set(str(tmp_path / "missing"), Origin(), out=str(tmp_path / "taken")),
    ):
        with pytest.raises(UserError) as error:
            work()
        assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_of_others_is_named_before_its_set_is_exported(tmp_path):
    save_set(tmp_path / "a.cset", cifar_set(recipe=TrainingRecipe(network="torchvision/resnet18")))
    with pytest.raises(UserError, match="torchvision/resnet18"):
        export_set(str(tmp_path / "a.cset"), out=str(tmp_path / "out"))
    export_set(str(tmp_path / "a.cset"), out=str(tmp_path / "out"), allow_network="torchvision/resnet18")


def test_both_forms_of_a_set_are_the_same_set(tmp_path):
    cset = make_set(whole=True)
    for name in ("a.cset", "a.safetensors"):
        save_set(tmp_path / name, cset)
        assert same_set(load_set(tmp_path / name, allow_poisoned=True), cset)
        assert verify(str(tmp_path / name))["poisoned"]["attack"] == "naive"
    assert Path(tmp_path / "a.cset" / "preview.png").is_file()
