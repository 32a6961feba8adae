"""``predict``: depth of photos, as 16-bit PNG, NPY, a coloured picture and a point cloud."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.files import files_below, make_folder, refuse_overwriting, write_atomically
from tenfold.systems.full_skip_depth.delivery.colours import coloured
from tenfold.systems.full_skip_depth.delivery.models import load_network, served
from tenfold.systems.full_skip_depth.delivery.onnx import OnnxDepth
from tenfold.systems.full_skip_depth.delivery.point_clouds import Intrinsics, write_ply
from tenfold.systems.full_skip_depth.networks.depth_network import predict_depth
from tenfold.systems.full_skip_depth.sets.depth_files import encode_depth_png
from tenfold.systems.full_skip_depth.sets.frames import read_photo
from tenfold.systems.full_skip_depth.sets.pairs import IMAGE_SUFFIXES
from tenfold.systems.full_skip_depth.sets.videos import VIDEO_SUFFIXES, read_video


def predict(
    run: str,
    inputs: list[str],
    *,
    out: str | None = None,
    png_scale: float = 1000,
    intrinsics: list[float] | None = None,
    size: str = "trained",
    flip: bool = False,
    every: int = 1,
    uncertainty: bool = False,
) -> str:
    """Predict depth of photos, folders of photos, and videos; one JSON line per photo or frame.

    Args:
        run: folder of the run.
        inputs: photos, folders of them, or videos, whose frames are NAME-000000, NAME-000001, ....
        out: folder that gets NAME.png (16 bits), NAME.npy (metres), NAME-colour.png and, with intrinsics, NAME.ply.
        png_scale: values per metre of the 16-bit PNG: 1000 for millimetres, 256 as KITTI.
        intrinsics: [fx, fy, cx, cy] in pixels of the photos, or [f] with the centre in the middle; for point clouds,
            and for networks that rescale depth by the focal length.
        size: trained: photos are brought to the height that the network was trained at, and depth back; own: not.
        flip: average with the mirrored prediction of the mirrored photo.
        every: of a video each frame (1), each second (2), ....
        uncertainty: also write NAME-uncertainty.npy: half the difference, in metres, between the prediction and the
            mirrored prediction of the mirrored photo (Poggi et al., CVPR 2020); large where the network guesses.
    """
    _check(size, png_scale)
    network, manifest = load_network(run)
    trained = manifest.extra.get("image_size") if size == "trained" else None
    return _predict_all(
        served(network, manifest), inputs, trained, out, png_scale, intrinsics, flip, every, uncertainty
    )


def predict_onnx(
    file: str,
    inputs: list[str],
    *,
    out: str | None = None,
    png_scale: float = 1000,
    intrinsics: list[float] | None = None,
    size: str = "trained",
    flip: bool = False,
    every: int = 1,
    uncertainty: bool = False,
) -> str:
    """Predict depth of photos with an exported ONNX file; one JSON line per photo, as predict with a run.

    Args:
        file: made by export.
        inputs: photos, folders of them, or videos.
        out: folder that gets what predict writes.
        png_scale: values per metre of the 16-bit PNG.
        intrinsics: see predict.
        size: trained: photos are brought to the height that the network was trained at, and depth back; own: not.
        flip: average with the mirrored prediction of the mirrored photo.
        every: see predict.
        uncertainty: see predict.
    """
    _check(size, png_scale)
    model = OnnxDepth(file)
    trained = model.trained if size == "trained" else None
    return _predict_all(model, inputs, trained, out, png_scale, intrinsics, flip, every, uncertainty)


def _check(size: str, png_scale: float) -> None:
    if size not in ("trained", "own"):
        raise UserError(f"size is trained or own; got {size!r}")
    if not (np.isfinite(png_scale) and png_scale > 0):
        raise UserError(f"png_scale must lie above 0; got {png_scale}")


def _predict_all(
    model: nn.Module,
    inputs: list[str],
    trained: list[int] | None,
    out: str | None,
    png_scale: float,
    intrinsics: list[float] | None,
    flip: bool,
    every: int,
    uncertainty: bool,
) -> str:
    files = photos_of(inputs)
    folder = None if out is None else make_folder(out)
    if len({name for name, _ in files}) < len(files) and folder is not None:
        raise UserError("two of the photos have one name: predict folders one by one, each with an --out of its own")
    if folder is not None:
        for name, path in files:
            refuse_overwriting(folder / f"{name}.png", path)
    lines = []
    for name, path, frame, image in _images_of(files, every):
        given = camera_of(intrinsics, image.shape[1:])
        focal = given[0] if given else None
        depth = depth_of_photo(model, image, trained, focal, flip)
        line: dict[str, Any] = {
            "input": str(path),
            **({} if frame is None else {"frame": frame}),
            "height": image.shape[1],
            "width": image.shape[2],
            "depth_min": round(float(depth.min()), 4),
            "depth_median": round(float(np.median(depth)), 4),
            "depth_max": round(float(depth.max()), 4),
        }
        unsure = None
        if uncertainty:
            mirrored = depth_of_photo(model, image.flip(-1), trained, focal, False)[:, ::-1]
            unsure = np.abs(depth_of_photo(model, image, trained, focal, False) - mirrored) / 2
            line["uncertainty_median"] = round(float(np.median(unsure)), 4)
        if folder is not None:
            line["files"] = _write(folder / name, depth, image, given, png_scale, unsure)
        lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(lines)


def _images_of(files: list[tuple[str, Path]], every: int) -> Iterator[tuple[str, Path, int | None, Tensor]]:
    """Name, file, number of the frame and image of every photo and frame."""
    for name, path in files:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            for frame, image in read_video(path, every=every):
                yield f"{name}-{frame:06d}", path, frame, image
        else:
            yield name, path, None, read_photo(path)


def photos_of(inputs: list[str]) -> list[tuple[str, Path]]:
    """Names and files of photos and videos, those of folders in order.

    Raises:
        UserError: an input does not exist, or a folder holds no photos and no videos.
    """
    found: list[tuple[str, Path]] = []
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    for given in map(Path, inputs):
        if given.is_dir():
            inner, _ = files_below(given, lambda path: path.suffix.lower() in known)
            if not inner:
                raise UserError(f"{given} holds no photos or videos ({', '.join(sorted(known))})")
            found += [("-".join(p.relative_to(given).with_suffix("").parts), p) for p in inner]
        elif given.is_file():
            found.append((given.stem, given))
        else:
            raise UserError(f"there is no photo and no folder {given}")
    return found


def camera_of(intrinsics: list[float] | None, size: Any) -> Intrinsics | None:
    """fx, fy, cx, cy from four numbers, or from a focal length alone.

    Raises:
        UserError: they are not these.
    """
    if intrinsics is None:
        return None
    if len(intrinsics) == 1:
        intrinsics = [intrinsics[0], intrinsics[0], (size[1] - 1) / 2, (size[0] - 1) / 2]
    if len(intrinsics) != 4 or not all(np.isfinite(intrinsics)) or min(intrinsics[:2]) <= 0:
        raise UserError(f"intrinsics are [fx, fy, cx, cy] or [f], in pixels; got {intrinsics}")
    return intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]


def depth_of_photo(
    model: nn.Module, image: Tensor, trained: list[int] | None, focal: float | None, flip: bool
) -> np.ndarray:
    """Depth ``(height, width)`` float32 metres of a photo ``(3, height, width)`` uint8.

    Where the height of training is given, the photo is brought to it (antialiased, its shape kept), its focal length
    with it, and depth back to the photo's size.
    """
    height, width = image.shape[1:]
    x = image[None].float() / 255
    scale = 1.0
    if trained is not None and trained[0] != height:
        scale = trained[0] / height
        x = F.interpolate(x, size=(trained[0], max(8, round(width * scale))), mode="bilinear", antialias=True)
    given = None if focal is None else torch.tensor([focal * scale])
    depth = predict_depth(model, x.clamp(0, 1), given, flip=flip)
    if depth.shape[1:] != (height, width):
        depth = F.interpolate(depth[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return depth[0].numpy()


def _write(
    stem: Path,
    depth: np.ndarray,
    image: Tensor,
    intrinsics: Intrinsics | None,
    png_scale: float,
    unsure: np.ndarray | None,
) -> list[str]:
    import io

    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    png, npy, colour = (stem.with_name(stem.name + end) for end in (".png", ".npy", "-colour.png"))
    write_atomically(png, encode_depth_png(depth, png_scale, str(png)))
    content = io.BytesIO()
    np.save(content, depth.astype(np.float32))
    write_atomically(npy, content.getvalue())
    content = io.BytesIO()
    low, high = np.percentile(depth, [2, 98])
    Image.fromarray(coloured(depth, float(low), float(high))).save(content, "PNG")
    write_atomically(colour, content.getvalue())
    written = [png, npy, colour]
    if intrinsics is not None:
        written.append(stem.with_name(stem.name + ".ply"))
        write_ply(written[-1], depth, pixels, intrinsics)
    if unsure is not None:
        written.append(stem.with_name(stem.name + "-uncertainty.npy"))
        content = io.BytesIO()
        np.save(content, unsure.astype(np.float32))
        write_atomically(written[-1], content.getvalue())
    return [str(path) for path in written]
