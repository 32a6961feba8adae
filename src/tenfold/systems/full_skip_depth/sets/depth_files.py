"""Depth files: 16-bit PNG, NPY, NPZ, PFM, EXR, read to metres; and written."""

import re
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError, require
from tenfold.files import write_atomically

DEPTH_SUFFIXES = frozenset((".png", ".npy", ".npz", ".pfm", ".exr"))
LARGEST_PIXELS = 2**28

Depth = NDArray[np.float32]


def read_depth(path: str | Path, scale: float | None = None) -> Depth:
    """Read a depth map.

    Args:
        path: ``.png`` (16 bits), ``.npy``, ``.npz`` (the array ``depth``, or the only one), ``.pfm`` or ``.exr``.
        scale: stored values per metre: 256 for KITTI, 1000 for millimetres. PNG files hold whole numbers and need it;
            of the others 1 is taken.

    Returns:
        ``(height, width)`` float32 metres; 0 where there is no value (0, below 0, NaN or infinite).

    Raises:
        UserError: the file is missing, damaged, 8-bit, of another shape, or needs a scale.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        raise UserError(f"{path} is no depth file; known are {', '.join(sorted(DEPTH_SUFFIXES))}")
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise UserError(f"the depth scale must be above 0; got {scale}")
    if suffix == ".png" and scale is None:
        raise UserError(
            f"{path}: a PNG file holds whole numbers; say how many make a metre: 1000 for millimetres, 256 for KITTI "
            "(--depth_scale; of a run --data.depth_scale)"
        )
    readers = {".png": _read_png, ".npy": _read_npy, ".npz": _read_npz, ".pfm": _read_pfm, ".exr": _read_exr}
    values = readers[suffix](path)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {values.dtype} of shape {values.shape}, not one depth per pixel")
    # To floating point first: whole numbers divided by whole numbers would be cut.
    metres = values.astype(np.float32)
    if scale is not None and scale != 1:
        metres /= np.float32(scale)
    if values.dtype.kind == "f" or values.dtype.kind == "i":
        metres[~(np.isfinite(metres) & (metres > 0))] = 0
    return metres


def write_depth_png(path: str | Path, depth: Depth, scale: float) -> None:
    """Write metres as a 16-bit PNG; 0 stays «no value».

    Args:
        path: the file; written whole or not at all.
        depth: ``(height, width)`` in metres, 0 where there is no value.
        scale: steps per metre, such as KITTI's 256.

    Raises:
        UserError: a depth does not fit 16 bits at this scale, or the file cannot be written.
    """
    write_atomically(path, encode_depth_png(depth, scale, str(path)))


def encode_depth_png(depth: Depth, scale: float, name: str = "the depth map") -> bytes:
    """The bytes of a 16-bit PNG of metres; see ``write_depth_png``."""
    import io

    from PIL import Image

    values = np.rint(np.nan_to_num(depth, nan=0.0, posinf=np.inf) * scale)
    if values.size and values.max() > 65535:
        raise UserError(
            f"{name}: {depth.max():.4g} m does not fit 16 bits at {scale:g} values a metre; use a smaller one, or NPY"
        )
    content = io.BytesIO()
    Image.fromarray(np.maximum(values, 0).astype(np.uint16)).save(content, "PNG")
    return content.getvalue()


def write_pfm(path: str | Path, depth: Depth) -> None:
    """Write metres as a grey PFM file, little-endian, rows from the bottom."""
    header = f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode()
    write_atomically(path, header + np.ascontiguousarray(depth[::-1]).astype("<f4").tobytes())


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("I;16", "I", "I;16B", "I;16L"):
                raise UserError(
                    f"{path} is an image of mode {image.mode}, which has 8 bits a value: 256 depths are too few; "
                    "export depth as 16-bit grey PNG, or as NPY"
                )
            if image.width * image.height > LARGEST_PIXELS:
                raise UserError(
                    f"{path} has {image.width} x {image.height} pixels; at most {LARGEST_PIXELS:,} are read"
                )
            return np.asarray(image)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: there is no such file") from error
    except Exception as error:  # a damaged file can end the decoder anywhere
        raise UserError(f"{path} is damaged or no PNG file; copy or download it again") from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return _load_array(file, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _load_array(file: object, path: Path) -> np.ndarray:
    """An array whose header is looked at before anything of its size is made."""
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)  # type: ignore[arg-type]
        if dtype.hasobject or dtype.kind not in "fiu":
            raise UserError(f"{path} holds {dtype}, not numbers")
        count = int(np.prod(shape, dtype=np.int64)) if shape else 0
        if not 0 < count <= LARGEST_PIXELS:
            raise UserError(f"{path} holds an array of shape {shape}; from 1 to {LARGEST_PIXELS:,} pixels are read")
        content = file.read(count * dtype.itemsize)  # type: ignore[attr-defined]
        return np.frombuffer(content, dtype, count).reshape(shape, order="F" if fortran else "C")
    except UserError:
        raise
    except Exception as error:  # a damaged file can end the reader anywhere
        raise UserError(f"{path} is damaged or no NPY file; copy or download it again") from error


def _read_npz(path: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            name = "depth.npy" if "depth.npy" in names else names[0] if len(names) == 1 else None
            if name is None:
                known = ", ".join(n.removesuffix(".npy") for n in names[:5]) or "none"
                raise UserError(f"{path} holds no array 'depth' and not exactly one array; it holds: {known}")
            with archive.open(name) as file:
                return _load_array(file, path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: there is no such file") from error
    except Exception as error:
        raise UserError(f"{path} is damaged or no NPZ file; copy or download it again") from error


def _read_pfm(path: Path) -> np.ndarray:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    header = re.match(rb"Pf\s+(\d{1,6})\s+(\d{1,6})\s+(-?[0-9.eE+-]{1,24})\s", content)
    if header is None:
        raise UserError(f"{path} is no grey PFM file (it must begin with 'Pf', width, height and scale)")
    width, height = int(header[1]), int(header[2])
    try:
        order = "<f4" if float(header[3]) < 0 else ">f4"
        body = np.frombuffer(content, order, width * height, header.end())
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is shorter than its {width} x {height} pixels") from error
    return body.reshape(height, width)[::-1].astype(np.float32)


def _read_exr(path: Path) -> np.ndarray:
    library = require("OpenEXR", "depth")
    if not path.is_file():
        raise UserError(f"cannot read {path}: there is no such file")
    try:
        with library.File(str(path), separate_channels=True) as file:
            channels = file.channels()
            name = next((n for n in ("Z", "depth", "Depth", "Y", "R") if n in channels), next(iter(channels)))
            return np.array(channels[name].pixels)
    except Exception as error:
        raise UserError(f"{path} is damaged or no EXR file: {' '.join(str(error).split())[:100]}") from error
