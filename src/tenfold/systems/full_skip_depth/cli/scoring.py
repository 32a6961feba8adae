"""``evaluate``, ``score``, ``protocols``, ``evaluate-transformers``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.run import read_config
from tenfold.systems.full_skip_depth.delivery.models import load_network, served
from tenfold.systems.full_skip_depth.experiment.measuring import protocol_of, score_network
from tenfold.systems.full_skip_depth.experiment.settings import USUAL_MAX_DEPTH
from tenfold.systems.full_skip_depth.networks.transformers_depth import TransformersDepth
from tenfold.systems.full_skip_depth.scoring.protocols import PROTOCOLS, Protocol, find_protocol
from tenfold.systems.full_skip_depth.scoring.scorer import Score, pair_files, score_files
from tenfold.systems.full_skip_depth.sets.splits import DepthSplits, load_splits

_LOADED = (
    "images", "image_size", "depth_scale", "focal", "border", "train_list", "test_list", "validation", "test", "order",
    "skip_unpaired",
)  # fmt: skip


def evaluate(
    run: str,
    *,
    data: str | None = None,
    root: str | None = None,
    depth_scale: float | None = None,
    image_size: list[int] | None = None,
    protocol: list[str] | None = None,
    flip: bool = False,
) -> dict[str, Any]:
    """Measure a run's network again on test frames, under one or several protocols.

    Args:
        run: folder of the run.
        data: name of the data, where not those of the run: rooms, drive, pairs, csv, kitti or nyu.
        root: folder of the data, where not that of the run.
        depth_scale: values per metre of their depth files.
        image_size: [height, width] of the frames.
        protocol: names, see the verb protocols; where not given, that of the data set.
        flip: average with the mirrored prediction of the mirrored image.
    """
    network, manifest = load_network(run)
    config: dict[str, Any] = read_config(run) if (Path(run) / "config.yaml").exists() else {"data": {}}
    options: dict[str, Any] = dict(config["data"])
    if data is not None and data != options.get("name"):  # settings of the run's own data are not those of others
        options = {"root": None} if root is None else {}
        options["name"] = data
    given = {"root": root, "depth_scale": depth_scale, "image_size": image_size}
    options |= {name: value for name, value in given.items() if value is not None}
    if not options.get("name"):
        raise UserError(f"{run} names no data: name them with --data (and --root)")
    top = float(manifest.arguments["max_depth"])
    loaded = {name: options[name] for name in _LOADED if options.get(name) is not None}
    splits = load_splits(options["name"], options.get("root"), max_depth=top, seed=config.get("seed", 0), **loaded)
    return _scores(served(network, manifest), splits, top, protocol, flip)


def evaluate_transformers(
    folder: str,
    *,
    data: str = "rooms",
    root: str | None = None,
    depth_scale: float | None = None,
    image_size: list[int] | None = None,
    protocol: list[str] | None = None,
    max_depth: float | None = None,
    inverse: bool | None = None,
    flip: bool = False,
) -> dict[str, Any]:
    """Measure a depth model of transformers (DPT, Depth Anything, ...) from a local folder by the same protocols.

    Args:
        folder: the model's folder; nothing is fetched.
        data: name of the data: rooms, drive, pairs, csv, kitti or nyu.
        root: folder of the data.
        depth_scale: values per metre of their depth files.
        image_size: [height, width] of the frames.
        protocol: names; where not given, median for models of inverse depth and the data set's own for metric ones.
        max_depth: cap; that of the data set where not given.
        inverse: whether the model gives inverse depth; found in its config where not given.
        flip: average with the mirrored prediction of the mirrored image.
    """
    network = TransformersDepth(folder, inverse=inverse).eval()
    top = max_depth or USUAL_MAX_DEPTH.get(data, 80.0)
    options: dict[str, Any] = {"depth_scale": depth_scale} | ({"image_size": image_size} if image_size else {})
    splits = load_splits(data, root, max_depth=top, **options)  # type: ignore[arg-type]
    if network.inverse and protocol is None:
        protocol = ["median"]
    return _scores(network, splits, top, protocol, flip) | {"gives": "inverse depth" if network.inverse else "metres"}


def _scores(network: nn.Module, splits: DepthSplits, top: float, names: list[str] | None, flip: bool) -> dict[str, Any]:
    chosen = [find_protocol(name) for name in names] if names else [protocol_of(splits, top)]
    chosen = [p if p.max_depth is not None else replace(p, max_depth=top) for p in chosen]
    found = [score_network(network, splits.test, p, flip=flip, boundaries=splits.dense) for p in chosen]
    return {
        "data": splits.name,
        "flip_test": flip,
        "scores": [score.to_dict() for score in found],
        "notes": splits.notes,
    }


def score(
    predictions: str,
    truth: str,
    *,
    protocol: list[str] | None = None,
    prediction_scale: float | None = None,
    truth_scale: float | None = None,
    max_depth: float | None = None,
    resize: bool = False,
    missing: bool = False,
    suffix: str | None = None,
    distances: list[float] | None = None,
    boundaries: bool = False,
    out: str | None = None,
    threads: int = 2,
) -> str:
    """Score anybody's depth files against true ones, under one or several named protocols side by side.

    Args:
        predictions: folder of 16-bit PNG, NPY, NPZ, PFM or EXR files.
        truth: folder of files of the same names.
        protocol: names such as [kitti-garg-full, kitti-garg-cropped], see the verb protocols; all pixels if not given.
        prediction_scale: values per metre of the predictions' files; KITTI's 256 and NYU's 1000 are known by protocol.
        truth_scale: values per metre of the true files.
        max_depth: another cap than the protocol's.
        resize: bring predictions of another size to the truth's, bilinearly.
        missing: leave out truth without a prediction.
        suffix: of the predictions' files, such as npy, where a folder holds several forms, as that of predict does.
        distances: edges of distance bins in metres, such as [0, 10, 20, 40, 80].
        boundaries: also score depth edges, for dense truth.
        out: JSON file with all numbers, image by image.
        threads: that decode files.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1; got {threads}")
    chosen: list[Protocol] = [find_protocol(name, max_depth) for name in protocol or ["all"]]
    pairs, lacking = pair_files(predictions, truth, missing=missing, suffix=suffix)
    found = score_files(
        pairs,
        chosen,
        prediction_scale=prediction_scale,
        truth_scale=truth_scale,
        resize=resize,
        edges=distances or (),
        boundaries=boundaries,
        threads=threads,
    )
    if out is not None:
        write_atomically(out, json.dumps([score.to_dict(rows=True) for score in found], indent=1) + "\n")
    return _table(found, lacking)


