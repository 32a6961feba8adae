"""ONNX out: any batch size, and what differs from PyTorch is not kept."""

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.models.onnx import export_onnx, onnx_session


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


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
