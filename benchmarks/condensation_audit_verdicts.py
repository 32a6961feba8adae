"""Verdicts of the audit on clean and poisoned sets of several kinds that its calibration never saw.

    python benchmarks/condensation_audit_verdicts.py [--work DIR] [--part I/N] [--out FILE]

Fashion-MNIST's file t10k (TENFOLD_DATA), read by the product at 14 x 14: 7000 images to condense, 1000 for the auditor,
2000 to measure success. Every kind (width of the network, iterations of the condensation, epochs of training on the
set) is calibrated as a reader would, by ``calibrate`` from the auditor's data with the set's own declared settings.
Then 20 clean and 20 poisoned sets of each kind, with other seeds and other images, and triggers of kinds that the
calibration does not use. Each is audited whole. One JSON line a set: a stopped run goes on.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

import tenfold
from tenfold.data.options import ImageOptions
from tenfold.run import environment
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.success import attack_success
from tenfold.systems.condensation_audit.attacks.triggers import Trigger, image_trigger, patch_mask, random_patch
from tenfold.systems.condensation_audit.auditing.audit import audit
from tenfold.systems.condensation_audit.auditing.calibrate import CalibrationPlan, calibrate
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.load import load_data
from tenfold.systems.condensation_audit.defences.calibration import Calibration
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.training.quality import train_on

SHAPE = (1, 14, 14)
SETS = 20
"""Clean ones, and poisoned ones, of each kind."""
NETWORKS = 3
NOTICEABLE = 0.25
"""Share of the images that a trigger turns, from which an attack counts as one that works."""


@dataclass(frozen=True)
class Kind:
    """How sets of a kind are made."""

    width: int
    iterations: int
    epochs: int

    @property
    def name(self) -> str:
        """In words."""
        return f"width {self.width}, {self.iterations} iterations, {self.epochs} epochs"

    @property
    def making(self) -> dict[str, Any]:
        """What `condense` and a calibration's plan take alike."""
        network = {"width": self.width, "depth": 2}
        return {"recipe": TrainingRecipe("convnet", network, self.epochs, 0.02, 256), "arguments": network}

    @property
    def settings(self) -> dict[str, Any]:
        """Of the condenser."""
        return {"iterations": self.iterations, "image_rate": 10.0, "real_batch": 64, "strategy": ""}


KINDS = (Kind(16, 200, 200), Kind(24, 120, 120))


def triggers(seed: int) -> dict[str, Trigger]:
    """Of kinds that no calibration uses (white squares near the corners)."""
    generator = torch.Generator().manual_seed(seed)
    _, height, width = SHAPE
    stripes = torch.zeros(height, width, dtype=torch.bool)
    stripes[:, 3::5] = True
    corners = torch.zeros(height, width, dtype=torch.bool)
    corners[:2, :2] = corners[-2:, -2:] = True
    checked = patch_mask(SHAPE, 3, 6, 2)
    two = torch.zeros(SHAPE)
    two[:, ::2, ::2] = two[:, 1::2, 1::2] = 1.0
    return {
        "random square": random_patch(SHAPE, 2, 9, 10, seed=seed),
        "two colours": Trigger(checked, two * checked),
        "two corners": Trigger(corners, corners.float().expand(SHAPE).clone()),
        "stripes": Trigger(stripes, torch.ones(SHAPE) * stripes, "blend", 0.4),
        "blended noise": image_trigger(torch.rand(SHAPE, generator=generator), "blend", 0.25),
    }


PORTIONS = (0.04, 0.08, 0.15)


def cases() -> list[tuple[int, str, int]]:
    """Number of the kind, ``clean`` or ``poisoned``, number of the set; groups and kinds in turn."""
    return [(k, group, n) for n in range(SETS) for k in range(len(KINDS)) for group in ("clean", "poisoned")]


def calibration_of(kind: Kind, work: Path, data: Any, part: int) -> Calibration:
    """As a reader would make it; kept, so that it is made once."""
    plan = CalibrationPlan(
        sets=20, poisoned=0, networks=NETWORKS, settings=kind.settings, seed=77, share=0.9, **kind.making
    )
    kept = work / f"calibration-{KINDS.index(kind)}-of-{part}.jsonl"
    return calibrate(data.real, data.held_out, plan, kept=kept)


