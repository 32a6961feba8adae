"""A look at a folder of pairs before anything is trained: partners, sizes, units, valid pixels, constant maps."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth.sets.depth_files import read_depth
from tenfold.systems.full_skip_depth.sets.frames import Frames, read_photo
from tenfold.systems.full_skip_depth.sets.pairs import Pair, Unpaired

SCALES = {1000.0: "millimetres", 256.0: "KITTI", 5000.0: "TUM RGB-D", 100.0: "centimetres", 1.0: "metres"}
_NAMED = 5


@dataclass(frozen=True)
class _Seen:
    pair: Pair
    problem: str = ""
    image_size: tuple[int, int] = (0, 0)
    depth_size: tuple[int, int] = (0, 0)
    valid: float = 0.0
    low: float = 0.0
    median: float = 0.0
    high: float = 0.0
    constant: bool = False


def examine(
    pairs: Sequence[Pair], lonely: Unpaired | None = None, *, depth_scale: float | None = None, threads: int = 2
) -> dict[str, Any]:
    """Read every file of every pair once and say what a training would stumble over.

    Args:
        pairs: to be looked at.
        lonely: files without a partner.
        depth_scale: values per metre; guessed from the values' range where ``None``.
        threads: that read.

    Returns:
        ``pairs``, ``image_sizes``, ``valid_share`` (mean), ``depth`` (5th, 50th and 95th per cent of the maps' medians,
        smallest and largest value, in metres of the scale used), ``depth_scale`` and ``guessed``, and ``findings``: a
        line for each kind of problem, with its number and the first files. No finding: nothing was found.
    """
    scale = depth_scale if depth_scale is not None else 1.0  # raw values, which the guess is made from
    with ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(lambda pair: _look(pair, scale), pairs))
    findings: list[str] = []
    if lonely is not None:
        _add(findings, "images without a depth map", [path.name for path in lonely.images])
        _add(findings, "depth maps without an image", [path.name for path in lonely.depths])
    _add(findings, "files that cannot be read", [one.problem for one in seen if one.problem])
    good = [one for one in seen if not one.problem]
    _add(
        findings,
        "pairs whose sizes differ",
        [
            "{} ({} x {}, depth {} x {})".format(one.pair.name, *one.image_size, *one.depth_size)
            for one in good
            if one.image_size != one.depth_size
        ],
    )
    _add(findings, "depth maps without a valid pixel", [one.pair.name for one in good if one.valid == 0])
    _add(findings, "depth maps of one value only", [one.pair.name for one in good if one.constant])
    usable = [one for one in good if one.valid > 0]
    answer: dict[str, Any] = {
        "pairs": len(pairs),
        "image_sizes": sorted({f"{one.image_size[0]} x {one.image_size[1]}" for one in good})[:8],
        "depth_scale": depth_scale,
        "guessed": False,
        "findings": findings,
    }
    if not usable:
        findings.append("there is no depth map with a valid pixel")
        return answer
    medians = np.array([one.median for one in usable])
    high = np.array([one.high for one in usable])
    if depth_scale is None:
        likely = likely_scales(float(np.median(medians)), float(np.percentile(high, 95)))
        answer["guessed"] = True
        answer["depth_scale"] = likely[0] if likely else None
        answer["possible_scales"] = {f"{value:g}": SCALES[value] for value in likely}
        factor = likely[0] if likely else 1.0
        if len(likely) != 1:
            findings.append(
                f"values of {np.median(medians):.4g} in the middle fit {len(likely)} usual scales "
                f"({', '.join(f'{v:g}: {SCALES[v]}' for v in likely) or 'none'}): say it with --depth_scale"
            )
    else:
        factor = 1.0
        unit = unit_problem(float(np.median(medians)), float(np.percentile(high, 95)))
        if unit:
            findings.append(unit)
    answer["valid_share"] = float(np.mean([one.valid for one in good]))
    answer["depth"] = {
        "least": min(one.low for one in usable) / factor,
        "median_5": float(np.percentile(medians, 5)) / factor,
        "median": float(np.median(medians)) / factor,
        "median_95": float(np.percentile(medians, 95)) / factor,
        "most": float(high.max()) / factor,
    }
    spread = medians.max() / max(medians.min(), 1e-9)
    if spread > 100:
        findings.append(f"the maps' medians differ by a factor of {spread:.3g}: are all in one unit?")
    return answer


def require_usable(frames: Frames, *, threads: int | None = None) -> tuple[int, set[tuple[int, ...]]]:
    """Read every frame once, before hours of training end at a damaged file or a size that does not fit.

    Args:
        frames: of any kind; what reading one raises is what is wrong with it.
        threads: that read; twice the cores where ``None``.

    Returns:
        Number of frames without a valid pixel, and the frames' sizes.

    Raises:
        UserError: some cannot be used, or none has a valid pixel.
    """
    sizes: set[tuple[int, ...]] = set()

    def look(index: int) -> str | bool:
        try:
            depth = frames[index][1]
        except UserError as error:
            return str(error)
        sizes.add(tuple(depth.shape))
        return bool((depth > 0).any())

    with ThreadPoolExecutor(threads or min(32, 2 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(look, range(len(frames))))
    bad = [one for one in found if isinstance(one, str)]
    if bad:
        more = f" ({len(bad)} of {len(found)} frames cannot be used; tenfold full-skip-depth doctor names all)"
        raise UserError(bad[0] + (more if len(bad) > 1 else ""))
    if not any(found):
        raise UserError(f"none of the {len(found)} frames has a valid pixel: look with tenfold full-skip-depth doctor")
    return found.count(False), sizes


def likely_scales(median: float, high: float) -> list[float]:
    """Usual scales under which values are depths of a scene: a median of 0.3 to 60 m and a far end of 0.6 to 300 m."""
    return [scale for scale in SCALES if 0.3 <= median / scale <= 60 and 0.6 <= high / scale <= 300]


def unit_problem(median: float, high: float) -> str:
    """What speaks against the unit of depths in metres; empty where nothing does."""
    if 0.1 <= median <= 150 and high >= 0.2:
        return ""
    likely = {1000.0: "millimetres", 100.0: "centimetres", 0.001: "kilometres"}
    fits = [f"{factor:g} ({name})" for factor, name in likely.items() if 0.3 <= median / factor <= 60]
    hint = f"; values in another unit? scale {' or '.join(fits)} would fit" if fits else ""
    return f"half of the depths lie above {median:.4g} m and the farthest at {high:.4g} m, which no scene is{hint}"


def _look(pair: Pair, scale: float) -> _Seen:
    try:
        image = read_photo(pair.image)
        if pair.depth is None:
            return _Seen(pair, f"{pair.name}: the list names no depth")
        depth = read_depth(pair.depth, scale)
    except UserError as error:
        return _Seen(pair, str(error))
    values = depth[depth > 0]
    size = (int(image.shape[1]), int(image.shape[2]))
    if not len(values):
        return _Seen(pair, image_size=size, depth_size=depth.shape)
    return _Seen(
        pair,
        "",
        size,
        depth.shape,
        len(values) / depth.size,
        float(values.min()),
        float(np.median(values)),
        float(values.max()),
        bool(len(values) > 1 and values.min() == values.max()),
    )


def _add(findings: list[str], what: str, names: Sequence[str | Path]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        findings.append(f"{len(names)} {what}: {', '.join(map(str, names[:_NAMED]))}{more}")
