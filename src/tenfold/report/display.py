"""How the pages show values: numbers for people, durations, and where a claim stands against its target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.results import Claim

MISSING = "–"
MINUS = "−"
SIGNIFICANT_DIGITS = 4
_PREFIXES = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6}

Value = str | float | int | None


def is_number(value: object) -> bool:
    """Whether a value is a finite number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Value) -> str:
    """A number for people: four significant digits, thousands apart, M, G, T and P from a million on.

    Integers keep all their digits; a missing or non-finite number is a dash; texts stay as they are.
    """
    if isinstance(value, str | bool):
        return str(value)
    if value is None or not math.isfinite(value):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    return _float(value).replace("-", MINUS)


def _float(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 1e18 or 0 < magnitude < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for prefix, factor in _PREFIXES.items():
        if magnitude >= factor:
            return f"{value / factor:.{SIGNIFICANT_DIGITS}g}\u00a0{prefix}"
    return f"{value:,.0f}" if magnitude >= 1000 else f"{value:.{SIGNIFICANT_DIGITS}g}"


def aligned(values: Sequence[Value]) -> list[str]:
    """Values that are read together, such as a column: with as many decimals each, so that their points align.

    Where one number of decimals would leave a number fewer than two significant digits, each is rounded on its own.
    """
    numbers = [float(value) for value in values if isinstance(value, int | float) and is_number(value)]
    largest = max(map(abs, numbers), default=0.0)
    smallest = min((abs(value) for value in numbers if value), default=0.0)
    if largest >= 1e6 or smallest < 1e-3 or not any(isinstance(value, float) for value in values):
        return [number(value) for value in values]
    decimals = max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(largest)))
    if smallest < 10 ** (1 - decimals) and smallest < largest:
        return [number(value) for value in values]
    while decimals and all(round(value, decimals) == round(value, decimals - 1) for value in numbers):
        decimals -= 1
    return [
        f"{value:,.{decimals}f}".replace("-", MINUS)
        if isinstance(value, int | float) and is_number(value)
        else number(value)
        for value in values
    ]


def listing(values: Sequence[float | None]) -> str:
    """A metric that is a list, in a table's cell: all of up to six values, else their count and both ends."""
    if not values:
        return MISSING
    if len(values) <= 6:
        return " · ".join(aligned(values))
    first, last = aligned([values[0], values[-1]])
    return f"{first} … {last} ({len(values)} values)"


def target(text: str) -> str:
    """A claim's target as mathematics writes it: ``">= -0.5"`` becomes ``"≥ −0.5"``."""
    for ascii_sign, sign in ((">=", "≥"), ("<=", "≤"), ("==", "="), ("-", MINUS)):
        text = text.replace(ascii_sign, sign)
    return text


def exact(value: Value) -> str:
    """A number with all its digits, as Python writes it; empty for anything else."""
    return repr(value) if is_number(value) else ""


def duration(seconds: float) -> str:
    """Wall-clock time for people, from seconds."""
    if seconds < 60:
        return f"{seconds:.2g}\u00a0s" if seconds < 1 else f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


@dataclass(frozen=True)
class ClaimScale:
    """Where a claim's value, interval and target lie on a small horizontal axis, in per cent of its length.

    Attributes:
        value: what was measured.
        interval: its 95 % confidence interval, if any.
        target: the number that the value is compared with.
        zone: from where to where the claim holds.
    """

    value: float
    interval: tuple[float, float] | None
    target: float
    zone: tuple[float, float]


def claim_scale(claim: Claim) -> ClaimScale | None:
    """The scale of a claim; ``None`` where nothing was measured."""
    if claim.value is None:
        return None
    comparison = claim.target.strip()
    target = float(comparison.lstrip("<>= "))
    shown = [claim.value, target, *(claim.interval or ())]
    middle = (min(shown) + max(shown)) / 2
    half = 0.6 * (max(shown) - min(shown))
    if half <= 1e-9 * max(map(abs, shown)):  # all in one place, rounding apart
        half = abs(target) or 1.0

    def place(number: float) -> float:
        return round(50 + 50 * (number - middle) / half, 2)

    zones = {">": (place(target), 100.0), "<": (0.0, place(target)), "=": (place(target), place(target))}
    interval = (place(claim.interval[0]), place(claim.interval[1])) if claim.interval else None
    return ClaimScale(place(claim.value), interval, place(target), zones[comparison[0]])
