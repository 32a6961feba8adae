"""The verbs ``audit`` and ``calibrate``."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tenfold
from tenfold.data.images import LabelledImages
from tenfold.errors import UserError
from tenfold.files import make_folder, printable, refuse_overwriting, write_atomically
from tenfold.models.folder import MANIFEST, load_manifest
from tenfold.settings import Count, PositiveInt, Seed
from tenfold.systems.condensation_audit.auditing.audit import FEW, audit_model
from tenfold.systems.condensation_audit.auditing.audit import audit as audit_set
from tenfold.systems.condensation_audit.auditing.calibrate import CalibrationPlan, fingerprint, plan_like, prepared_like
from tenfold.systems.condensation_audit.auditing.calibrate import calibrate as calibrate_scan
from tenfold.systems.condensation_audit.auditing.page import write_audit
from tenfold.systems.condensation_audit.auditing.report import AuditReport
from tenfold.systems.condensation_audit.cli.options import CleanChoice, Condensing, DataChoice, usable_device
from tenfold.systems.condensation_audit.data.load import Data
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.defences.calibration import Calibration, load_calibration
from tenfold.systems.condensation_audit.networks.factories import Factory, seeded_network, untrained_like
from tenfold.systems.condensation_audit.serving import SYSTEM, factory_of_manifest, load_served
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.sets.files import load_set


def audit(
    subject: str,
    clean: CleanChoice,
    *,
    networks: PositiveInt = 3,
    calibration: str | None = None,
    calibrate: Count = 0,
    out: str = "audit",
    published: bool = True,
    repairs: bool = True,
    allow_network: str | None = None,
    seed: Seed = 0,
    device: str = "cpu",
) -> str:
    """Audit a condensed set or a model; exit code 0 clean, 10 suspicious, 11 backdoored, 12 unknown, 13 not calibrated.

    Writes audit.json and report.html. Wrong input ends with code 2, prints no verdict and writes nothing.

    Args:
        subject: a condensed set, which may be marked as poisoned; or the folder of a model (of a run, or of an export).
        clean: clean images of the same kind.
        networks: trained on the set.
        calibration: file that the verb calibrate wrote; what is shipped where not given.
        calibrate: clean sets that are condensed from your data as this one says that it was, to judge it by, at least
            10; they take minutes, and are kept in the folder for the next time.
        out: folder to write.
        published: run the published defences, too.
        repairs: attribute a finding and measure repairs.
        allow_network: repeats the network of the set's recipe, where it is not one of this library's.
        seed: of everything random.
        device: cpu, cuda.
    """
    usable_device(device)
    refuse_overwriting(out, subject)
    if calibrate and (calibrate < 10 or calibration or clean.data is None):
        raise UserError(
            "--calibrate takes the number of clean sets, at least 10, needs your data (--data), and stands instead of "
            "--calibration"
        )
    thresholds = load_calibration(calibration) if calibration else None
    options: dict[str, Any] = {"published": published, "seed": seed, "device": device, "progress": _tell}
    if not (Path(subject) / MANIFEST).exists():
        found = load_set(subject, allow_poisoned=True, allow_network=allow_network)
        images = None
        if clean.data is not None:
            data = clean.read(found.preprocessing.image_shape, found.source.get("reading"))
            if data.real.classes != found.classes:
                raise UserError(f"the classes of {subject} and of {clean.data} differ: they are not of the same data")
            images = _clean_of(data)
            if calibrate:
                plan = plan_like(found, data.real, sets=calibrate, poisoned=0, networks=networks, seed=seed)
                thresholds = _kept_calibration(data, images, found, plan, Path(out), device)
        report = audit_set(found, images, networks=networks, calibration=thresholds, repairs=repairs, **options)
    else:
        if calibration or calibrate:
            raise UserError("a model alone cannot be calibrated: --calibration and --calibrate are for sets")
        network, preprocessing, factory = _model_of(subject, allow_network)
        clean_images = _clean_of(clean.read(preprocessing.image_shape, _reading_of(load_manifest(subject).extra)))
        seeded_network(factory, 0)  # fails now, not after the scan
        report = audit_model(network, preprocessing, clean_images, factory=factory, **options)
    write_audit(report, out)
    answer = _in_words(report, out)
    if report.exit_code:
        print(answer)
        raise SystemExit(report.exit_code)
    return answer


def _model_of(subject: str, allowed: str | None) -> tuple[nn.Module, Preprocessing, Factory]:
    """A network of this system or of another, what its images go through, and what makes an untrained one like it."""
    manifest = load_manifest(subject)
    if manifest.system == SYSTEM:
        served, _ = load_served(subject, allowed)
        return served.network, served.preprocessing, factory_of_manifest(subject, manifest, allowed)
    network, images = tenfold.load_network(subject, factory=allowed)
    if images is None:
        raise UserError(f"{printable(subject)} does not say what its images go through")
    return network, Preprocessing(images.mean, images.std, images.image_shape), partial(untrained_like, network)


def calibrate(
    images: DataChoice,
    how: Condensing,
    *,
    like: str | None = None,
    allow_network: str | None = None,
    out: str = "calibration.json",
    sets: PositiveInt = 30,
    poisoned: Count = 12,
    networks: PositiveInt = 3,
    seed: Seed = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Take the audit's thresholds from clean sets condensed from your data; an interrupted one goes on.

    Args:
        images: the real images; those that are held out are scanned.
        how: method, network, recipe; of the set where --like names one.
        like: a set whose kind is calibrated: its own method, settings, network and recipe are used.
        allow_network: repeats the network of that set's recipe, where it is not one of this library's.
        out: file to write; unfinished work is kept beside it.
        sets: clean sets, at least 10.
        poisoned: poisoned sets, for the power.
        networks: trained on each set, as many as the audit trains.
        seed: of everything random.
        device: cpu, cuda.
    """
    usable_device(device)
    how.check()
    more: dict[str, Any] = {"sets": sets, "poisoned": poisoned, "networks": networks, "seed": seed}
    if like is not None:
        if how != Condensing() or images.resize is not None:
            raise UserError(
                "with --like the set itself says method, network, recipe, settings and size: leave them out"
            )
        found = load_set(like, allow_poisoned=True, allow_network=allow_network)
        choice = CleanChoice(images.data, images.root, images.validation, images.unreadable)
        prepared = choice.read(found.preprocessing.image_shape, found.source.get("reading"))
        real = prepared_like(found, prepared.real)
        plan = plan_like(found, prepared.real, **more)
    else:
        plan = CalibrationPlan(
            method=how.method,
            images_per_class=how.images_per_class,
            network=how.network,
            arguments=how.arguments or {},
            recipe=how.training_recipe(),
            settings=how.settings or {},
            **more,
        )
        prepared = images.read()
        real = prepared.real
    made = _calibrated(real, _clean_of(prepared), plan, Path(out), device)
    return {
        "calibration": out,
        "threshold": round(made.threshold, 4),
        "false_alarms": made.false_alarms,
        "power": made.power_sentence(),
    }


