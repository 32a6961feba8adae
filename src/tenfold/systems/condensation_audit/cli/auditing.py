"""The verbs ``audit`` and ``calibrate``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError
from tenfold.export import MANIFEST, load_manifest
from tenfold.run import write_atomically
from tenfold.systems.condensation_audit.auditing.audit import audit as audit_set
from tenfold.systems.condensation_audit.auditing.audit import audit_model
from tenfold.systems.condensation_audit.auditing.calibrate import CalibrationPlan
from tenfold.systems.condensation_audit.auditing.calibrate import calibrate as calibrate_scan
from tenfold.systems.condensation_audit.auditing.page import write_audit
from tenfold.systems.condensation_audit.auditing.report import AuditReport
from tenfold.systems.condensation_audit.cli.options import (
    CleanChoice,
    Condensing,
    DataChoice,
    image_options,
    read_data,
)
from tenfold.systems.condensation_audit.data.load import load_data
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.calibration import load_calibration
from tenfold.systems.condensation_audit.networks.factories import factory_of, seeded_network
from tenfold.systems.condensation_audit.serving import load_served
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.sets.files import load_set


def audit(
    subject: str,
    clean: CleanChoice,
    *,
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
        clean: clean images of the same kind.
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
        images = _read_clean(clean, found.preprocessing, found)
        report = audit_set(found, images, networks=networks, calibration=thresholds, repairs=repairs, **options)
    else:
        served, extra = load_served(subject, allow_network)
        preprocessing = _preprocessing_of(subject, extra)
        images = _read_clean(clean, preprocessing, None)
        if images is None:
            raise UserError("auditing a model needs clean data: name them with --data (and --root)")
        report = audit_model(served.network, preprocessing, images, **_control_of(subject, allow_network), **options)
    write_audit(report, out)
    answer = _in_words(report, out)
    if report.exit_code:
        print(answer)
        raise SystemExit(report.exit_code)
    return answer


def calibrate(
    images: DataChoice,
    how: Condensing,
    *,
    out: str = "calibration.json",
    sets: int = 30,
    poisoned: int = 12,
    networks: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Take the audit's thresholds from clean sets condensed from your data; an interrupted one goes on.

    Args:
        images: the real images; those that are held out are scanned.
        how: method, network, recipe.
        out: file to write; unfinished work is kept beside it.
        sets: clean sets, at least 10.
        poisoned: poisoned sets, for the power.
        networks: trained on each set.
        seed: of everything random.
        device: cpu, cuda.
    """
    recipe = how.training_recipe()
    prepared = read_data(images)
    plan = CalibrationPlan(
        sets=sets,
        poisoned=poisoned,
        networks=networks,
        method=how.method,
        images_per_class=how.images_per_class,
        network=how.network,
        arguments=how.arguments or {},
        recipe=recipe,
        settings=how.settings or {},
        seed=seed,
    )
    kept = Path(f"{out}.unfinished")
    made = calibrate_scan(prepared.real, prepared.held_out, plan, device=device, kept=kept, progress=_count("sets"))
    write_atomically(out, made.to_json())
    kept.unlink(missing_ok=True)
    return {
        "calibration": out,
        "threshold": round(made.threshold, 4),
        "false_alarms": made.false_alarms,
        "power": made.power_sentence(),
    }


def _read_clean(choice: CleanChoice, pre: Preprocessing, found: CondensedSet | None) -> LabelledImages | None:
    """Held-out clean images at the size of what is audited."""
    if choice.data is None:
        return None
    if choice.validation < 2:
        raise UserError(f"the audit needs clean images: validation must be at least 2; got {choice.validation}")
    height, width = pre.image_shape[1:]
    side = height if height == width and (choice.data, height) != ("digits", 8) else None
    clean = load_data(image_options(choice.data, choice.root, side, choice.validation)).held_out
    expected = None if found is None else len(found.classes)
    if expected is not None and len(clean.classes) != expected:
        raise UserError(f"the set has {expected} classes; the data {choice.data!r} have {len(clean.classes)}")
    if clean.image_shape != pre.image_shape:
        raise UserError(
            f"what is audited takes images {pre.image_shape}; those of {choice.data!r} are {clean.image_shape}"
        )
    return clean


def _preprocessing_of(model: str, extra: dict[str, Any]) -> Preprocessing:
    if extra.get("zca"):
        return load_set(Path(model) / extra["set"], allow_poisoned=True).preprocessing
    channels, height, width = load_manifest(model).arguments["image_shape"]
    return Preprocessing(tuple(extra["mean"]), tuple(extra["std"]), (channels, height, width))


def _control_of(model: str, allowed: str | None) -> dict[str, Any]:
    """How an untrained network of the model's kind is made, for the control."""
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
