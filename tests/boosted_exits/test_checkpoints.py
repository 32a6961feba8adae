import argparse
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.msdnet import PUBLISHED_MSDNETS, MSDNet, published_msdnet
from tenfold.systems.boosted_exits.networks.official_arguments import parse_official_arguments, read_official_arguments
from tenfold.systems.boosted_exits.networks.official_checkpoints import (
    load_official,
    official_to_ours,
    ours_to_official,
)
from tenfold.systems.boosted_exits.networks.official_files import (
    AnytimePoint,
    BudgetPoint,
    read_anytime,
    read_costs,
    read_dynamic,
    read_exit_probabilities,
    read_split_permutation,
)
from tenfold.systems.boosted_exits.networks.ranet import PUBLISHED_RANETS, RANet, published_ranet

Shapes = dict[str, tuple[int, ...]]


class OfficialKeys:
    """Keys and shapes of official state dicts, written out from the official code without our networks."""

    def __init__(self) -> None:
        self.shapes: Shapes = {}

    def conv(self, key: str, outputs: int, inputs: int, kernel: int, at: tuple[str, str] = ("net.0", "net.1")) -> None:
        self.shapes[f"{key}.{at[0]}.weight"] = (outputs, inputs, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.shapes[f"{key}.{at[1]}.{name}"] = (outputs,)
        self.shapes[f"{key}.{at[1]}.num_batches_tracked"] = ()

    def bottleneck(self, key: str, outputs: int, inputs: int, factor: int) -> None:
        inner = min(inputs, factor * outputs)
        self.conv(key, inner, inputs, 1)
        self.conv(key, outputs, inner, 3, at=("net.3", "net.4"))

    def first(self, key: str, widths: list[int], imagenet: bool) -> None:
        if imagenet:
            self.conv(f"{key}.0", widths[0], 3, 7, at=("0", "1"))
            self.shapes[f"{key}.0.0.bias"] = (widths[0],)
        else:
            self.conv(f"{key}.0", widths[0], 3, 3)
        for k in range(1, len(widths)):
            self.conv(f"{key}.{k}", widths[k], widths[k - 1], 3)

    def head(self, n: int, inputs: int, imagenet: bool) -> None:
        inner, classes = (inputs, 1000) if imagenet else (128, 100)
        self.conv(f"classifier.{n}.m.0", inner, inputs, 3)
        self.conv(f"classifier.{n}.m.1", inner, inner, 3)
        self.shapes |= {f"classifier.{n}.linear.weight": (classes, inner), f"classifier.{n}.linear.bias": (classes,)}


def msdnet_shapes(blocks: int, base: int, step: int, c: int, g: int, gamma: list[int], imagenet: bool) -> Shapes:
    keys = OfficialKeys()
    scales, total, number, finest = len(gamma), base + step * (blocks - 1), 0, 0
    interval = -(-total // scales)
    for i in range(blocks):
        position = 0
        if i == 0:
            keys.first("blocks.0.0.layers", [c * factor for factor in gamma], imagenet)
            position = 1
        for _ in range(base if i == 0 else step):
            number += 1
            left, before = (scales - max(0, number - n) // interval for n in (1, 2))
            finest = scales - left
            for s, scale in enumerate(range(finest, scales)):
                key = f"blocks.{i}.{position}.layers.{s}"
                fuses = scale > finest or left < before
                out = g * gamma[scale] // 2 if fuses else g * gamma[scale]
                keys.bottleneck(f"{key}.conv_normal", out, c * gamma[scale], gamma[scale])
                if fuses:
                    keys.bottleneck(f"{key}.conv_down", out, c * gamma[scale - 1], gamma[scale - 1])
            position += 1
            c += g
            if left < before:
                for s, scale in enumerate(range(finest, scales)):
                    keys.conv(f"blocks.{i}.{position}.m.{s}", c // 2 * gamma[scale], c * gamma[scale], 1)
                position += 1
                c //= 2
        keys.head(i, c * gamma[-1], imagenet)
    return keys.shapes


def ranet_shapes(steps: list[int], c: int, g: int, gamma: list[int], s: list[int], imagenet: bool) -> Shapes:
    keys = OfficialKeys()
    keys.first("FirstLayer.layers", [c * factor for factor in gamma[::-1]], imagenet)
    until, exits, low = [0, 2, 4, 6, 8], 0, []
    for i in range(len(gamma)):
        width, growth, kept = c * gamma[i], g * gamma[i], []
        for j in range(1, until[i + 1] + 1):
            key = f"scale_flows.{i}.{j - 1}"
            kept.append([width + k * growth for k in range(steps[j - 1] + 1)])
            for k in range(steps[j - 1]):
                out = growth
                if j <= until[i]:
                    out = growth - growth // 4
                    keys.bottleneck(f"{key}.layers.{k}.conv_up", growth // 4, low[j - 1][k], gamma[i - 1])
                keys.bottleneck(f"{key}.layers.{k}.conv_normal", out, width, gamma[i])
                width += growth
            if j <= until[i]:
                keys.conv(f"{key}.conv_last", width // 4, low[j - 1][-1], 1)
                width += width // 4
            if any(j == (k + 1) * until[i + 1] // s[i] for k in range(s[i] - 1)):
                keys.conv(f"{key}.trans", width // 2, width, 1)
                width //= 2
            if j > until[i]:
                keys.head(exits, width, imagenet)
                exits += 1
        low = kept
    return keys.shapes


OFFICIAL = {
    "msdnet-cifar100-anytime": lambda: msdnet_shapes(10, 4, 2, 16, 6, [1, 2, 4], False),
    "msdnet-cifar100-batch": lambda: msdnet_shapes(6, 4, 2, 16, 6, [1, 2, 4], False),
    "msdnet-imagenet-step7": lambda: msdnet_shapes(5, 7, 7, 32, 16, [1, 2, 4, 4], True),
    "msdnet-imagenet-step4": lambda: msdnet_shapes(5, 4, 4, 32, 16, [1, 2, 4, 4], True),
    "ranet-cifar100-anytime": lambda: ranet_shapes([4] * 8, 16, 6, [4, 2, 1, 1], [1, 2, 3, 3], False),
    "ranet-cifar100-batch1": lambda: ranet_shapes([2, 4, 6, 8, 10, 12], 16, 6, [4, 2, 1], [1, 2, 3], False),
    "ranet-imagenet-anytime": lambda: ranet_shapes([8] * 8, 64, 16, [4, 2, 2, 1], [1, 2, 3, 4], True),
}


def random_weights(name: str, prefix: str = "") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        prefix + key: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for key, shape in OFFICIAL[name]().items()
    }


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_key_and_shape(name: str) -> None:
    with torch.device("meta"):
        model = published_msdnet(name) if name in PUBLISHED_MSDNETS else published_ranet(name)
    assert {key: tuple(value.shape) for key, value in ours_to_official(model).items()} == OFFICIAL[name]()
    assert set(OFFICIAL) <= {*PUBLISHED_MSDNETS, *PUBLISHED_RANETS}


# Official prefix to ours: stage n of a RANet opens a sub-network with its fusion blocks, or holds one plain block.
PLACES = {
    "msdnet-cifar100-batch": {"blocks.0.0.": "stages.0.0.", "blocks.1.2.": "stages.1.2.", "classifier.5.": "heads.5."},
    "ranet-cifar100-batch1": {
        "FirstLayer.": "stages.0.stem.",
        "scale_flows.0.0.": "stages.0.blocks.0.",
        "scale_flows.0.1.": "stages.1.blocks.0.",
        "scale_flows.1.1.": "stages.2.blocks.1.",
        "scale_flows.1.2.": "stages.2.blocks.2.",
        "scale_flows.1.3.": "stages.3.blocks.0.",
        "scale_flows.2.4.": "stages.4.blocks.4.",
        "scale_flows.2.5.": "stages.5.blocks.0.",
        "classifier.5.": "heads.5.",
    },
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("project", ["boostnet", "dataparallel", "old"])
def test_files_of_all_projects_load(tmp_path: Path, name: str, project: str) -> None:
    weights = random_weights(name)
    path = tmp_path / "model_best.pth.tar"
    if project == "boostnet":
        content = {"epoch": 299, "state_dict": {"model": weights}, "optimizer": {"state": {}}, "scheduler": {}}
        torch.save(content, path)
    else:
        prefixed = {f"module.{key}": value for key, value in weights.items()}
        content = {"epoch": 3, "arch": "x", "state_dict": prefixed, "best_prec1": torch.tensor(64.6), "optimizer": {}}
        if project == "old":  # before counters of batches, zip files and plain settings
            content["state_dict"] = {k: v for k, v in prefixed.items() if not k.endswith("num_batches_tracked")}
            content["args"] = argparse.Namespace(lr=0.1)
        torch.save(content, path, _use_new_zipfile_serialization=project != "old")

    model = load_official(path)
    assert isinstance(model, MSDNet if name in PUBLISHED_MSDNETS else RANet)
    assert set(model.reweight) == {0.5 if project == "boostnet" else 0.0}
    if project == "old":
        weights = {key: value * 0 if key.endswith("num_batches_tracked") else value for key, value in weights.items()}
    assert_equal(ours_to_official(model), weights)
    ours = model.state_dict()
    for official_prefix, our_prefix in PLACES[name].items():
        part = {k.removeprefix(official_prefix): v for k, v in weights.items() if k.startswith(official_prefix)}
        assert_equal({k.removeprefix(our_prefix): v for k, v in ours.items() if k.startswith(our_prefix)}, part)


def assert_equal(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys() != set()
    assert [key for key, value in expected.items() if not torch.equal(given[key], value)] == []


def test_classes_and_channels_follow_from_the_file(tmp_path: Path) -> None:
    model = published_msdnet("msdnet-cifar100-batch", num_classes=10, image_channels=1)
    torch.save({"state_dict": {"model": ours_to_official(model)}}, tmp_path / "model_latest.pth")
    x = torch.rand(2, 1, 28, 28)
    for name in (None, "msdnet-cifar100-batch"):
        loaded = load_official(tmp_path / "model_latest.pth", name)
        for ours, expected in zip(loaded.eval()(x), model.eval()(x), strict=True):
            assert torch.equal(ours, expected)


@settings(max_examples=15, deadline=None)
@given(
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from(["even", "lin_grow"]),
    st.sampled_from(["cifar", "imagenet"]),
)
def test_conversion_there_and_back(is_ranet: bool, blocks: int, first: int, step: int, mode: str, stem: str) -> None:
    common: dict[str, Any] = {
        "num_blocks": blocks,
        "step": step,
        "step_mode": mode,
        "channels": 2,
        "growth_rate": 4,
        "stem": stem,
    }
    model = RANet(3, block_step=first, **common) if is_ranet else MSDNet(3, base=first, **common)
    official = ours_to_official(model)
    assert len(official) == len(model.state_dict())
    back = official_to_ours({f"module.{key}": value for key, value in official.items()}, model)
    assert list(back) == list(model.state_dict())
    assert all(torch.equal(value, back[key]) for key, value in model.state_dict().items())


def test_latest_txt_is_followed_after_a_move(tmp_path: Path) -> None:
    folder = tmp_path / "save_models"
    folder.mkdir()
    torch.save({"state_dict": random_weights("msdnet-cifar100-batch", "module.")}, folder / "checkpoint_012.pth.tar")
    for line in ("/elsewhere/save_models/checkpoint_012.pth.tar", "checkpoint_012.pth.tar\n"):
        (folder / "latest.txt").write_text(line)
        assert load_official(folder / "latest.txt").exits == 6
    (folder / "latest.txt").write_text("/elsewhere/save_models/checkpoint_013.pth.tar")
    with pytest.raises(UserError, match=r"checkpoint_013\.pth\.tar, which is not in its folder"):
        load_official(folder / "latest.txt")
    (folder / "latest.txt").write_text("\n")
    with pytest.raises(UserError, match="empty"):
        load_official(folder / "latest.txt")


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return Path.touch, (self.victim,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path, victim = tmp_path / "model_best.pth", tmp_path / "executed"
    pickle.loads(pickle.dumps(Malicious(victim)))
    assert victim.exists()  # the payload works where pickles are trusted
    victim.unlink()
    for zipped in (True, False):
        torch.save({"state_dict": Malicious(victim)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="objects other than tensors"):
            load_official(path)
    path.write_bytes(pickle.dumps({"state_dict": Malicious(victim)}, protocol=2))
    with pytest.raises(UserError):
        load_official(path)
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_end_in_one_line(tmp_path: Path, zipped: bool) -> None:
    buffer = io.BytesIO()
    weights = {"state_dict": {"module.a": torch.rand(50)}}
    torch.save(weights, buffer, _use_new_zipfile_serialization=zipped)
    data = buffer.getvalue()
    path = tmp_path / "model_best.pth"
    for length in (0, 1, 10, len(data) // 2, len(data) - 60):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"model_best\.pth") as error:
            load_official(path)
        assert "\n" not in str(error.value)
    path.write_text("not a checkpoint\n")
    with pytest.raises(UserError, match="damaged"):
        load_official(path)
    with pytest.raises(UserError, match="cannot read"):
        load_official(tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "no 'state_dict'"),
        ({"epoch": 3}, "no 'state_dict'"),
        ({"state_dict": {}}, "no 'state_dict'"),
        ({"state_dict": {"a": 3}}, "holds 'a', which is not a tensor's name"),
        ({"state_dict": {"fc.weight": torch.zeros(3, 3)}}, "neither MSDNet nor RANet"),
        (
            {
                "state_dict": {
                    "blocks.0.0.layers.0.net.0.weight": torch.zeros(2, 3, 3, 3),
                    "classifier.0.linear.weight": torch.zeros(0, 4),
                }
            },
            "neither MSDNet nor RANet",
        ),
        (
            {"state_dict": {k: v for k, v in random_weights("ranet-cifar100-batch1").items() if ".2.5." not in k}},
            "none of the published settings",
        ),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message):
        load_official(tmp_path / "model.pth")


def test_a_mismatch_names_the_first_key_and_leaves_the_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    model = published_msdnet("msdnet-cifar100-batch")
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def refused(weights: dict[str, Tensor], message: str, into: Any = model) -> None:
        torch.save({"state_dict": weights}, path)
        with pytest.raises(UserError, match=message) as error:
            load_official(path, into)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)

    weights = random_weights("msdnet-cifar100-batch", "module.")
    name = "blocks.3.0.layers.0.conv_normal.net.3.weight"
    refused({k: v for k, v in weights.items() if k != f"module.{name}"}, f"key '{name}' is missing for this MSDNet")
    refused(weights | {"module.extra": torch.zeros(1)}, "key 'extra' is none of this MSDNet's")
    refused(weights | {f"module.{name}": torch.zeros(2, 2, 3, 3)}, rf"key '{name}' has shape \(2, 2, 3, 3\), but")
    refused(weights | {f"module.{name}": torch.full_like(weights[f"module.{name}"], torch.nan)}, f"{name}.*not finite")
    refused(weights, "key .*, but this MSDNet needs", into=published_msdnet("msdnet-cifar100-anytime"))
    refused(weights, "is missing for this RANet", into="ranet-cifar100-batch1")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.save({"state_dict": weights}, path)
    with pytest.raises(UserError, match="there is no published network 'resnet'; choose one of msdnet-cifar100"):
        load_official(path, "resnet")


MSDNET_ARGUMENTS = {
    "arch": "msdnet_ge",
    "dataset": "cifar100",
    "nBlocks": 6,
    "base": 4,
    "step": 2,
    "stepmode": "even",
    "nChannels": 16,
}
RANET_ARGUMENTS = {
    "arch": "RANet",
    "data": "cifar10",
    "nBlocks": "2",
    "step": 2,
    "stepmode": "lg",
    "nChannels": 16,
    "scale-list": "1-2-3",
    "grFactor": "4-2-1",
    "bnFactor": [4, 2, 1],
    "lr": 0.1,
}


def test_official_arguments_build_the_network(tmp_path: Path) -> None:
    boosted = parse_official_arguments(MSDNET_ARGUMENTS | {"ensemble_reweight": "0.5", "gpu": None})
    shapes = {key: tuple(value.shape) for key, value in ours_to_official(boosted).items()}
    assert shapes == OFFICIAL["msdnet-cifar100-batch"]()
    assert boosted.rescale and set(boosted.reweight) == {0.5}

    torch.save(
        argparse.Namespace(**MSDNET_ARGUMENTS | {"arch": "msdnet", "grFactor": [1, 2, 4]}), tmp_path / "args.pth"
    )
    plain = parse_official_arguments(read_official_arguments(tmp_path / "args.pth"))
    assert not plain.rescale and set(plain.reweight) == {0.0}

    ranet = parse_official_arguments(RANET_ARGUMENTS)
    shapes = {key: tuple(value.shape) for key, value in ours_to_official(ranet).items()}
    expected = {k: ((10, *v[1:]) if ".linear." in k else v) for k, v in OFFICIAL["ranet-cifar100-batch1"]().items()}
    assert shapes == expected
    assert not ranet.rescale

    torch.save({"lr": 0.1}, tmp_path / "args.pth")
    with pytest.raises(UserError, match="no arguments"):
        read_official_arguments(tmp_path / "args.pth")


def test_settings_are_read_from_what_each_program_leaves(tmp_path: Path) -> None:
    """RANet-pytorch prints its arguments into a file, BoostNet into its log; scripts hold them as they are typed."""
    values = {key.replace("-", "_"): value for key, value in RANET_ARGUMENTS.items()}
    printed = argparse.Namespace(**values, device=torch.device("cpu"))
    (tmp_path / "args.txt").write_text(f"{printed}\n")
    (tmp_path / "log.txt").write_text(f"2022-01-01 INFO running arguments: {printed}\nepoch 0\n")
    typed = " ".join(
        f"--{key} {'-'.join(map(str, value)) if isinstance(value, list) else value} \\\n"
        for key, value in RANET_ARGUMENTS.items()
    )
    (tmp_path / "train.sh").write_text(f"#!/bin/bash\npython main.py --use-valid --data-root ${{here}}/x {typed}")
    for name in ("args.txt", "log.txt", "train.sh"):
        built = parse_official_arguments(read_official_arguments(tmp_path / name))
        assert built.settings == parse_official_arguments(RANET_ARGUMENTS).settings
    (tmp_path / "train.sh").write_text("python main.py --step $step")
    with pytest.raises(UserError, match="through a variable"):
        read_official_arguments(tmp_path / "train.sh")
    (tmp_path / "args.txt").write_text("Namespace(step=__import__('os').abort())\n")
    with pytest.raises(UserError, match="no arguments"):
        read_official_arguments(tmp_path / "args.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (MSDNET_ARGUMENTS | {"arch": "resnet"}, "'arch'.*'msdnet', 'msdnet_ge' or 'ranet'"),
        (MSDNET_ARGUMENTS | {"dataset": None}, "'data'.*cifar10"),
        (MSDNET_ARGUMENTS | {"nBlocks": None}, "'nBlocks'.*required"),
        (MSDNET_ARGUMENTS | {"grFactor": "1-two-4"}, "'grFactor'.*integer"),
        (MSDNET_ARGUMENTS | {"stepmode": "odd"}, "'stepmode'"),
        (MSDNET_ARGUMENTS | {"bottleneck": False}, "'bottleneck'"),
        (MSDNET_ARGUMENTS | {"nBlocks": 0}, "num_blocks must be a positive integer"),
        (MSDNET_ARGUMENTS | {"ensemble_reweight": "2"}, "reweight"),
        ({k: v for k, v in RANET_ARGUMENTS.items() if k != "grFactor"}, "'grFactor'.*required"),
        (RANET_ARGUMENTS | {"scale-list": "1-2-3-3"}, "scales must go up"),
    ],
)
def test_wrong_official_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_official_arguments(arguments)
    assert "\n" not in str(error.value)


def test_costs_and_permutation(tmp_path: Path) -> None:
    path = tmp_path / "flops.pth"
    torch.save([15140452.0, 25505992], path)
    assert read_costs(path) == [15140452.0, 25505992.0]
    for wrong in ([], [torch.zeros(1)], {"a": 1}):
        torch.save(wrong, path)
        with pytest.raises(UserError, match="list of costs"):
            read_costs(path)

    permutation = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.save(permutation, path)
    assert torch.equal(read_split_permutation(path), permutation)
    for wrong in (permutation.float(), permutation + 1, torch.zeros(20, dtype=torch.int64), [1]):
        torch.save(wrong, path)
        with pytest.raises(UserError, match="permutation"):
            read_split_permutation(path)


def test_result_tables_in_both_column_orders(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.txt"
    points = [BudgetPoint(15140452.0, 64.6), BudgetPoint(25505992.5, 67.9)]
    path.write_text("15140452.0 64.6\n25505992.5 67.9\n")
    assert read_dynamic(path) == points == read_dynamic(path, "boostnet")
    path.write_text("64.6\t15140452.0\n67.9\t25505992.5\n")
    assert read_dynamic(path) == points == read_dynamic(path, "msdnet") == read_dynamic(path, "ranet")
    path.write_text("64.6\t15.1\n67.9\t25.5\n")  # costs in millions: either column could be the accuracy
    with pytest.raises(UserError, match="name the project"):
        read_dynamic(path)
    assert read_dynamic(path, "msdnet")[1] == BudgetPoint(25.5, 67.9)

    path.write_text("15140452.0 4955644 64.6 88.1\n")
    assert read_anytime(path) == [AnytimePoint(15140452.0, 4955644, 64.6, 88.1)]
    for text, message in (("1 2 3\n", "line 1"), ("1 2 x 4\n", "line 1"), ("1 2 3 nan", "finite"), ("\n", "empty")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_anytime(path)
    path.write_bytes(b"\xff\xfe1")
    with pytest.raises(UserError, match="UTF-8"):
        read_anytime(path)


def test_exit_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "logits_single.pth"
    generator = torch.Generator().manual_seed(0)
    val, test = (torch.randn(3, n, 4, generator=generator).softmax(-1) for n in (6, 5))
    val_y, test_y = torch.arange(6) % 4, torch.arange(5) % 4
    for content in ((val, val_y.float(), test, test_y.float()), (list(val), val_y, list(test), test_y)):
        torch.save(content, path)
        loaded = read_exit_probabilities(path)
        assert torch.equal(loaded.validation, val) and torch.equal(loaded.test, test)
        assert torch.equal(loaded.validation_targets, val_y) and torch.equal(loaded.test_targets, test_y)
    for content, message in (
        ((val, val_y), "four parts"),
        ((val, test_y, test, test_y), r"\(3, 6, 4\) for classes \(5,\)"),
        ((val * 2, val_y, test, test_y), "not probabilities"),
        ((val, val_y + 1, test, test_y), r"outside 0 \.\. 3"),
        ((3, val_y, test, test_y), "does not hold tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            read_exit_probabilities(path)
