"""Passage to checkpoints, model_folder and onnx until all rooms use them."""

from tenfold.checkpoints import load_strictly, read_checkpoint, read_torch_file
from tenfold.model_folder import MANIFEST, WEIGHTS, Manifest, load_manifest, load_weights, save_model
from tenfold.onnx import OnnxExport, export_onnx, onnx_session

__all__ = [
    "MANIFEST", "WEIGHTS", "Manifest", "OnnxExport", "export_onnx", "load_manifest", "load_strictly", "load_weights",
    "onnx_session", "read_checkpoint", "read_torch_file", "save_model",
]  # fmt: skip
