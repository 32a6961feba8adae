"""The verbs ``audit`` and ``calibrate``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tenfold.data.images import LabelledImages
from tenfold.data.splits import ImageOptions
from tenfold.errors import UserError
from tenfold.export import MANIFEST
from tenfold.report import write_report
from tenfold.run import write_atomically
from tenfold.systems.condensation_audit.audit_report import AuditReport
from tenfold.systems.condensation_audit.auditing import audit as audit_set
from tenfold.systems.condensation_audit.auditing import audit_model
from tenfold.systems.condensation_audit.calibrating import CalibrationPlan
from tenfold.systems.condensation_audit.calibrating import calibrate as calibrate_scan
from tenfold.systems.condensation_audit.calibration import load_calibration
from tenfold.systems.condensation_audit.data import load_data
from tenfold.systems.condensation_audit.networks import factory_of, seeded_network
from tenfold.systems.condensation_audit.serving import load_served
from tenfold.systems.condensation_audit.set_files import load_set
from tenfold.systems.condensation_audit.sets import CondensedSet, Preprocessing, TrainingRecipe


def audit(
    subject: str,
    *,
    data: str | None = None,
    root: str | None = None,
    resize: int | None = None,
    validation: int = 600,
    networks: int = 3,
    calibration: str | None = None,
    out: str = "audit",
    published: bool = True,
    repairs: bool = True,
    allow_network: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> str:
    """Audit a condensed set or a model of somebody else's; exit code 0 clean, 10 suspicious, 11 backdoored, 12 unknown.

    Writes audit.json and report.html. Wrong input ends with code 2, prints no verdict and writes nothing.

    Args:
        subject: a condensed set, which may be marked as poisoned; or the folder of a model (of a run, or of an export).
        data: name of clean data of the same kind: digits, fashion-mnist, cifar10, folder ...
        root: folder of the data; TENFOLD_DATA where not given.
        resize: side to which clean images are brought; that of the set where not given and they differ.
        validation: clean images that are used, from the validation split.
        networks: trained on the set.
        calibration: file that calibrate wrote; what is shipped where not given.
        out: folder to write.
        published: run the published defences, too.
        repairs: attribute a finding and measure repairs.
        allow_network: repeats the network of the set's recipe, where it is not one of this library's.
        seed: of everything random.
        device: cpu, cuda.
    """
    thresholds = load_calibration(calibration) if calibration else None
    options: dict[str, Any] = {"published": published, "seed": seed, "device": device, "progress": _tell}
    if not (Path(subject) / MANIFEST).exists():
        found = load_set(subject, allow_poisoned=True, allow_network=allow_network)
        clean = _clean(data, root, resize, validation, found.preprocessing, found)
        report = audit_set(found, clean, networks=networks, calibration=thresholds, repairs=repairs, **options)
    else:
        served, extra = load_served(subject, allow_network)
        if data is None:
            raise UserError("auditing a model needs clean data: name them with --data (and --root)")
        preprocessing = _preprocessing_of(subject, extra)
        clean = _clean(data, root, resize, validation, preprocessing, None)
        assert clean is not None
        report = audit_model(served.network, preprocessing, clean, **_control_of(subject, allow_network), **options)
    write_audit(report, out)
    answer = _in_words(report, out)
    if report.exit_code:
        print(answer)
        raise SystemExit(report.exit_code)
    return answer


def write_audit(report: AuditReport, folder: str | Path) -> None:
    """Write ``audit.json`` and ``report.html``.

    Args:
        report: of the audit.
        folder: made if need be.

    Raises:
        UserError: the folder cannot be written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}") from error
    write_atomically(place / "audit.json", json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    write_report(report.to_results(), place / "report.html", f"Audit: {report.verdict}")


def calibrate(
    out: str,
    *,
    data: str = "digits",
    root: str | None = None,
    resize: int | None = None,
    validation: int = 600,
    sets: int = 30,
    poisoned: int = 12,
    networks: int = 5,
    method: str = "dm",
    images_per_class: int = 10,
    network: str = "convnet",
    arguments: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Take the audit's thresholds from clean sets condensed from your data; an interrupted one goes on.

    Args:
        out: file to write; unfinished work is kept beside it.
        data: name of the data.
        root: their folder; TENFOLD_DATA where not given.
        resize: side to which images are brought.
        validation: clean images held out for the scans.
        sets: clean sets, at least 10.
        poisoned: poisoned sets, for the power.
        networks: trained on each set.
        method: condenser.
        images_per_class: of each set.
        network: name of the network.
        arguments: of the network, such as '{"width": 16, "depth": 2}'.
        recipe: how it is trained, such as '{"epochs": 200}'.
        settings: of the condenser, such as '{"iterations": 200}'.
        seed: of everything random.
        device: cpu, cuda.
    """
    prepared = load_data(_options(data, root, resize, validation))
    chosen = _recipe({"network": network, "arguments": arguments or {}, **(recipe or {})})
    plan = CalibrationPlan(
        sets=sets, poisoned=poisoned, networks=networks, method=method, images_per_class=images_per_class,
        network=network, arguments=arguments or {}, recipe=chosen, settings=settings or {}, seed=seed,
    )  # fmt: skip
    kept = Path(f"{out}.unfinished")
    made = calibrate_scan(prepared.real, prepared.held_out, plan, device=device, kept=kept, progress=_count("sets"))
    write_atomically(out, made.to_json())
    kept.unlink(missing_ok=True)
    return {
        "calibration": out, "threshold": round(made.threshold, 4), "false_alarms": made.false_alarms,
        "power": made.power_sentence(),
    }  # fmt: skip


def _recipe(values: dict[str, Any]) -> TrainingRecipe:
    try:
        return TrainingRecipe(**values)
    except TypeError as error:
        raise UserError(f"this is no training recipe: {error}") from error


def _options(data: str, root: str | None, resize: int | None, validation: int) -> ImageOptions:
    if validation < 2:
        raise UserError(f"the audit needs clean images: validation must be at least 2; got {validation}")
    return ImageOptions(data, root, validation=validation, resize=resize)  # type: ignore[arg-type]


def _clean(
    data: str | None, root: str | None, resize: int | None, validation: int, pre: Preprocessing,
    found: CondensedSet | None,
) -> LabelledImages | None:  # fmt: skip
    """Held-out clean images at the size of what is audited."""
    if data is None:
        return None
    height, width = pre.image_shape[1:]
    if resize is None and height == width:
        resize = height
    clean = load_data(_options(data, root, resize, validation)).held_out
    expected = None if found is None else len(found.classes)
    if expected is not None and len(clean.classes) != expected:
        raise UserError(f"the set has {expected} classes; the data {data!r} have {len(clean.classes)}")
    if clean.image_shape != pre.image_shape:
        raise UserError(f"what is audited takes images {pre.image_shape}; those of {data!r} are {clean.image_shape}")
    return clean


def _preprocessing_of(model: str, extra: dict[str, Any]) -> Preprocessing:
    from tenfold.export import load_manifest

    if extra.get("zca"):
        return load_set(Path(model) / extra["set"], allow_poisoned=True).preprocessing
    channels, height, width = load_manifest(model).arguments["image_shape"]
    return Preprocessing(tuple(extra["mean"]), tuple(extra["std"]), (channels, height, width))


def _control_of(model: str, allowed: str | None) -> dict[str, Any]:
    """How an untrained network of the model's kind is made, for the control."""
    from tenfold.export import load_manifest

    manifest = load_manifest(model)
    arguments = dict(manifest.arguments)
    shape, classes = arguments.pop("image_shape"), arguments.pop("num_classes")
    factory = factory_of(manifest.builder, image_shape=shape, num_classes=classes, **arguments)
    seeded_network(factory, 0)  # fails now, not after the scan
    return {"factory": factory}


def _in_words(report: AuditReport, out: str) -> str:
    lines = [f"{report.verdict}: {report.reason}", report.calibration, report.power]
    lines += [f"note: {note}" for note in report.notes]
    lines.append("not tested: " + "; ".join(report.to_dict()["not_tested"]))
    lines.append(f"report: {Path(out) / 'report.html'}")
    return "\n".join(lines)


def _tell(step: str) -> None:
    print(f"{step} ...", file=sys.stderr, flush=True)


def _count(what: str) -> Callable[[int, int], None]:
    return lambda done, of: print(f"{done} of {of} {what}", file=sys.stderr, flush=True)