def _calibrated(real: RealData, clean: LabelledImages, plan: CalibrationPlan, out: Path, device: str) -> Calibration:
    kept = out.with_name(f"{out.name}.unfinished")
    made = calibrate_scan(real, clean, plan, device=device, kept=kept, progress=_count("sets"))
    write_atomically(out, made.to_json())
    kept.unlink(missing_ok=True)
    return made


def _kept_calibration(
    data: Data, clean: LabelledImages, found: CondensedSet, plan: CalibrationPlan, folder: Path, device: str
) -> Calibration:
    """The calibration of a set's kind from the auditor's data; one that the folder holds is used, if it is the same."""
    real, place = prepared_like(found, data.real), folder / "calibration.json"
    if place.exists():
        kept = load_calibration(place)
        if kept.made_from == fingerprint(real, clean, plan):
            _tell(f"using the calibration in {place}, made from the same data and settings")
            return kept
    make_folder(folder)
    return _calibrated(real, clean, plan, place, device)


def _clean_of(data: Data) -> LabelledImages:
    """Clean images, none of which was condensed: those held out, and test images where a class has few."""
    counts = torch.bincount(data.held_out.labels, minlength=len(data.held_out.classes))
    if int(counts.min()) >= 2 * FEW:
        return data.held_out
    both = (data.held_out, data.test)
    return LabelledImages(
        torch.cat([part.images for part in both]), torch.cat([part.labels for part in both]), data.held_out.classes
    )


def _reading_of(extra: dict[str, Any]) -> dict[str, Any]:
    reading = extra.get("preprocessing")
    return reading if isinstance(reading, dict) else {}


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
