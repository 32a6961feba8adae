"""One schema for the results of every system: ``results.json``.

A claim's verdict is computed from its value, interval and target when the claim is made, and checked again when a file
is read: a results file that says otherwise does not load.
"""

import base64
import binascii
import io
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tenfold.errors import UserError
from tenfold.files import regular

PICTURE_BYTES = 4 * 2**20
PICTURE_PIXELS = 2**24
_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_TARGET = re.compile(r"(>=|<=|>|<|==)\s*(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")

Number = Annotated[float | None, Field(description="a number; null where it could not be measured")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Verdict = Literal["holds", "does not hold", "not settled"]


class Claim(_Strict):
    """One statement of the paper, measured in this run.

    Attributes:
        id: short name, unique within the run.
        statement: what is claimed, in words.
        unit: unit of ``value``, such as ``"accuracy points"``.
        value: what was measured; ``None`` where it could not be.
        baseline: what it is measured against.
        target: comparison that decides, such as ``">= 0.5"``.
        verdict: see ``verdict_of``; computed, never typed.
        interval: 95 % confidence interval of ``value``, over seeds or test examples.
        chance: whether chance plays a part in ``value``; not in equalities of bits or counts of what can be counted.
        note: why it does not hold, or what limits it.
        by_seed: the value with each seed, in the order of the seeds, where it is a mean over seeds.
    """

    id: str
    statement: str
    unit: str
    value: Number
    baseline: str
    target: str
    verdict: Verdict
    interval: tuple[float, float] | None = None
    chance: bool = True
    note: str = ""
    by_seed: list[float] = []

    @model_validator(mode="before")
    @classmethod
    def _from_two_verdicts(cls, data: Any) -> Any:
        """Files of the first schema said ``holds``, true or false, by the value alone: their verdict is made anew."""
        if not isinstance(data, dict) or "holds" not in data or "verdict" in data:
            return data
        data = {name: value for name, value in data.items() if name != "holds"}
        target = str(data.get("target", ""))
        data.setdefault("chance", _plays_a_part(target))
        interval = data.get("interval")
        data["verdict"] = verdict_of(
            data.get("value"), target, tuple(interval) if interval else None, chance=data["chance"]
        )
        return data

    @model_validator(mode="after")
    def _verdict_is_computed(self) -> "Claim":
        computed = verdict_of(self.value, self.target, self.interval, chance=self.chance)
        if self.verdict != computed:
            raise ValueError(
                f"claim {self.id!r}: verdict {self.verdict!r}, but value {self.value} and interval {self.interval} "
                f"against {self.target!r} give {computed!r}"
            )
        return self

    @property
    def holds(self) -> bool:
        """Whether the verdict is ``holds``."""
        return self.verdict == "holds"


def meets(value: float | None, target: str) -> bool:
    """Whether ``value`` meets a ``target`` such as ``">= 0.5"``; a missing or non-finite value never does."""
    parsed = _TARGET.fullmatch(target.strip())
    if parsed is None:
        raise ValueError(f"target {target!r} is not a comparison with a number, such as '>= 0.5'")
    if value is None or not math.isfinite(value):
        return False
    return bool(_COMPARISONS[parsed[1]](value, float(parsed[2])))


def verdict_of(
    value: float | None, target: str, interval: tuple[float, float] | None = None, *, chance: bool = True
) -> Verdict:
    """What a measurement says about a target.

    Args:
        value: what was measured.
        target: comparison that decides, such as ``">= 0.5"``.
        interval: 95 % confidence interval of ``value``.
        chance: whether chance plays a part; where it does not, the value alone decides.

    Returns:
        ``holds``: the whole interval meets the target. ``does not hold``: none of it does. ``not settled``: it
        straddles the target, there is no interval though chance plays a part, or nothing was measured.
    """
    meets_target = meets(value, target)
    if value is None or not math.isfinite(value):
        return "not settled"
    if not chance:
        return "holds" if meets_target else "does not hold"
    if interval is None or not all(math.isfinite(end) for end in interval):
        return "not settled"
    met = [meets(end, target) for end in interval]
    if all(met):
        return "holds"
    within = interval[0] <= float(target.strip().lstrip("<>= ")) <= interval[1]
    return "not settled" if any(met) or (within and target.strip().startswith("==")) else "does not hold"


def _plays_a_part(target: str) -> bool:
    """What a target says about chance: an equality is of bits or of counts."""
    return not target.strip().startswith("==")


def claim(
    id: str,
    statement: str,
    *,
    value: float | None,
    target: str,
    unit: str,
    baseline: str,
    interval: tuple[float, float] | None = None,
    chance: bool | None = None,
    note: str = "",
    by_seed: Sequence[float] = (),
) -> Claim:
    """Make a claim; its verdict follows from what was measured.

    Args:
        id: see ``Claim``.
        statement: see there.
        value: see there.
        target: see there.
        unit: see there.
        baseline: see there.
        interval: see there; every claim of accuracy, error or score has one.
        chance: see there; by default not where the target is an equality.
        note: see there.
        by_seed: see there.
    """
    if value is not None and not math.isfinite(value):
        value = None
    if interval is not None and not all(math.isfinite(bound) for bound in interval):
        interval = None
    if chance is None:
        chance = _plays_a_part(target)
    return Claim(
        id=id,
        statement=statement,
        unit=unit,
        value=value,
        baseline=baseline,
        target=target,
        verdict=verdict_of(value, target, interval, chance=chance),
        interval=interval,
        chance=chance,
        note=note,
        by_seed=list(by_seed) if all(map(math.isfinite, by_seed)) else [],
    )


def count_verdicts(claims: Sequence[Claim]) -> str:
    """The verdicts in words: ``3 hold, 4 not settled, 1 does not hold``; those that do not occur are left out."""
    number = Counter(claim.verdict for claim in claims)
    words = {
        "holds": "holds" if number["holds"] == 1 else "hold",
        "not settled": "not settled",
        "does not hold": "does not hold" if number["does not hold"] == 1 else "do not hold",
    }
    parts = [f"{number[verdict]} {word}" for verdict, word in words.items() if number[verdict]]  # type: ignore[index]
    return ", ".join(parts) or "no claims"


class Cost(_Strict):
    """What the delivered model and the run cost.

    Attributes:
        params: parameters of the delivered model.
        flops: multiply-adds or FLOPs of one input; ``metrics`` or ``notes`` name the convention.
        seconds: wall-clock time of the run, over all its resumptions.
        peak_memory_mb: peak memory of the process (CPU) or of the device (GPU), in MiB.
    """

    params: int
    flops: float
    seconds: float
    peak_memory_mb: float


Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


class Series(_Strict):
    """One line, group of bars or cloud of points of a plot.

    Attributes:
        name: what the legend says.
        x: abscissae, or names of the bars.
        y: ordinates; ``None`` leaves a gap.
        error: half-widths of the error bars, if any.
        labels: what each point says of itself when it is pointed at, if anything.
        z: third coordinates, of a ``points`` plot.
        colours: a colour per point such as ``#1c2226``, of a ``points`` plot; that of the series where ``None``.
    """

    name: str
    x: list[float] | list[str]
    y: list[float | None]
    error: list[float] | None = None
    labels: list[str] | None = None
    z: list[float] | None = None
    colours: list[Colour] | None = None

    @model_validator(mode="after")
    def _same_length(self) -> "Series":
        further = (self.error, self.labels, self.z, self.colours)
        lengths = {len(self.x), len(self.y)} | {len(values) for values in further if values is not None}
        if len(lengths) != 1:
            raise ValueError(f"series {self.name!r}: x, y, error, labels, z and colours have different lengths")
        return self


class Plot(_Strict):
    """A plot of the report page.

    Attributes:
        id: short name, unique within the run.
        title: what it shows.
        kind: ``line``, ``bar`` (grouped), ``scatter``, or ``points``: in space, equal units along all axes, that the
            reader turns.
        x_label: abscissa, with its unit.
        y_label: ordinate, with its unit.
        series: what is drawn.
        log_x: whether the abscissa is logarithmic.
        caption: one or two sentences that say how to read it.
        z_label: third axis, with its unit, of ``points``.
    """

    id: str
    title: str
    kind: Literal["line", "bar", "scatter", "points"]
    x_label: str
    y_label: str
    series: list[Series]
    log_x: bool = False
    caption: str = ""
    z_label: str = ""

    @model_validator(mode="after")
    def _has_its_coordinates(self) -> "Plot":
        for series in self.series:
            if (series.z is not None) != (self.kind == "points"):
                raise ValueError(f"plot {self.id!r}: series of points have z, those of other plots have not")
        return self


class Table(_Strict):
    """A table of the report page; ``rows`` hold one cell per column."""

    id: str
    title: str
    columns: list[str]
    rows: list[list[str | float | int | None]]
    caption: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> "Table":
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.id!r}: a row has not {len(self.columns)} cells")
        return self


