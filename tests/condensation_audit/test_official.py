"""Files as the published programs write them: read whole, with their preprocessing, and never executed."""

import os
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.errors import UserError
from tenfold.systems.condensation_audit import fit_zca, make_network
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.official.read import read_official
from tenfold.systems.condensation_audit.official.weights import read_network, read_replay_buffer, read_trigger

FASHION = Preprocessing((0.2861,), (0.3530,), (1, 32, 32))


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def refused(message, path, **options):
    with pytest.raises(UserError, match=message) as error:
        read_official(path, **options)
    assert "\n" not in str(error.value)


def images(n=10, channels=3, side=32, seed=0):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def write_res(folder, name="res_DM_CIFAR10_ConvNet_1ipc.pt", experiments=2, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    channels = 1 if "MNIST" in name else 3
    data = [[images(channels=channels, seed=seed), torch.arange(10)] for seed in range(experiments)]
    accuracies = {"ConvNet": [np.float64(0.2 + 0.1 * n) for n in range(2 * experiments)]}
    accuracies["VGG11"] = [np.float64(0.1)] * 4
    torch.save({"data": data, "accs_all_exps": accuracies} | changes, folder / name)
    return folder / name


# --- DC, DSA, DM, baadd -----------------------------------------------------------------------------------------


def test_the_last_experiment_or_the_one_asked_for_is_read_with_its_accuracies(tmp_path):
    path = write_res(tmp_path)
    last, first = read_official(path), read_official(path, experiment=0)
    assert torch.equal(last.images, images(seed=1)) and torch.equal(first.images, images(seed=0))
    assert last.results == pytest.approx({"accuracy": 0.45, "accuracy_VGG11": 0.1})
    assert first.results["accuracy"] == pytest.approx(0.25)
    assert last.labels.tolist() == list(range(10)) and last.classes[0] == "airplane"
    assert last.preprocessing.std == (0.2023, 0.1994, 0.2010)
    assert last.method == "imported" and last.settings["published_method"] == "DM" and last.poisoned is None
    assert (last.recipe.network, last.recipe.epochs) == ("convnet", 1000) and "flip" in last.recipe.augmentation
    refused(r"experiments 0\.\.1; there is no 2", path, experiment=2)
    assert torch.equal(read_official(path, experiment=-2).images, first.images)
    refused("there is no -3", path, experiment=-3)


def test_the_programs_networks_differ_though_their_names_do_not(tmp_path):
    path = write_res(tmp_path, "res_DC_FashionMNIST_AlexNet_1ipc.pt")
    assert read_official(path).recipe.network == "alexnet"
    found = read_official(path, program="baadd")
    assert found.recipe.network == "alexnet_baadd" and found.recipe.augmentation == "" and found.recipe.epochs == 300
    assert read_official(path, network="lenet").recipe.network == "lenet"
    digits = read_official(write_res(tmp_path, "res_DSA_SVHN_ConvNet_1ipc.pt"))
    assert digits.recipe.augmentation == "color_crop_cutout_scale_rotate"


def test_a_file_without_a_telling_name_says_what_to_pass(tmp_path):
    path = write_res(tmp_path, "mine.pt")
    refused("does not name its classes: give data", path)
    refused("not say how its images were normalized: give data .* or mean and std", path, classes=10)
    refused("mean and std together", path, classes=10, mean=[0.5] * 3)
    refused("3 channels; mean and std has 1", path, classes=10, mean=[0.5], std=[0.5])
    given = read_official(path, classes=["c"] * 10, mean=[0.5] * 3, std=[0.25] * 3)
    assert given.preprocessing.mean == (0.5, 0.5, 0.5) and given.source == {}
    assert read_official(path, data="stl-10").preprocessing.mean == (0.4914, 0.4822, 0.4465)
    refused(r"labels must lie in 0\.\.4; found 0\.\.9", path, data="cifar10", classes=5)


def trigger_tensor(size=2, value=7.0):
    pattern = torch.zeros(1, 1, 32, 32)
    pattern[..., 31 - size : 31, 31 - size : 31] = value
    return FASHION.normalize(pattern).requires_grad_()


def test_a_set_of_the_attack_comes_with_its_mark_and_its_trigger(tmp_path):
    folder = tmp_path / "DC" / "ConvNet_FashionMNIST_1ipc_doorping_portion_0.01_size_2_ori_1.0"
    path = write_res(folder, "res_DC_FashionMNIST_ConvNet_1ipc.pt", 1)
    assert read_official(path).poisoned == {"attack": "doorping", "portion": 0.01, "size": 2, "ori": 1.0}
    (folder / "exp0").mkdir()
    for iteration, value in ((50, 1.0), (1000, 31.0)):
        stem = folder / "exp0" / f"vis_DC_FashionMNIST_ConvNet_1ipc_exp0_iter{iteration}"
        torch.save(images(channels=1), stem.with_name(f"{stem.name}.pth"))
        torch.save(trigger_tensor(value=value), stem.with_name(f"{stem.name}_trigger.pth"))
    mark = read_official(path, program="baadd").poisoned
    assert mark["trigger"]["rows"] == [29, 30] and mark["trigger"]["excess"] == pytest.approx(31.0, rel=1e-4)
    snapshot = read_official(folder / "exp0" / "vis_DC_FashionMNIST_ConvNet_1ipc_exp0_iter50.pth")
    assert snapshot.labels.tolist() == list(range(10)) and snapshot.recipe.network == "convnet_baadd"
    assert snapshot.poisoned["attack"] == "doorping"
    assert snapshot.poisoned["trigger"]["excess"] == pytest.approx(1.0, rel=1e-4)
    refused("is a trigger, not a set", folder / "exp0" / "vis_DC_FashionMNIST_ConvNet_1ipc_exp0_iter50_trigger.pth")
    naive = tmp_path / "ConvNet_FashionMNIST_1ipc_poisoned_portion_0.05_size_4_ori_0.5"
    assert read_official(write_res(naive, "res_DC_FashionMNIST_ConvNet_1ipc.pt")).poisoned["attack"] == "naive"


def test_triggers_are_read_with_their_mask_and_back_in_pixel_units(tmp_path):
    torch.save(trigger_tensor(3, 2.5), tmp_path / "trigger.pth")
    trigger = read_trigger(tmp_path / "trigger.pth", FASHION)
    assert trigger.mode == "patch" and trigger.mask.sum() == 9 and trigger.mask[28:31, 28:31].all()
    torch.testing.assert_close(trigger.pattern[0, 28:31, 28:31], torch.full((3, 3), 2.5))
    torch.save(torch.randn(1, 32, 32), tmp_path / "invisible.pth")
    assert read_trigger(tmp_path / "invisible.pth", FASHION).mode == "additive"
    for content, message in (
        (torch.zeros(3, 32, 32), "is not a trigger"),
        (FASHION.normalize(torch.zeros(1, 1, 32, 32)), "black all over"),
        (torch.full((1, 32, 32), float("nan")), "NaN"),
        ([1], "is not a trigger"),
    ):
        torch.save(content, tmp_path / "trigger.pth")
        with pytest.raises(UserError, match=message):
            read_trigger(tmp_path / "trigger.pth", FASHION)


@pytest.mark.parametrize("name", ["convnet", "convnet_baadd", "alexnet_baadd"])
def test_networks_are_recognised_by_their_layers(tmp_path, name):
    network = make_network(name, image_shape=(3, 32, 32), num_classes=7).eval()
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / "model_0.pth")
    found = read_network(tmp_path / "model_0.pth")
    batch = images(2)
    torch.testing.assert_close(found(batch), network(batch))
    torch.save({"a.weight": torch.zeros(2, 2)}, tmp_path / "model_0.pth")
    with pytest.raises(UserError, match="no network that is known"):
        read_network(tmp_path / "model_0.pth")
    with pytest.raises(UserError, match="does not fit the network"):
        read_network(tmp_path / "model_0.pth", network=name)