def _table(scores: list[Score], lacking: int) -> str:
    lines: list[str] = []
    for names in dict.fromkeys(tuple(score.metrics) for score in scores):
        same = [score for score in scores if tuple(score.metrics) == names]
        width = max(len(score.protocol) for score in same) + 2
        lines.append(f"{'protocol':<{width}}{'images':>7}" + "".join(f"{name:>14}" for name in names))
        for score in same:
            cells = "".join(f"{value:>14.6f}" for value in score.metrics.values())
            lines.append(f"{score.protocol:<{width}}{len(score.names):>7}{cells}")
    lines += [f"{score.protocol}: {score.text}" for score in scores]
    for score in scores:
        for name, row in score.distances.items():
            lines.append(
                f"{score.protocol}, {name} m: abs rel {row['abs_rel']:.4f}, RMSE {row['rmse']:.3f} m, "
                f"{int(row['pixels']):,} pixels"
            )
        if score.skipped:
            lines.append(
                f"{score.protocol}: {len(score.skipped)} images without enough valid pixels are not in the means"
            )
    if scores[0].unusable:
        lines.append(f"{scores[0].unusable:,} predicted values were not finite or not above 0, and were clipped")
    if lacking:
        lines.append(f"{lacking} truth files without a prediction were left out, as asked")
    return "\n".join(lines)


def protocols() -> str:
    """List the protocols by name, with what each of them does."""
    width = max(map(len, PROTOCOLS)) + 2
    return "\n".join(f"{name:<{width}}{protocol.text}" for name, protocol in PROTOCOLS.items())