class Picture(_Strict):
    """A picture of the report page, small and whole in the results; ``tenfold.report.pictures`` makes them.

    Attributes:
        id: short name, unique within the run.
        title: what it shows.
        data: a PNG file in base64, of at most ``PICTURE_BYTES`` bytes and ``PICTURE_PIXELS`` pixels.
        alt: what is to be seen, for those who do not see it.
        caption: one or two sentences that say how to read it.
    """

    id: str
    title: str
    data: str
    alt: str
    caption: str = ""

    @model_validator(mode="after")
    def _is_a_png(self) -> "Picture":
        if not self.alt.strip():
            raise ValueError(f"picture {self.id!r}: alt does not say what is to be seen")
        problem = _png_problem(self.data)
        if problem:
            raise ValueError(f"picture {self.id!r}: {problem}")
        return self


def _png_problem(data: str) -> str:
    """What is wrong with a PNG in base64; nothing where it is empty."""
    from PIL import Image

    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return "data is not base64"
    if len(content) > PICTURE_BYTES:
        return f"data has {len(content):,} bytes; at most {PICTURE_BYTES:,} go into a page"
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > PICTURE_PIXELS:
                return f"it has {width} x {height} pixels; at most {PICTURE_PIXELS:,} go into a page"
            image.verify()  # the check sums of all parts, to the end mark
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except Exception:  # a damaged file can end the decoder anywhere
        return "data is not a whole PNG file"
    return ""