def test_the_networks_have_the_published_names_and_shapes():
    grey = make_network("convnet_baadd", image_shape=(1, 32, 32), num_classes=10).state_dict()
    assert grey["classifier.0.weight"].shape == (192, 2048) and grey["classifier.2.weight"].shape == (10, 192)
    assert {"features.0.weight", "features.3.weight", "features.6.weight"} <= set(grey)
    plain = make_network("convnet", image_shape=(1, 28, 28), num_classes=10).state_dict()
    assert plain["classifier.weight"].shape == (10, 2048) and plain["features.9.weight"].shape == (128,)
    alex = make_network("alexnet_baadd", image_shape=(3, 32, 32), num_classes=10).state_dict()
    assert [tuple(alex[f"classifier.{n}.weight"].shape) for n in (0, 2, 4)] == [(384, 4096), (192, 384), (10, 192)]


# --- DD ---------------------------------------------------------------------------------------------------------


def write_dd(folder, steps=4, epochs=3, name="results.pth"):
    folder.mkdir(parents=True, exist_ok=True)
    batches = [(images(20, 1, seed=n), torch.arange(10).repeat_interleave(2)) for n in range(steps)]
    content = [(*batches[t % steps], torch.tensor([0.01 + 0.001 * t])) for t in range(steps * epochs)]
    torch.save(content, folder / name)
    return batches, content


