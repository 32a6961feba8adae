"""What the steps of a run found, and the numbers that claims, plots and tables are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ARM_NAMES = {
    "naive": "naive (fixed trigger)",
    "doorping": "doorping, as published",
    "doorping-valid": "doorping, legal pixels",
    "clean": "clean",
}


@dataclass
class Outcomes:
    """What the steps of a run found, each a row per seed.

    Attributes:
        methods: by method and images per class, of ``set_arms.measure_set``.
        attacks: by attack, of ``attack_arms.attack_set``.
        detections: by arm (``clean`` and the attacks), of ``attack_arms.defend``.
        full: accuracy with all real images.
        ablations: by axis and value, the outcome of each attack, one seed.
        transfer: by method and network, accuracies of the first seed.
        attack_transfer: by attack and network, the outcome of the first seed.
    """

    methods: dict[tuple[str, int], list[dict[str, Any]]]
    attacks: dict[str, list[dict[str, Any]]]
    detections: dict[str, list[dict[str, Any]]]
    full: list[dict[str, Any]]
    ablations: dict[str, dict[str, dict[str, Any]]]
    transfer: dict[str, dict[str, list[float]]]
    attack_transfer: dict[str, dict[str, dict[str, Any]]]


def accuracies(outcomes: Outcomes, method: str, size: int) -> list[float]:
    """Mean accuracy over networks in %, seed by seed."""
    return [100 * float(np.mean(row["accuracies"])) for row in outcomes.methods[method, size]]


def rates(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A rate of an attack, mean over networks in %, seed by seed."""
    return [100 * float(np.mean(row[name])) for row in rows]


def sizes_of(outcomes: Outcomes) -> list[int]:
    """Images per class that were tried."""
    return sorted({size for _, size in outcomes.methods})


def methods_of(outcomes: Outcomes) -> list[str]:
    """Methods that were tried."""
    return list(dict.fromkeys(method for method, _ in outcomes.methods))