def measure(k: int, group: str, n: int, data: Any, calibration: Calibration) -> dict[str, Any]:
    """Condense one set and audit it."""
    kind, seed = KINDS[k], derived_seed(9000, k, group == "poisoned", n)
    rows = torch.randperm(len(data.real), generator=torch.Generator().manual_seed(seed))
    real = data.real.subset(rows[: round(0.9 * len(rows))].sort().values)
    attack, what, target, portion = None, "none", -1, 0.0
    if group == "poisoned":
        made = triggers(seed)
        what = list(made)[n % len(made)]
        target, portion = (3 * n + 2) % 10, PORTIONS[n % len(PORTIONS)]
        attack = NaiveAttack(portion, target, trigger=made[what])
    making = kind.making
    found = condense(
        real,
        "dm",
        10,
        "convnet",
        network_arguments=making["arguments"],
        recipe=making["recipe"],
        attack=attack,
        seed=seed,
        **kind.settings,
    )
    success = None
    if attack is not None:
        ensemble = train_on(found, seeds=[derived_seed(seed, 5, i) for i in range(NETWORKS)])
        images = found.preprocessing.normalize(attack.trigger.stamp_valid(data.test.images))
        success = float(attack_success(ensemble.predict(images), data.test.labels, target).mean())
    started = time.process_time()
    report = audit(
        found,
        data.held_out,
        networks=NETWORKS,
        calibration=calibration,
        published=False,
        repairs=False,
        seed=seed,
    )
    leading = None if report.leading is None else report.leading.confirmation
    return {
        "kind": kind.name,
        "group": group,
        "n": n,
        "trigger": what,
        "portion": portion,
        "target": target,
        "success": success,
        "verdict": report.verdict,
        "evidence": report.evidence,
        "threshold": report.threshold,
        "named": None if leading is None else leading.target,
        "uncalibrated": report.uncalibrated,
        "audit_seconds": time.process_time() - started,
    }


def rates(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of how many sets the audit said what, with the exact 95 % interval of the accused share."""
    words = ("clean", "suspicious", "backdoored", "not calibrated", "not assessable")
    counted: dict[str, Any] = {word: sum(line["verdict"].startswith(word) for line in lines) for word in words}
    accused = counted["suspicious"] + counted["backdoored"]
    counted |= {"sets": len(lines), "right class": sum(line["named"] == line["target"] for line in lines)}
    if lines:
        interval = binomtest(accused, len(lines)).proportion_ci(0.95)
        counted["accused"] = [accused / len(lines), interval.low, interval.high]
    return counted


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates by group, kind and trigger."""
    clean = [line for line in lines if line["group"] == "clean"]
    poisoned = [line for line in lines if line["group"] == "poisoned"]
    working = [line for line in poisoned if line["success"] >= NOTICEABLE]
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    return {
        "clean": rates(clean),
        "poisoned": rates(poisoned),
        "poisoned, trigger turns a quarter or more": rates(working),
        "clean by kind": {kind: rates([line for line in clean if line["kind"] == kind]) for kind in kinds},
        "working by kind": {kind: rates([line for line in working if line["kind"] == kind]) for kind in kinds},
        "working by trigger": {
            name: rates([line for line in working if line["trigger"] == name]) for name in triggers(0)
        },
    }


def read_lines(work: Path) -> list[dict[str, Any]]:
    """All finished sets; the line that a stopped run was writing is left out."""
    lines = []
    for path in sorted(work.glob("sets-*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def main() -> None:
    """Make what is missing, and write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs") / "audit-verdicts", help="folder of what is finished")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th set, from the I-th")
    results = Path(__file__).parent / "results" / "condensation-audit-verdicts.json"
    parser.add_argument("--out", type=Path, default=results, help="file of the results")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no further set after these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    first, of = map(int, options.part.split("/"))
    ends = time.monotonic() + 60 * options.minutes
    data = load_data(ImageOptions(name="fashion-mnist", resize=SHAPE[1]))
    done = {(line["kind"], line["group"], line["n"]) for line in read_lines(options.work)}
    calibrations: dict[int, Calibration] = {}
    for k, group, n in cases()[first::of]:
        if (KINDS[k].name, group, n) in done or time.monotonic() > ends:
            continue
        if k not in calibrations:
            calibrations[k] = calibration_of(KINDS[k], options.work, data, first)
        line = measure(k, group, n, data, calibrations[k])
        with (options.work / f"sets-{first}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)
    lines = read_lines(options.work)
    found = {
        "command": "python benchmarks/condensation_audit_verdicts.py",
        "version": tenfold.__version__,
        "environment": environment("cpu", data="Fashion-MNIST, file t10k, 14 x 14"),
        "summary": summary(lines),
        "sets": sorted(lines, key=lambda line: (line["kind"], line["group"], line["n"])),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