class Results(_Strict):
    """What a run found: ``results.json``, the same for every system.

    Attributes:
        system: command-line id, such as ``"boosted-exits"``.
        preset: ``tiny``, ``small`` or ``paper``.
        seed: first seed of the run.
        version: version of tenfold.
        claims: the paper's claims, measured here.
        summary: what the reader gets, in one sentence of measured numbers; opens the page.
        metrics: for each arm (ours, baselines, ablations) its numbers by name.
        cost: cost of the delivered model and of the run.
        environment: versions, device, threads, data.
        plots: what the report draws; the first opens the page.
        tables: what the report tabulates.
        pictures: what the report shows as it is, such as images of a set.
        notes: what a reader must know to judge the numbers.
    """

    system: str
    preset: str
    seed: int
    version: str
    claims: list[Claim]
    metrics: dict[str, dict[str, float | list[float | None] | None]]
    cost: Cost
    environment: dict[str, str | int | float | None]
    plots: list[Plot] = []
    tables: list[Table] = []
    pictures: list[Picture] = []
    notes: list[str] = []
    summary: str = ""

    def to_json(self) -> str:
        """The text of ``results.json``: keys in the schema's order, ends with a newline."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def load_results(path: str | Path) -> Results:
    """Read and validate a ``results.json``.

    Args:
        path: the file; of a run, ``RUN/results.json``.

    Raises:
        UserError: the file is missing, is not JSON, or does not follow the schema.
    """
    path = Path(path)
    try:
        return Results.model_validate_json(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; name the folder of a finished run") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is not a results file: {where}: {first['msg']}") from error
