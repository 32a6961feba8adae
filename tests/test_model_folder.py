"""Models on disk: manifests, hashes, checkpoints and manifests that want to run code, fetch or open."""

import json
import os
import pickle

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.models.builders import arguments_to_keep, named_network
from tenfold.models.checkpoints import read_checkpoint, unwrap_state
from tenfold.models.folder import (
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    plain_arguments,
    refuse_code,
    save_model,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def save(folder, module=None):
    return save_model(
        folder, module or network(), system="boosted-exits", builder="b", arguments={"n": 1}, extra={"r": [0.5]}
    )


def test_round_trip(tmp_path):
    manifest = save(tmp_path)
    assert load_manifest(tmp_path) == manifest
    other = network()
    nn.init.zeros_(other[0].weight)
    load_weights(other, tmp_path)
    for name, value in network().state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_tensors_that_share_memory_are_written(tmp_path):
    module = network()
    module.tied = module[0]
    save(tmp_path, module)
    load_weights(module, tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_weights_are_refused(tmp_path, damage):
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(content if damage == "flip" else content[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors") as refused:
        load_weights(network(), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Sequential(nn.Linear(3, 5)), "0.weight"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), r"2\.(weight|bias)"),
        (nn.Sequential(*network(), nn.Linear(2, 2)), "3.weight"),
    ],
    ids=["shape", "unexpected", "missing"],
)
def test_weights_of_another_network_name_the_first_key(tmp_path, module, names):
    save(tmp_path)
    with pytest.raises(UserError, match=names):
        load_weights(module, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"system": "x"})])
def test_what_is_no_manifest_gets_one_line(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match="manifest") as refused:
        load_manifest(tmp_path)
    assert "\n" not in str(refused.value)


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_checkpoint_that_wants_to_run_code_does_not(tmp_path, legacy):
    target = tmp_path / "executed"
    path = tmp_path / "model.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"state_dict": _Bomb(target)}))
    else:
        torch.save({"state_dict": _Bomb(target)}, path)
    with pytest.raises(UserError, match="nothing was executed"):
        read_checkpoint(path)
    assert not target.exists()


def test_checkpoints_of_tensors_are_read(tmp_path):
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth")["epoch"] == 3
    with pytest.raises(UserError, match="cannot read"):
        read_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:300])
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "cut.pth")


def test_a_state_dict_is_found_in_whatever_a_program_wrapped_it(tmp_path):
    state = network().state_dict()
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    for found in (state, {"model": state}, wrapped, {"model": wrapped}):
        assert list(unwrap_state(found, "c.pth")) == list(state)
    for wrong in ([], {}, {"epoch": 3}, {"state_dict": {"a": torch.zeros(1), "b": "text"}}, None):
        with pytest.raises(UserError, match=r"c\.pth holds"):
            unwrap_state(wrong, "c.pth")


def test_a_model_of_another_system_is_refused_by_name(tmp_path):
    save(tmp_path)
    with pytest.raises(UserError, match="model of 'boosted-exits', not of graph-fusion"):
        load_manifest(tmp_path, "graph-fusion")


def of_factory(**arguments):
    return Manifest(system="s", builder="factory", arguments=arguments, sha256="", tensors=0)


def test_code_runs_only_where_it_was_allowed_by_its_very_name():
    manifest = of_factory(factory="nets:make", widths=[1])
    refuse_code(manifest, "nets:make")
    for allowed in (None, "", "nets:other"):
        with pytest.raises(UserError, match=r'nets:make\(\{"widths": \[1\]\}\).*--factory nets:make'):
            refuse_code(manifest, allowed)


