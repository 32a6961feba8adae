"""Models on disk: manifests, hashes, checkpoints that want to run code, ONNX that differs."""

import json
import os
import pickle

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.export import export_onnx, load_manifest, load_weights, onnx_session, read_checkpoint, save_model


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


def test_onnx_has_any_batch_size_and_is_checked(tmp_path):
    pytest.importorskip("onnx")
    module = network().eval()
    done = export_onnx(
        module, [torch.randn(2, 3)], tmp_path / "m.onnx", input_names=["x"], output_names=["y"], batched=[True]
    )
    assert done.max_difference < 1e-5
    x = torch.randn(7, 3)
    answer = onnx_session(tmp_path / "m.onnx").run(None, {"x": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(answer), module(x).detach())


class _Drifts(nn.Module):
    """Gives another answer every time it is asked, as an export that went wrong would."""

    calls = 0

    def forward(self, x):
        self.calls += 0 if torch.compiler.is_exporting() else 1
        return x + self.calls


def test_onnx_that_differs_is_refused_and_leaves_no_file(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(UserError, match="differs"):
        export_onnx(_Drifts().eval(), [torch.randn(2, 3)], tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    assert list(tmp_path.iterdir()) == []
