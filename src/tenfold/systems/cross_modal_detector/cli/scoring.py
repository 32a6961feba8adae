"""``evaluate``: a run's detector measured again; ``score``: anybody's nuScenes result file."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.run import read_config
from tenfold.systems.cross_modal_detector.delivery.models import ServedDetector, load
from tenfold.systems.cross_modal_detector.robustness.cases import measure_case, numbers_of, sensor_cases
from tenfold.systems.cross_modal_detector.scoring.nds import DetectionScores, score_boxes
from tenfold.systems.cross_modal_detector.scoring.results import read_results, truth_table, write_results
from tenfold.systems.cross_modal_detector.sets.load import DetectionSplits, load_frames


def evaluate(
    run: str,
    *,
    data: str | None = None,
    root: str | None = None,
    version: str | None = None,
    test: str | None = None,
    farthest: float | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Measure a run's detector again on test frames, with all sensors.

    Args:
        run: folder of the run.
        data: name of the data, where not those of the run: drive, nuscenes, infos or frames.
        root: folder of the data, where not that of the run.
        version: folder of nuScenes' tables.
        test: split, or file below root.
        farthest: distance to which boxes are scored, metres.
        out: nuScenes' result file to write.
    """
    served = load(run)
    splits = frames_to_test(run, served, data=data, root=root, version=version, test=test, farthest=farthest)
    samples = [served.read(frame) for frame in splits.test]
    names = [view.name for view in splits.test[0].cameras]
    has_image, has_lidar = served.detector.image is not None, served.detector.lidar is not None
    case = sensor_cases(names, image=has_image, lidar=has_lidar)[0]
    scores, found, _ = measure_case(served, splits.test, samples, case, splits.protocol)
    if out is not None:
        write_results(out, splits.test, found, served.classes, splits.protocol, camera=has_image, lidar=has_lidar)
    return {"data": splits.name, "frames": len(splits.test)} | numbers_of(scores) | {"notes": splits.notes}


def frames_to_test(
    run: str,
    served: ServedDetector,
    *,
    data: str | None = None,
    root: str | None = None,
    version: str | None = None,
    test: str | None = None,
    farthest: float | None = None,
) -> DetectionSplits:
    """The test frames of a run, or of other data.

    Raises:
        UserError: the run names no data, and none are given, or they are not there.
    """
    folder = Path(run)
    options: dict[str, Any] = dict(read_config(run)["data"]) if (folder / "config.yaml").exists() else {}
    if data is not None and data != options.get("name"):
        options = {"name": data}
    given = {"root": root, "version": version, "test": test, "farthest": farthest}
    options |= {name: value for name, value in given.items() if value is not None}
    if not options.get("name"):
        raise UserError(f"{run} names no data: name them with --data (and --root)")
    loaded = {name: options[name] for name in ("version", "train", "test", "farthest") if options.get(name) is not None}
    loaded["sweeps"] = served.sweeps
    place = options.get("root")
    if options["name"] == "world":
        loaded["farthest"] = options.get("farthest") or 18.0
        place = place or folder / "steps/world"
        if not Path(place).is_dir():
            raise UserError(f"the world that {run} was measured on is not there any more: name other data with --data")
    return load_frames(options["name"], place, classes=served.classes, to_train=False, **loaded)


def score(
    results: str,
    *,
    root: str,
    version: str = "v1.0-trainval",
    test: str = "val",
    by_distance: list[float] | None = None,
) -> dict[str, Any]:
    """Score a nuScenes result file of anybody's detector, without the devkit: mAP, NDS, by class and by distance.

    Args:
        results: the file.
        root: folder of nuScenes.
        version: folder of its tables.
        test: the split.
        by_distance: edges of ranges in metres, such as [0, 20, 30, 50].
    """
    splits = load_frames("nuscenes", root, version=version, train=test, test=test, sweeps=0, to_train=False)
    table = read_results(results, splits.test, splits.protocol)
    scores = score_boxes(
        truth_table(splits.test, splits.protocol), table, splits.protocol, edges=tuple(by_distance or ())
    )
    return scores_as_dict(scores) | {"frames": len(splits.test)}


def scores_as_dict(scores: DetectionScores) -> dict[str, Any]:
    """Plain numbers, as the devkit's summary names them."""
    return {
        "mean_ap": scores.mean_ap,
        "nd_score": scores.nds,
        "tp_errors": scores.mean_errors,
        "label_aps": {name: {str(at): value for at, value in part.items()} for name, part in scores.ap.items()},
        "label_tp_errors": scores.errors,
        "by_distance": scores.distances,
    }
