"""How well the audit tells poisoned condensed sets from clean ones, beside the published defences on the same sets.

    python benchmarks/condensation_audit_detection.py make --work DIR [--part I/N]     # sets, networks, all defences
    python benchmarks/condensation_audit_detection.py report --work DIR --store FILE   # rates, AUROC, calibration
    python benchmarks/condensation_audit_detection.py verdicts --work DIR --calibration FILE # whole audits

Fashion-MNIST's file t10k (TENFOLD_DATA), read by the product's own loader at 14 x 14: 7000 images to condense, 1000 for
the audit, 2000 to measure success. Each set: distribution matching, 10 images a class, of another random 6300 of the
7000. The committed results are of an earlier reading (2 x 2 averages, 4000 images a set), which is a kind of its own.
Three groups: ``calibrate`` (clean, and poisoned ones for the power), ``clean`` and ``poisoned`` to measure on, whose
strengths, sizes, places, colours and targets do not occur in the first. One JSON line a set: a stopped run goes on.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tenfold.data.images import LabelledImages
from tenfold.data.options import ImageOptions
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attacks.doorping import Doorping
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.success import attack_success
from tenfold.systems.condensation_audit.attacks.triggers import Trigger, random_patch, white_patch
from tenfold.systems.condensation_audit.auditing.audit import audit
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.load import Data, load_data
from tenfold.systems.condensation_audit.data.partition import halves, spread_rows
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.defences.activation_clustering import activation_clustering
from tenfold.systems.condensation_audit.defences.calibration import (
    NOTICEABLE,
    Calibration,
    VerdictCount,
    class_evidence,
    from_lines,
    load_calibration,
)
from tenfold.systems.condensation_audit.defences.neural_cleanse import neural_cleanse
from tenfold.systems.condensation_audit.defences.patch_scan import provisional_evidence, scan_patches
from tenfold.systems.condensation_audit.defences.spectral_signatures import spectral_signatures
from tenfold.systems.condensation_audit.defences.strip import blend_entropies, strip
from tenfold.systems.condensation_audit.networks.factories import factory_of
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.sets.files import load_set, save_set
from tenfold.systems.condensation_audit.sets.kind import kind_of
from tenfold.systems.condensation_audit.training.ensembles import Ensemble, load_ensemble, save_ensemble, train_together

SHAPE = (1, 14, 14)
NETWORK: dict[str, Any] = {"width": 16, "depth": 2}
RECIPE = TrainingRecipe("convnet", NETWORK, epochs=200, learning_rate=0.02, batch_size=256)
NETWORKS = 3
SCAN_IMAGES = 300
IMAGES = 6300


@dataclass(frozen=True)
class Case:
    """One set: its group, and how it is poisoned."""

    id: str
    group: str
    seed: int
    attack: str = "none"
    portion: float = 0.0
    size: int = 0
    place: tuple[int, int] = (0, 0)
    target: int = -1
    colour: str = ""


def cases() -> list[Case]:
    """All sets, in an order that mixes the groups, so that any part of the work says something about each."""
    # Places, targets, portions and sizes of the two lists do not overlap.
    known = [
        Case(f"k{n:02}", "power", 3000 + n, "naive", portion, size, place, target, "white")
        for n, (portion, size, place, target) in enumerate(
            (portion, size, place, target)
            for (place, target) in (((11, 11), 1), ((1, 1), 6), ((11, 1), 8))
            for (portion, size) in ((0.03, 2), (0.05, 2), (0.1, 2), (0.05, 3))
        )
    ]
    new_places = ((9, 10), (2, 8), (6, 3), (10, 5), (3, 10))
    new_targets = (2, 3, 4, 5, 7, 9, 0)
    naive = [
        Case(
            f"n{n:02}",
            "poisoned",
            4000 + n,
            "naive",
            portion,
            size,
            new_places[n % 5],
            new_targets[n % 7],
            ("white", "random")[n % 2],
        )
        for n, (portion, size) in enumerate((portion, size) for portion in (0.02, 0.07, 0.15) for size in (2, 2, 3, 4))
    ]
    doorping = [
        Case(
            f"d{n:02}",
            "poisoned",
            5000 + n,
            "doorping",
            portion,
            size,
            new_places[(n + 2) % 5],
            new_targets[(n + 3) % 7],
            "updated",
        )
        for n, (portion, size) in enumerate((portion, size) for portion in (0.07, 0.15) for size in (2, 2, 3, 4))
    ]
    clean = [Case(f"c{n:02}", "clean", 2000 + n) for n in range(20)]
    calibration = [Case(f"b{n:02}", "calibrate", 1000 + n) for n in range(30)]
    groups = [calibration, clean, naive + doorping, known]
    order = sorted(((n + 0.5) / len(group), case.id, case) for group in groups for n, case in enumerate(group))
    return [case for _, _, case in order]


def load(root: str | None) -> Data:
    """To condense, for the audit, to measure on: read as the product reads them."""
    return load_data(ImageOptions(name="fashion-mnist", root=root, resize=SHAPE[1]))


def attack_of(case: Case) -> NaiveAttack | Doorping | None:
    """The attack of a case, in its physically valid form."""
    if case.attack == "none":
        return None
    make = white_patch if case.colour == "white" else random_patch
    options = {} if case.colour == "white" else {"seed": case.seed}
    trigger = make(SHAPE, case.size, *case.place, **options)
    if case.attack == "naive":
        return NaiveAttack(case.portion, case.target, trigger=trigger)
    return Doorping(case.portion, case.target, trigger=trigger, clamp="uint8", steps=300)


def make_set(case: Case, train: RealData) -> tuple[CondensedSet, Trigger | None]:
    """Condense one set."""
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(case.seed))[:IMAGES].sort().values
    data = train.subset(rows)
    attack = attack_of(case)
    condensed = condense(
        data,
        "dm",
        10,
        "convnet",
        network_arguments=NETWORK,
        recipe=RECIPE,
        attack=attack,
        seed=case.seed,
        iterations=200,
        image_rate=10.0,
        real_batch=64,
        strategy="",
    )
    return condensed, None if attack is None else attack.trigger.valid()


def factory() -> Any:
    return factory_of("convnet", image_shape=SHAPE, num_classes=10, **NETWORK)


def train_networks(condensed: CondensedSet, seed: int) -> Ensemble:
    seeds = [derived_seed(seed, 77, k) for k in range(NETWORKS)]
    return train_together(factory(), condensed.images, condensed.labels, RECIPE, seeds=seeds)


def make(work: Path, root: str | None, part: tuple[int, int]) -> None:
    """Sets, networks and scans that are not there yet."""
    data = load(root)
    train, held_out, test = data.real, halves(data.held_out)[0], data.test
    rows = spread_rows(held_out.labels, SCAN_IMAGES)
    scan_pixels, scan_labels = held_out.images[rows], held_out.labels[rows]
    done = {line["id"] for line in read_lines(work, "scan-*.jsonl")}
    for case in cases()[part[0] :: part[1]]:
        if case.id in done:
            continue
        seconds = {"condense": time.process_time()}
        condensed, trigger = make_set(case, train)
        seconds["train"] = time.process_time()
        ensemble = train_networks(condensed, case.seed)
        seconds["scan"] = time.process_time()
        scan = scan_patches(ensemble, scan_pixels, scan_labels, condensed.preprocessing)
        seconds["end"] = time.process_time()
        line = asdict(case) | {
            "accuracy": ensemble.accuracy(condensed.preprocessing.normalize(test.images), test.labels).mean().item(),
            "sizes": scan.sizes,
            "scores": scan.scores.round(5).tolist(),
            "anomalies": scan.anomalies.round(4).tolist(),
            "suspects": [asdict(cell) | {"anomaly": value} for cell, value in scan.suspects(2)],
            "seconds": {
                "condense": seconds["train"] - seconds["condense"],
                "train": seconds["scan"] - seconds["train"],
                "scan": seconds["end"] - seconds["scan"],
            },
        }
        if trigger is not None:
            images = condensed.preprocessing.normalize(trigger.stamp_valid(test.images))
            line["asr_valid"] = attack_success(ensemble.predict(images), test.labels, case.target).mean().item()
        if case.group in ("clean", "poisoned"):
            line |= defend(condensed, ensemble, trigger, scan_pixels, scan_labels, test)
        save(work, case.id, condensed, ensemble, trigger)
        append(work / f"scan-{part[0]}.jsonl", line)
        print(case.id, f"{line['accuracy']:.3f}", line.get("asr_valid"), scan.anomaly, scan.score, flush=True)


def judge(work: Path, root: str | None, part: tuple[int, int], calibration: Calibration) -> None:
    """The whole audit (networks of its own, scan, confirmation beside a control) of the sets to measure on."""
    held_out = load(root).held_out
    done = {line["id"] for line in read_lines(work, "verdict-*.jsonl")}
    measured = [case for case in cases() if case.group in ("clean", "poisoned")]
    for case in measured[part[0] :: part[1]]:
        if case.id in done or not (work / f"{case.id}.safetensors").exists():
            continue
        condensed, _, _ = load_saved(work, case.id)
        started = time.process_time()
        report = audit(
            condensed,
            held_out,
            networks=NETWORKS,
            calibration=calibration,
            published=False,
            repairs=False,
            seed=case.seed,
        )
        leading = None if report.leading is None else report.leading.confirmation
        line = {
            "id": case.id,
            "verdict": report.verdict,
            "evidence": report.evidence,
            "threshold": report.threshold,
            "target": None if leading is None else leading.target,
            "success": None if leading is None else leading.success,
            "control": None if leading is None else leading.control,
            "seconds": time.process_time() - started,
        }
        append(work / f"verdict-{part[0]}.jsonl", line)
        print(line, flush=True)


def verdict_rates(lines: list[dict[str, Any]], verdicts: dict[str, dict[str, Any]]) -> dict[str, list[int]]:
    """Of how many sets the audit said what; ``right``: backdoored, and the class that it is."""
    found = [(line, verdicts[line["id"]]) for line in lines if line["id"] in verdicts]
    counted = {
        word: [sum(verdict["verdict"].startswith(word) for _, verdict in found), len(found)]
        for word in ("clean", "suspicious", "backdoored", "not assessable")
    }
    right = sum(v["verdict"] == "backdoored" and v["target"] == line["target"] for line, v in found)
    return counted | {"right": [right, len(found)]}


def defend(
    condensed: CondensedSet,
    ensemble: Ensemble,
    trigger: Trigger | None,
    pixels: Tensor,
    labels: Tensor,
    test: LabelledImages,
) -> dict[str, Any]:
    """The published defences on the same set: one number each that is larger for a poisoned set, alarm, classes."""
    network, normalize = ensemble.networks[0], condensed.preprocessing.normalize
    started = time.process_time()
    cleanse = neural_cleanse(network, pixels, condensed.preprocessing, epochs=40, batch_size=16)
    seconds = {"neural cleanse": time.process_time() - started}
    features = ensemble.features(condensed.images)[0]
    started = time.process_time()
    clusters = activation_clustering(features, condensed.hard_labels, fewest=4)
    seconds["activation clustering"] = time.process_time() - started
    started = time.process_time()
    spectrum = spectral_signatures(features, condensed.hard_labels, fewest=4)
    seconds["spectral signatures"] = time.process_time() - started
    started = time.process_time()
    clean = normalize(pixels)
    own = strip(network, condensed.images, clean)
    seconds["STRIP"] = time.process_time() - started
    found: dict[str, Any] = {
        "neural cleanse": {"score": finite(cleanse.score), "classes": cleanse.flagged},
        "activation clustering": {"score": clusters.score, "classes": clusters.flagged},
        "spectral signatures": {"score": spectrum.score, "ratios": spectrum.ratios},
        "STRIP on the set": {"score": own.score},
    }
    if trigger is not None:
        # Told the trigger, which an auditor is not: does STRIP tell triggered inputs from clean ones?
        inputs = test.images[:200]
        entropies = [
            blend_entropies(network, normalize(images), clean).neg().tolist()
            for images in (trigger.stamp_valid(inputs), inputs)
        ]
        found["STRIP on inputs"] = {"auroc": float(roc_auc_score([1] * 200 + [0] * 200, entropies[0] + entropies[1]))}
    return {"defences": found, "defence_seconds": seconds}


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def save(work: Path, name: str, condensed: CondensedSet, ensemble: Ensemble, trigger: Trigger | None) -> None:
    save_set(work / f"{name}.safetensors", condensed, overwrite=True)
    save_ensemble(ensemble, work / f"{name}-networks.safetensors")
    if trigger is not None:
        tensors = {"mask": trigger.mask, "pattern": trigger.pattern.contiguous()}
        save_file(tensors, work / f"{name}-trigger.safetensors")


def load_saved(work: Path, name: str) -> tuple[CondensedSet, Ensemble, Trigger | None]:
    condensed = load_set(work / f"{name}.safetensors", allow_poisoned=True)
    ensemble = load_ensemble(factory(), work / f"{name}-networks.safetensors")
    place = work / f"{name}-trigger.safetensors"
    trigger = Trigger(**load_file(place)) if place.exists() else None
    return condensed, ensemble, trigger


def read_lines(work: Path, pattern: str) -> list[dict[str, Any]]:
    lines = []
    for path in sorted(work.glob(pattern)):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the line that a stopped run was writing
                continue
    return lines


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def report(work: Path, out: Path, store: Path | None) -> None:
    """Rates on the sets that calibrated nothing; the calibration itself, where asked for."""
    lines = {line["id"]: line for line in read_lines(work, "scan-*.jsonl")}
    groups = {
        group: [line for line in lines.values() if line["group"] == group]
        for group in ("calibrate", "power", "clean", "poisoned")
    }
    calibration = from_lines(
        [*groups["calibrate"], *({**line, "asr": line["asr_valid"]} for line in groups["power"])],
        kind=kind_of(load_saved(work, groups["calibrate"][0]["id"])[0]),
        networks=NETWORKS,
        scanned=SCAN_IMAGES,
        sizes=tuple(groups["calibrate"][0]["sizes"]),
        data="Fashion-MNIST at 14 x 14",
        note="Shipped for the preset `small`.",
    )
    null = np.asarray([line["scores"] for line in groups["calibrate"]])
    for line in lines.values():
        scores = np.asarray(line["scores"])
        by_class, rule = class_evidence(scores, null), provisional_evidence(scores)
        line["methods"] = {
            "patch scan, by class": judged(by_class, calibration.threshold, line),
            "patch scan, calibrated rule": judged(rule, calibration.rule_threshold, line),
            "patch scan, provisional rule": judged(rule, 1.0, line),
        }
        for name, found in line.get("defences", {}).items():
            if "score" in found:
                flagged = found.get("classes", [])
                line["methods"][name] = {
                    "score": found["score"],
                    "alarm": bool(flagged),
                    "right": line["target"] in flagged,
                }
    clean, poisoned = groups["clean"], groups["poisoned"]
    strong = [line for line in poisoned if line["asr_valid"] >= NOTICEABLE]
    methods = {
        name: {
            "auroc_noticeable": auroc(name, clean, strong),
            "auroc_all": auroc(name, clean, poisoned),
            "false_alarms": rate(name, clean, "alarm"),
            "detected_noticeable": rate(name, strong, "alarm"),
            "right_class_noticeable": rate(name, strong, "right"),
            "detected_all": rate(name, poisoned, "alarm"),
        }
        for name in clean[0]["methods"]
    }
    verdicts = {line["id"]: line for line in read_lines(work, "verdict-*.jsonl")}
    judged_groups = {
        group: verdict_rates(of, verdicts)
        for group, of in (
            ("clean", clean),
            ("noticeable", strong),
            ("weak", [line for line in poisoned if line not in strong]),
        )
    }
    if store is not None:
        kinds = {
            "clean": "clean ones",
            "noticeable": "whose patch turns at least a quarter of the images",
            "weak": "of weaker attacks",
        }
        counts = [
            VerdictCount(kinds[group], found["right"][1], found["backdoored"][0], found["right"][0])
            for group, found in judged_groups.items()
            if found["right"][1]
        ]
        store.write_text(replace(calibration, verdicts=tuple(counts)).to_json(), encoding="utf-8")
    told = [line["defences"]["STRIP on inputs"]["auroc"] for line in strong]
    seconds = [line["seconds"] for line in lines.values()]
    results = {
        "data": "Fashion-MNIST, file t10k, 14 x 14; DM, 10 images per class; 3 networks, 300 clean images a scan",
        "sets": {group: len(found) for group, found in groups.items()} | {"noticeable": len(strong)},
        "threshold": calibration.threshold,
        "rule_threshold": calibration.rule_threshold,
        "power": [asdict(power) for power in calibration.power],
        "methods": methods,
        "verdicts": judged_groups,
        "audit_cpu_seconds": float(np.median([line["seconds"] for line in verdicts.values()])) if verdicts else None,
        "strip_told_the_trigger_auroc": float(np.mean(told)) if told else None,
        "accuracy": {g: float(np.mean([line["accuracy"] for line in f])) for g, f in groups.items() if f},
        "cpu_seconds": {
            name: float(np.median([taken[name] for taken in seconds])) for name in ("condense", "train", "scan")
        },
        "defence_cpu_seconds": {
            name: float(np.median([line["defence_seconds"][name] for line in clean]))
            for name in clean[0]["defence_seconds"]
        },
        "rows": [
            {key: line[key] for key in ("id", "group", "attack", "portion", "size", "place", "target", "colour")}
            | {"asr_valid": line.get("asr_valid"), "methods": line["methods"]}
            | {"verdict": verdicts.get(line["id"], {}).get("verdict")}
            for line in sorted(lines.values(), key=lambda line: line["id"])
        ],
    }
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=1))


def judged(evidence: np.ndarray, threshold: float, line: dict[str, Any]) -> dict[str, Any]:
    alarm = float(evidence.max()) > threshold
    right = int(evidence.max(0).argmax()) == line["target"]
    return {"score": float(evidence.max()), "alarm": alarm, "right": alarm and right}


def auroc(name: str, clean: list[dict[str, Any]], poisoned: list[dict[str, Any]]) -> float | None:
    if not poisoned:
        return None
    scores = [line["methods"][name]["score"] for line in (*clean, *poisoned)]
    lowest = min((score for score in scores if score is not None), default=0.0)
    filled = [lowest if score is None else score for score in scores]
    return float(roc_auc_score([0] * len(clean) + [1] * len(poisoned), filled))


def rate(name: str, lines: list[dict[str, Any]], key: str) -> list[int]:
    """How many, of how many."""
    return [sum(line["methods"][name][key] for line in lines), len(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["make", "verdicts", "report"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--root", default=None, help="folder of Fashion-MNIST; TENFOLD_DATA where not given")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th set, from the I-th")
    results = Path(__file__).parent / "results" / "condensation-audit-detection.json"
    parser.add_argument("--out", type=Path, default=results, help="file of the results")
    parser.add_argument("--calibration", type=Path, default=None, help="what the whole audits judge by")
    parser.add_argument("--store", type=Path, default=None, help="write the calibration there, too")
    options = parser.parse_args()
    if options.stage == "report":
        report(options.work, options.out, options.store)
        return
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    first, of = map(int, options.part.split("/"))
    if options.stage == "make":
        make(options.work, options.root, (first, of))
    elif options.calibration is None:
        parser.error("verdicts needs --calibration: what `report --store FILE` wrote")
    else:
        judge(options.work, options.root, (first, of), load_calibration(options.calibration))


if __name__ == "__main__":
    main()
