"""Monte-Carlo predictions of other libraries become scores."""

from typing import Any

import numpy as np

from tenfold.errors import UserError
from tenfold.files import first_line, printable, refuse_overwriting
from tenfold.models.checkpoints import read_safetensors
from tenfold.systems.activation_uncertainty.data.tables import check_scores_file, write_scores


def import_official(predictions: str, *, passes: int, out: str = "predictions.csv") -> dict[str, Any]:
    """Turn Monte-Carlo predictions of torch-uncertainty or lightning-uq-box into scores by this system's definition.

    There are no official checkpoints. Predictions are taken as their authors lay them out: samples outer, one after the
    other.

    Args:
        predictions: .npy or .safetensors file with one array (passes * rows, classes) of probabilities, or (passes *
            rows,) of values.
        passes: how many passes it holds.
        out: .csv or .parquet file to write: id, prediction, uncertainty.
    """
    check_scores_file(out)
    refuse_overwriting(out, predictions)
    array = _one_array(predictions)
    if passes < 2 or len(array) % passes:
        raise UserError(f"{predictions} holds {len(array)} rows, which are not {passes} passes of the same inputs")
    if not np.isfinite(array).all():
        raise UserError(f"{predictions} holds NaN or infinite values")
    values = array.reshape(passes, len(array) // passes, -1)
    mean, spread = values.mean(0), values.std(0, ddof=1)
    best = mean.argmax(1)
    rows = np.arange(len(mean))
    columns = {
        "id": rows,
        "prediction": best if mean.shape[1] > 1 else mean[:, 0],
        "uncertainty": spread[rows, best],
    }
    return {"rows": write_scores(out, [columns]), "scores": out}


def _one_array(path: str) -> np.ndarray:
    """The array in a file, as float64."""
    if path.endswith(".safetensors"):
        tensors = list(read_safetensors(path).values())
        if len(tensors) != 1:
            raise UserError(f"{printable(path)} holds {len(tensors)} arrays; give one")
        array = tensors[0].double().numpy()
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise UserError(f"cannot read the array {printable(path)}: {first_line(error)}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{printable(path)} is an archive of arrays; give a .npy file with one")
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu" or array.size == 0:
        raise UserError(
            f"{printable(path)} holds {array.dtype} of shape {array.shape}; give (passes * rows[, classes])"
        )
    return array.astype(np.float64)
