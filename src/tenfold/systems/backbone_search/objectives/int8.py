"""INT8: an exported detector with 8-bit weights and activations, calibrated on pictures of its own."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from tenfold.errors import UserError, require
from tenfold.files import atomic_path
from tenfold.models.onnx import describe_onnx


class _Pictures:
    """Calibration pictures, one at a time, as onnxruntime asks for them."""

    def __init__(self, name: str, images: Tensor) -> None:
        self.name, self.rows = name, iter(images.float().split(1))

    def get_next(self) -> dict[str, Any] | None:
        row = next(self.rows, None)
        return None if row is None else {self.name: row.numpy()}


def quantize(path: Path, target: Path, images: Tensor, metadata: Mapping[str, str]) -> None:
    """Write the INT8 form of an exported detector: its convolutions, their weights channel by channel.

    Decoding stays in floating point: eight bits of an exponential would cost pixels.

    Args:
        path: the floating-point file.
        target: the file to write.
        images: ``(n, 3, height, width)`` letterboxed pictures that ranges are taken from, such as 64 training images.
        metadata: what the file says of itself.

    Raises:
        UserError: onnxruntime's quantization is missing or cannot take the network.
    """
    require("onnxruntime", "onnx")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder, atomic_path(target) as temporary:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared), str(temporary), _Pictures("images", images), quant_format=QuantFormat.QDQ,
                per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
                op_types_to_quantize=["Conv"],
            )  # fmt: skip
        except Exception as error:  # onnxruntime's errors have no common class
            raise UserError(f"{path} cannot be quantized: {' '.join(str(error).split())[:200]}") from error
    describe_onnx(target, {**metadata, "precision": "int8"})