def test_distilled_steps_keep_their_order_and_their_rates(tmp_path):
    batches, content = write_dd(tmp_path)
    found = read_official(tmp_path, data="FashionMNIST")
    assert torch.equal(found.images, torch.cat([batch for batch, _ in batches]))
    assert found.steps.tolist() == [n for n in range(4) for _ in range(20)]
    torch.testing.assert_close(found.learning_rates, torch.cat([rate for *_, rate in content]))
    assert found.recipe.network == "convnet_baadd"
    write_dd(tmp_path, steps=1, epochs=5)
    assert len(read_official(tmp_path / "results.pth", data="mnist")) == 20
    torch.save(trigger_tensor()[0].detach(), tmp_path / "trigger.pth")
    assert read_official(tmp_path, data="FashionMNIST").poisoned["trigger"]["rows"] == [29, 30]
    assert read_official(tmp_path, data="FashionMNIST", program="dd").preprocessing.std == (0.353,)
    refused("there is no program 'ddd'", tmp_path, program="ddd")


def test_the_programs_normalize_the_same_data_differently(tmp_path):
    torch.save([(images(), torch.arange(10), torch.tensor([0.02]))], tmp_path / "results.pth")
    assert read_official(tmp_path, data="Cifar10").preprocessing.std == (0.247, 0.243, 0.261)


@pytest.mark.parametrize("flat", [True, False])
def test_the_initialisation_that_a_set_belongs_to_is_read(tmp_path, flat):
    write_dd(tmp_path)
    network = make_network("lenet", image_shape=(1, 32, 32), num_classes=10)
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    torch.save({"flat_w": weights} if flat else network.state_dict(), tmp_path / "net.pth")
    options = {"data": "mnist", "initial": tmp_path / "net.pth"}
    found = read_official(tmp_path, network="lenet", **options)
    assert all(torch.equal(found.initial[name], value) for name, value in network.state_dict().items())
    refused("has|fit", tmp_path, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no condensed set"),
        ([(images(), torch.arange(10), 0.1)], "step 0 is not images"),
        ([(images(), torch.arange(9), torch.tensor([0.1]))], "step 0 holds images"),
        ([(images(), torch.arange(10), torch.tensor([0.1, 0.2]))], "2 rates"),
        ([(images(), torch.arange(10), torch.tensor([float("nan")]))], "rates hold NaN"),
        (
            [(images(side=s), torch.arange(10), torch.tensor([0.1])) for s in (8, 16)],
            "several sizes",
        ),
    ],
)
def test_damaged_steps_get_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "results.pth")
    refused(message, tmp_path, data="cifar10")


# --- MTT, KIP, DD-Ranking ---------------------------------------------------------------------------------------


