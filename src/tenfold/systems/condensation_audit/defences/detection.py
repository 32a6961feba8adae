"""The defences in one table: what each says of a set, or of a model, and of the networks trained on it.

Input-level defences (STRIP, the range guard) judge inputs, not sets: where a trigger is known they are given triggered
images, else clean ones; their alarm is that most of the inputs are flagged. The audit and the experiment speak of all
defences in these terms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.partition import spread_rows
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.activation_clustering import FEWEST, activation_clustering
from tenfold.systems.condensation_audit.defences.calibration import Calibration
from tenfold.systems.condensation_audit.defences.neural_cleanse import neural_cleanse
from tenfold.systems.condensation_audit.defences.neuron_stimulation import stimulate_neurons
from tenfold.systems.condensation_audit.defences.patch_scan import scan_patches
from tenfold.systems.condensation_audit.defences.range_guard import check_range
from tenfold.systems.condensation_audit.defences.spectral_signatures import spectral_signatures
from tenfold.systems.condensation_audit.defences.strip import strip
from tenfold.systems.condensation_audit.names import DEFENCES
from tenfold.systems.condensation_audit.training.ensembles import Ensemble

SCANNED, BLENDED = 300, 100
"""Clean images that a defence looks at, and inputs that input-level defences judge, at most."""

# Share of the inputs that must be flagged, and share of a class's variance along one direction, above which there is
# an alarm: clean classes of a few images have large shares, too.
_MOST_INPUTS, _ONE_DIRECTION = 0.5, 0.9
# Images of a class below which its features are not judged.
_FEWEST_JUDGED = 4


@dataclass(frozen=True)
class Detection:
    """What a defence says.

    Attributes:
        name: of the defence.
        flagged: whether it raises an alarm.
        score: its statistic; ``None`` where it has none.
        threshold: of the statistic, if it has one.
        classes: that it names.
        seconds: wall-clock time.
        note: what limits it.
    """

    name: str
    flagged: bool
    score: float | None
    threshold: float | None
    classes: list[int]
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Suspect:
    """What the defences look at.

    Attributes:
        ensemble: networks trained on the set; defences of one network look at the first.
        preprocessing: what they expect.
        clean: held-out clean images; ``SCANNED`` of them are used, spread over the classes.
        images: ``(n, channels, height, width)`` normalized training images, whose features are judged.
        labels: ``(n,)`` their classes.
        inputs: ``(m, channels, height, width)`` pixel units, for the defences that judge inputs; the first clean
            images where there are none.
        calibration: of the patch scan.
        seed: of what is random.
    """

    ensemble: Ensemble
    preprocessing: Preprocessing
    clean: LabelledImages
    images: Tensor | None = None
    labels: Tensor | None = None
    inputs: Tensor | None = None
    calibration: Calibration | None = None
    seed: int = 0

    @cached_property
    def scanned(self) -> LabelledImages:
        """The clean images that are used."""
        return self.clean.subset(spread_rows(self.clean.labels, min(SCANNED, len(self.clean))))

    @cached_property
    def labelled_features(self) -> tuple[Tensor, Tensor]:
        """``(n, d)`` features of the training images in the first network, and ``(n,)`` their classes."""
        if self.images is None or self.labels is None:
            raise UserError("this defence looks at the features of training images: there are none")
        device = next(self.ensemble.networks[0].parameters(), torch.zeros(())).device
        return Ensemble(self.ensemble.networks[:1]).features(self.images.to(device))[0].cpu(), self.labels.cpu()

    @property
    def judged(self) -> Tensor:
        """Inputs for the defences that judge inputs, in pixel units."""
        return self.scanned.images[:BLENDED].float() / 255 if self.inputs is None else self.inputs


def _patch_scan(suspect: Suspect) -> Detection:
    scanned, calibration = suspect.scanned, suspect.calibration
    sizes = calibration.sizes if calibration is not None and not calibration.provisional else None
    scan = scan_patches(suspect.ensemble, scanned.images, scanned.labels, suspect.preprocessing, sizes=sizes)
    evidence = scan.evidence if calibration is None else calibration.evidence_of(scan)
    threshold = 1.0 if calibration is None else calibration.threshold
    named = [target for target, best in enumerate(evidence.max(0)) if best > threshold]
    return _detection("patch scan", bool(named), float(evidence.max()), threshold, named, scan.seconds)


def _range_guard(suspect: Suspect) -> Detection:
    found = check_range(suspect.judged)
    alarm = float(found.flagged.double().mean()) > _MOST_INPUTS
    return _detection("range guard", alarm, found.score, found.threshold, [], found.seconds)


def _neural_cleanse(suspect: Suspect) -> Detection:
    network, pixels = suspect.ensemble.networks[0], suspect.scanned.images
    found = neural_cleanse(network, pixels, suspect.preprocessing, seed=suspect.seed)
    return _detection("neural cleanse", bool(found.flagged), found.score, found.threshold, found.flagged, found.seconds)


def _neuron_stimulation(suspect: Suspect) -> Detection:
    network, scanned = suspect.ensemble.networks[0], suspect.scanned
    found = stimulate_neurons(network, scanned.images, scanned.labels, suspect.preprocessing)
    return _detection(
        "neuron stimulation (ABS)", bool(found.flagged), found.score, found.threshold, found.flagged, found.seconds
    )


def _strip(suspect: Suspect) -> Detection:
    network, normalize = suspect.ensemble.networks[0], suspect.preprocessing.normalize
    device = next(network.parameters(), torch.zeros(())).device
    inputs, clean = (normalize(pixels.to(device)) for pixels in (suspect.judged, suspect.scanned.images))
    found = strip(network, inputs, clean, seed=suspect.seed)
    return _detection(
        "STRIP",
        found.score > _MOST_INPUTS,
        found.score,
        _MOST_INPUTS,
        [],
        found.seconds,
        "share of the inputs that it flags; of clean ones 5 %",
    )


def _activation_clustering(suspect: Suspect) -> Detection:
    found = activation_clustering(*suspect.labelled_features, fewest=_FEWEST_JUDGED, seed=suspect.seed)
    judged = [entry for entry in found.classes if not entry.note]
    note = found.classes[0].note if not judged else ""
    if any(entry.images < FEWEST for entry in judged):
        note = f"classes of fewer than {FEWEST} images: those of clean sets are flagged, too"
    return _detection(
        "activation clustering",
        bool(found.flagged),
        found.score,
        found.silhouette_threshold,
        found.flagged,
        found.seconds,
        note,
    )


def _spectral_signatures(suspect: Suspect) -> Detection:
    found = spectral_signatures(*suspect.labelled_features, fewest=_FEWEST_JUDGED)
    named = [label for label, ratio in found.ratios.items() if ratio > _ONE_DIRECTION]
    note = f"{int(found.flagged.sum())} images to drop" if found.ratios else found.notes[0]
    return _detection("spectral signatures", bool(named), found.score, _ONE_DIRECTION, named, found.seconds, note)


def _detection(
    name: str,
    flagged: bool,
    score: float,
    threshold: float | None,
    classes: Sequence[int],
    seconds: float,
    note: str = "",
) -> Detection:
    finite = float(score) if math.isfinite(score) else None
    return Detection(name, bool(flagged), finite, threshold, [int(c) for c in classes], seconds, note)


_CALLS: Mapping[str, Callable[[Suspect], Detection]] = {
    "patch scan": _patch_scan,
    "range guard": _range_guard,
    "neural cleanse": _neural_cleanse,
    "neuron stimulation (ABS)": _neuron_stimulation,
    "STRIP": _strip,
    "activation clustering": _activation_clustering,
    "spectral signatures": _spectral_signatures,
}


def run_defences(suspect: Suspect, names: Sequence[str] | None = None) -> list[Detection]:
    """Run defences, one after the other.

    Args:
        suspect: what they look at.
        names: of ``names.DEFENCES``; all where ``None``.

    Raises:
        UserError: there is no such defence, or it needs what the suspect lacks.
    """
    for name in names or ():
        if name not in _CALLS:
            raise UserError(f"there is no defence {name!r}; there are: {', '.join(_CALLS)}")
    return [_CALLS[name](suspect) for name in (DEFENCES if names is None else names)]