def test_what_would_run_is_shown_whole_and_cannot_hide():
    hostile = of_factory(factory="os:system\x1b[2K\rnets:harmless", command="rm -rf ~")
    with pytest.raises(UserError) as refused:
        refuse_code(hostile, "nets:harmless")
    assert "\x1b" not in str(refused.value) and "os:system" in str(refused.value) and "rm -rf" in str(refused.value)
    with pytest.raises(UserError):
        refuse_code(of_factory(factory=["nets:make"]), "nets:make")
    named = Manifest(system="s", builder="small-cnn", arguments={"factory": "nets:make"}, sha256="", tensors=0)
    with pytest.raises(UserError):
        refuse_code(named, None)  # whatever the builder is called


HOSTILE_ARGUMENTS = [
    {"pretrained": True},
    {"checkpoint_path": "x.pth"},
    {"pretrained_cfg": {"file": "x"}},
    {"pretrained_cfg_overlay": {}},
    {"cache_dir": "x"},
    {"weights": "DEFAULT"},
    {"weights_backbone": None},
    {"act_layer": "https://x"},
    {"norm_layer": "../x"},
    {"x": {"nested": 1}},
    {"not an identifier": 1},
    ["a", "list"],
]


@pytest.mark.parametrize("arguments", HOSTILE_ARGUMENTS, ids=str)
def test_a_file_does_not_fetch_or_open_by_arguments(arguments):
    with pytest.raises(UserError, match=r"m\.json"):
        plain_arguments(arguments, "m.json")


def test_plain_arguments_pass():
    plain = {
        "img_size": 32,
        "drop_path_rate": 0.1,
        "widths": [1, 2],
        "global_pool": "avg",
        "reg_tokens": 4,
        "dim": None,
    }
    assert plain_arguments(plain, "m.json") == plain


@pytest.mark.parametrize("name", ["timm/hf-hub:a/b", "timm/local-dir:x", "timm/../x", "torchvision/https://x"])
def test_no_name_of_a_network_fetches(name):
    with pytest.raises(UserError, match="no name of a"):
        named_network(name, num_classes=2)


def test_what_fetches_is_not_kept_in_a_manifest():
    assert arguments_to_keep({"pretrained": True, "weights": "DEFAULT", "depth": 3}) == {"depth": 3}


def test_a_factory_of_the_current_folder_is_found_and_its_errors_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\ndef make(num_classes): return nn.Linear(2, num_classes)\ndef breaks(**_): 1 / 0\n"
    )
    assert named_network("factory", num_classes=3, factory="mynets:make").out_features == 3
    with pytest.raises(UserError, match="failed when called with num_classes=3: ZeroDivisionError"):
        named_network("factory", num_classes=3, factory="mynets:breaks")


def test_a_link_to_a_device_in_a_model_folder_is_refused(tmp_path):
    save(tmp_path)
    (tmp_path / "estimator.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"estimator\.safetensors: it is a device"):
        load_manifest(tmp_path)


def test_no_number_in_a_file_asks_for_any_size(tmp_path):
    """Refused before memory is taken: one large number, a product of small ones, tensors without end."""
    save(tmp_path)
    with no_larger_than_its_files(tmp_path, {"widths": [4, 2**19]}):
        assert nn.Linear(400, 300).weight.shape == (300, 400)  # smaller than what is always allowed
    with no_larger_than_its_files(tmp_path, {"factory": "mine:make", "seed": 2**40}):
        pass  # code that was allowed by its name
    for arguments in ({"width": 2**40}, {"n": [{"depth": -(10**30)}]}, {"rate": float("inf")}):
        with pytest.raises(UserError, match="cannot be of"), no_larger_than_its_files(tmp_path, arguments):
            raise AssertionError("nothing is built")
    for build in (
        lambda: nn.Linear(2**20, 2**20),
        lambda: torch.arange(2**40),
        lambda: torch.zeros(3).new_zeros((2**20, 2**20)),
        lambda: [torch.empty(1) for _ in range(10**9)],
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(2, 1, 2), 10**9),
        lambda: bytearray(2**62),
    ):
        with pytest.raises(UserError, match=r"far larger|cannot be built"), no_larger_than_its_files(tmp_path, {}):
            build()