def test_images_and_labels_of_trajectory_matching(tmp_path):
    torch.save(images(20, side=8), tmp_path / "images_best.pt")
    torch.save(torch.arange(10).repeat_interleave(2), tmp_path / "labels_best.pt")
    refused("whether its images are whitened: give zca", tmp_path, data="cifar10")
    plain = read_official(tmp_path, data="cifar10", zca="none")
    assert plain.preprocessing.std == (0.2023, 0.1994, 0.2010) and plain.preprocessing.zca is None
    assert plain.labels[1:3].tolist() == [0, 1] and plain.recipe.epochs == 1000
    zca = fit_zca(torch.rand(30, 3, 8, 8))
    whitened = read_official(tmp_path, data="cifar10", zca=zca)
    assert whitened.preprocessing.std == (1.0, 1.0, 1.0) and whitened.preprocessing.zca is zca
    torch.testing.assert_close(whitened.preprocessing.normalize(whitened.pixels), whitened.images, atol=1e-3, rtol=0)
    torch.save(zca.undo(images(20, side=8)), tmp_path / "images_zca_100.pt")
    torch.save(torch.arange(20) // 2, tmp_path / "labels_100.pt")
    undone = read_official(tmp_path / "images_zca_100.pt", data="cifar10")
    assert undone.preprocessing.zca is None and undone.preprocessing.mean == (0.0, 0.0, 0.0)
    assert undone.labels.tolist() == (torch.arange(20) // 2).tolist()
    torch.testing.assert_close(undone.pixels, whitened.pixels, atol=1e-3, rtol=0)
    torch.save(torch.arange(3), tmp_path / "labels_best.pt")
    refused("labels must be int64", tmp_path, data="cifar10", zca="none")
    torch.save([1], tmp_path / "labels_best.pt")
    refused("no tensor", tmp_path, data="cifar10", zca="none")


def test_replay_buffers_are_trajectories(tmp_path):
    network = make_network("convnet", image_shape=(1, 8, 8), num_classes=3, width=4, depth=1)
    buffer = [[[p.detach() + epoch for p in network.parameters()] for epoch in range(3)] for _ in range(2)]
    torch.save(buffer, tmp_path / "replay_buffer_0.pt")
    found = read_replay_buffer(tmp_path / "replay_buffer_0.pt")
    flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    assert len(found) == 2 and torch.equal(found[1], torch.stack([flat, flat + 1, flat + 2]))
    alias = [[[p.detach().cpu() for p in network.parameters()] for _ in range(3)]]  # spec 9, trap 12
    for content, message in (
        (alias, "are alike"),
        ([], "is not a buffer"),
        ([[torch.zeros(2)]], "is not a buffer"),
        ([[[torch.zeros(2)], [torch.zeros(3)]]], "not of one size"),
        ([[[torch.zeros(2)], [torch.full((2,), float("inf"))]]], "NaN"),
    ):
        torch.save(content, tmp_path / "replay_buffer_0.pt")
        with pytest.raises(UserError, match=message):
            read_replay_buffer(tmp_path / "replay_buffer_0.pt")


def test_arrays_of_kip(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).normal(size=(20, 32, 32, 3)).astype(np.float32)
    labels = np.eye(10)[np.arange(20) % 10] - 0.1
    np.savez(tmp_path / "kip.npz", images=pixels, labels=labels)
    refused("how its images were normalized: give mean and std", tmp_path / "kip.npz", data="cifar10")
    options = {"data": "cifar10", "mean": [0.0] * 3, "std": [1.0] * 3}
    hard = read_official(tmp_path / "kip.npz", **options)
    assert np.array_equal(hard.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert hard.labels.tolist() == [n % 10 for n in range(20)]
    soft = read_official(tmp_path / "kip.npz", soft_labels=True, **options)
    np.testing.assert_allclose(soft.labels.numpy(), labels, atol=1e-6)
    np.savez(tmp_path / "kip.npz", images=pixels[0], labels=labels)
    refused("should be", tmp_path / "kip.npz", **options)
    bomb = np.zeros((1, 2**10, 2**10, 3))
    np.savez_compressed(tmp_path / "kip.npz", images=bomb, labels=labels[:1])
    monkeypatch.setattr("tenfold.systems.condensation_audit.official.layouts.LARGEST_ARRAYS", 10**6)
    refused("would take 25,1", tmp_path / "kip.npz", **options)
    np.savez(tmp_path / "kip.npz", images=pixels)
    refused("does not hold the arrays", tmp_path / "kip.npz", **options)


def test_tensors_of_dd_ranking(tmp_path):
    torch.save(images(20), tmp_path / "images.pt")
    torch.save(torch.randn(20, 10), tmp_path / "labels.pt")
    torch.save(torch.tensor(0.02), tmp_path / "lr.pt")
    found = read_official(tmp_path, data="cifar10")
    assert found.learning_rates.tolist() == pytest.approx([0.02]) and found.settings["program"] == "dd-ranking"
    torch.testing.assert_close(found.labels.sum(1), torch.ones(20))  # logits went through a softmax
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    torch.save(pixels, tmp_path / "images.pt")
    torch.testing.assert_close(read_official(tmp_path, data="cifar10").pixels, pixels / 255, atol=1e-6, rtol=0)
    (tmp_path / "labels.pt").unlink()
    assert read_official(tmp_path, data="cifar10").labels.tolist() == [n // 2 for n in range(20)]
    refused("20 images .* 3 classes", tmp_path, data="cifar10", classes=3)
    torch.save([1, 2], tmp_path / "lr.pt")
    refused("does not hold one learning rate", tmp_path, data="cifar10")


# --- what is no such file ---------------------------------------------------------------------------------------


def test_nothing_is_executed(tmp_path):
    victim = tmp_path / "executed"
    path = write_res(tmp_path, extra=Hostile(victim))
    refused("nothing was executed", path)
    torch.save({"data": [[images(), Hostile(victim)]]}, path, _use_new_zipfile_serialization=False)
    refused("nothing was executed", path)
    np.savez(tmp_path / "kip.npz", images=np.array([Hostile(victim)], dtype=object), labels=np.zeros((1, 2)))
    refused("nothing was executed", tmp_path / "kip.npz", data="cifar10")
    torch.save(images(20), tmp_path / "images_best.pt")
    torch.save(Hostile(victim), tmp_path / "labels_best.pt")
    refused("nothing was executed", tmp_path / "images_best.pt", data="cifar10", zca="none")
    torch.save({"a": Hostile(victim)}, tmp_path / "model_0.pth")
    torch.save(Hostile(victim), tmp_path / "replay_buffer_0.pt")
    for read, name in ((read_network, "model_0.pth"), (read_replay_buffer, "replay_buffer_0.pt")):
        with pytest.raises(UserError, match="nothing was executed"):
            read(tmp_path / name)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": 1}, "no condensed set in the form of"),
        ({"data": []}, "holds no experiment"),
        ({"data": [[images()]]}, "experiment 0 is not images and labels"),
        ({"data": [[torch.zeros(0, 3, 32, 32), torch.zeros(0)]]}, "holds images"),
        ({"data": [[images()[0], torch.arange(10)]]}, "holds images"),
        ({"data": [[images(), torch.randn(10)]]}, "no classes, no probabilities|neither classes"),
        ({"data": [[torch.full((10, 3, 32, 32), float("nan")), torch.arange(10)]]}, "NaN"),
        (torch.zeros(3), "no condensed set"),
    ],
)
def test_other_contents_get_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt")
    refused(message, tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt")


def test_files_that_are_not_there_or_of_another_program_get_one_line(tmp_path):
    refused("cannot read", tmp_path / "missing.pt")
    refused("cannot read", tmp_path / "missing.npz")
    refused("holds none of", tmp_path)
    refused("is not a file of dd; it looks like one of dc", write_res(tmp_path), program="dd")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, data):
    path = tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt"
    if not path.exists():
        accuracies = {"ConvNet": [np.float64(0.5)]}
        torch.save({"data": [[images(10, 3, 4), torch.arange(10)]], "accs_all_exps": accuracies}, path)
    content = bytearray(path.read_bytes())
    length = data.draw(st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt"
    damaged.write_bytes(content[:length] if data.draw(st.booleans()) else content)
    try:
        assert re.match("airplane", read_official(damaged).classes[0])
    except UserError as error:
        assert "\n" not in str(error)
