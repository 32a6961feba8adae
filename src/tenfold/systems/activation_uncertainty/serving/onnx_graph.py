"""A served model as one ONNX graph with two outputs."""

from pathlib import Path

import torch

from tenfold.models.onnx import export_onnx
from tenfold.systems.activation_uncertainty.serving.uncertain_model import UncertainModel


class _Positional(torch.nn.Module):
    """A served model with its inputs by position, as an export wants them."""

    def __init__(self, served: UncertainModel, names: list[str]) -> None:
        super().__init__()
        self.served, self.names = served, names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.names == ["x"]:
            return self.served(inputs[0])
        return self.served(**dict(zip(self.names, inputs, strict=True)))


def export_uncertain(served: UncertainModel, example: dict[str, torch.Tensor], path: str | Path) -> Path:
    """Write a served model as one ONNX graph with the outputs ``prediction`` and ``uncertainty``.

    Args:
        served: main model and estimator.
        example: a batch of two rows by input name; ``x`` alone is given by position.
        path: the file.

    Raises:
        UserError: it cannot be exported, or onnxruntime answers differently.
    """
    module = _Positional(served, list(example)).eval()
    made = export_onnx(
        module,
        list(example.values()),
        path,
        input_names=list(example),
        output_names=["prediction", "uncertainty"],
        batched=[True] * len(example),
    )
    return made.path
