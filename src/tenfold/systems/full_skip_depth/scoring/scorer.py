"""A scorer that takes images one by one, or files, under one or several protocols at once."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import files_below
from tenfold.systems.full_skip_depth.scoring.boundaries import boundary_scores
from tenfold.systems.full_skip_depth.scoring.metrics import Pixels, errors_by_distance
from tenfold.systems.full_skip_depth.scoring.protocols import Protocol
from tenfold.systems.full_skip_depth.sets.depth_files import DEPTH_SUFFIXES, read_depth


@dataclass
class Score:
    """What predictions are worth under one protocol.

    Attributes:
        protocol: its name.
        text: what it does.
        metrics: means over images, by name.
        rows: numbers of each image, by name; NaN where one is not defined.
        names: of the images, in order.
        skipped: images without enough valid pixels.
        pixels: that counted, over all images.
        unusable: predicted values that were not finite or not above 0, on valid pixels or not.
        distances: by ``"low-high"`` in metres, ``abs_rel``, ``rmse`` and ``pixels``; means over images with any.
    """

    protocol: str
    text: str
    metrics: dict[str, float]
    rows: dict[str, list[float]]
    names: list[str]
    skipped: list[str]
    pixels: int
    unusable: int
    distances: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self, *, rows: bool = False) -> dict[str, Any]:
        """As plain values, with the images' own numbers where wanted."""
        answer: dict[str, Any] = {
            "protocol": self.protocol,
            "what": self.text,
            "images": len(self.names),
            "skipped": len(self.skipped),
            "pixels": self.pixels,
            "unusable_predictions": self.unusable,
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
        }
        if self.distances:
            answer["by_distance"] = self.distances
        if rows:
            per_image = zip(*self.rows.values(), strict=True)
            answer["rows"] = [
                {"image": name, **{k: None if math.isnan(v) else v for k, v in zip(self.rows, values, strict=True)}}
                for name, values in zip(self.names, per_image, strict=True)
            ]
        return answer


class DepthScorer:
    """Scores predictions image by image, so that memory does not grow with their number.

    Args:
        protocols: under which every image is scored.
        edges: of distance bins, in metres; none where empty.
        boundaries: also score depth edges; for dense truth.

    Example:
        >>> from tenfold.systems.full_skip_depth import PROTOCOLS, DepthScorer
        >>> scorer = DepthScorer([PROTOCOLS["all"]])
        >>> scorer.update(torch.full((4, 4), 2.0), torch.ones(4, 4), "one")
        >>> scorer.scores()[0].metrics["abs_rel"]
        1.0
    """

    def __init__(self, protocols: Sequence[Protocol], *, edges: Sequence[float] = (), boundaries: bool = False) -> None:
        if not protocols:
            raise UserError("name at least one protocol")
        if list(edges) != sorted(set(edges)) or len(edges) == 1:
            raise UserError(f"edges of distance bins must ascend, two or more; got {list(edges)}")
        self.protocols = list(protocols)
        self.edges = torch.tensor(edges, dtype=torch.float64)
        self.boundaries = boundaries
        self._rows: list[list[tuple[str, dict[str, float], Tensor | None]]] = [[] for _ in protocols]
        self._skipped: list[list[str]] = [[] for _ in protocols]
        self._pixels = [0] * len(protocols)
        self._bin_pixels = torch.zeros(len(protocols), max(len(edges) - 1, 0), dtype=torch.int64)
        self._unusable = 0

    def update(self, prediction: Tensor, truth: Tensor, name: str) -> None:
        """Take one image: ``(height, width)`` each; see ``Protocol.prepare``."""
        self.update_all(prediction[None], truth[None], [name])

    def update_all(self, predictions: Tensor, truths: Tensor, names: Sequence[str]) -> None:
        """Take a batch: ``(batch, height, width)`` each, and their names; the same as one by one, in less time."""
        low, high = torch.aminmax(predictions)  # one pass; NaN comes through
        if not (low > 0 and high < torch.inf):
            usable = (predictions > 0) & (predictions < torch.inf)
            self._unusable += predictions.numel() - int(torch.count_nonzero(usable))
        for index, protocol in enumerate(self.protocols):
            kept: list[str] = []
            seen: list[tuple[Tensor, Tensor]] = []
            maps: list[tuple[Tensor, Tensor, Tensor]] = []
            for prediction, truth, name in zip(predictions, truths, names, strict=True):
                try:
                    pixels = protocol.pixels(prediction, truth)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from None
                if len(pixels[0]) < max(1, protocol.least_pixels):
                    self._skipped[index].append(name)
                    continue
                kept.append(name)
                seen.append(pixels)
                if self.boundaries:
                    maps.append(protocol.prepare(prediction, truth))
            if kept:
                self._take(index, kept, seen, maps)

    def _take(
        self,
        index: int,
        names: Sequence[str],
        seen: Sequence[tuple[Tensor, Tensor]],
        maps: Sequence[tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        """Keep the rows of images under a protocol."""
        counts = [len(p) for p, _ in seen]
        p, d = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*seen, strict=True))
        pixels = Pixels.of_images(p, d, counts)
        found = dict(self.protocols[index].metrics(pixels))
        if maps:
            found |= boundary_scores(*(torch.stack(parts) for parts in zip(*maps, strict=True)))
        columns = {key: value.tolist() for key, value in found.items()}
        binned: Sequence[Tensor | None] = [None] * len(names)
        if len(self.edges):
            errors, in_bins = errors_by_distance(pixels, self.edges)
            binned = list(torch.stack([errors["abs_rel"], errors["rmse"]], 1))
            self._bin_pixels[index] += in_bins.sum(0).cpu()
        for place, name in enumerate(names):
            row = {key: values[place] for key, values in columns.items()}
            self._rows[index].append((name, row, binned[place]))
        self._pixels[index] += sum(counts)

    def scores(self) -> list[Score]:
        """One score per protocol.

        Raises:
            UserError: no image had valid pixels.
        """
        return [self._score(index) for index in range(len(self.protocols))]

    def _score(self, index: int) -> Score:
        protocol, kept = self.protocols[index], self._rows[index]
        if not kept:
            raise UserError(
                f"no image has valid pixels under protocol {protocol.name}: is the truth in metres, and are its files "
                "those of the predictions?"
            )
        rows = {key: [row[key] for _, row, _ in kept] for key in kept[0][1]}
        distances: dict[str, dict[str, float]] = {}
        if len(self.edges):
            means = torch.stack([binned for _, _, binned in kept if binned is not None]).nanmean(0)
            edges = self.edges.tolist()
            for n, (low, high) in enumerate(pairwise(edges)):
                count = int(self._bin_pixels[index, n])
                if count:
                    distances[f"{low:g}-{high:g}"] = {
                        "abs_rel": float(means[0, n]),
                        "rmse": float(means[1, n]),
                        "pixels": count,
                    }
        return Score(
            protocol=protocol.name,
            text=protocol.text,
            metrics={key: float(torch.tensor(values, dtype=torch.float64).nanmean()) for key, values in rows.items()},
            rows=rows,
            names=[name for name, _, _ in kept],
            skipped=self._skipped[index],
            pixels=self._pixels[index],
            unusable=self._unusable,
            distances=distances,
        )


@dataclass(frozen=True)
class FilePair:
    """A prediction's file and its truth's."""

    name: str
    prediction: Path
    truth: Path


def pair_files(
    predictions: str | Path, truth: str | Path, *, missing: bool = False, suffix: str | None = None
) -> tuple[list[FilePair], int]:
    """Files of two folders that belong together: of the same path within them, whatever the suffixes.

    Args:
        predictions: folder, searched in depth.
        truth: folder.
        missing: whether truth without a prediction is left out instead of refused.
        suffix: of the predictions' files, such as ``npy``, where a folder holds them in several forms.

    Returns:
        The pairs in order, and the number of truth files without a prediction.

    Raises:
        UserError: a folder is missing or empty, two files have one name, or truth has no prediction.
    """
    ours, theirs = _files_by_name(Path(predictions), suffix), _files_by_name(Path(truth))
    both = sorted(set(ours) & set(theirs))
    lacking = sorted(set(theirs) - set(ours))
    if not both:
        raise UserError(
            f"no file of {predictions} has the name of one of {truth}: the first are {min(ours)!r} and {min(theirs)!r}"
        )
    if lacking and not missing:
        raise UserError(
            f"{len(lacking)} of {len(theirs)} truth files have no prediction, the first is {lacking[0]!r}; leave them "
            "out with --missing true"
        )
    return [FilePair(name, ours[name], theirs[name]) for name in both], len(lacking)


def score_files(
    pairs: Sequence[FilePair],
    protocols: Sequence[Protocol],
    *,
    prediction_scale: float | None = None,
    truth_scale: float | None = None,
    resize: bool = False,
    edges: Sequence[float] = (),
    boundaries: bool = False,
    threads: int = 2,
) -> list[Score]:
    """Score prediction files; each is read once for all protocols, and few are in memory at a time.

    Args:
        pairs: see ``pair_files``.
        protocols: see ``DepthScorer``.
        prediction_scale: values per metre in the predictions' files; where ``None``, of PNG files the
            protocols' own, of others 1.
        truth_scale: the same for the truth.
        resize: whether predictions of another size are brought to the truth's, bilinearly (``align_corners=True``).
        edges: see ``DepthScorer``.
        boundaries: see there.
        threads: that decode files.

    Raises:
        UserError: a file cannot be read, or anything that ``DepthScorer`` refuses.
    """
    scales = {protocol.png_scale for protocol in protocols if protocol.png_scale is not None}
    if len(scales) > 1 and None in (prediction_scale, truth_scale):
        raise UserError(
            "the protocols belong to data sets of different scales: give --prediction_scale and --truth_scale"
        )
    own = scales.pop() if scales else None
    scorer = DepthScorer(protocols, edges=edges, boundaries=boundaries)

    def read_one(path: Path, scale: float | None) -> Tensor:
        of_protocol = own if path.suffix.lower() == ".png" else None  # other files hold metres
        return torch.from_numpy(read_depth(path, scale if scale is not None else of_protocol))

    def read(pair: FilePair) -> tuple[Tensor, Tensor]:
        return read_one(pair.prediction, prediction_scale), read_one(pair.truth, truth_scale)

    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)  # the images are small; the other threads decode
    try:
        for pair, (prediction, truth) in _read_ahead(pairs, read, threads):
            if resize and prediction.shape != truth.shape:
                prediction = F.interpolate(
                    prediction[None, None], size=tuple(truth.shape), mode="bilinear", align_corners=True
                )[0, 0]
            scorer.update(prediction, truth, pair.name)
    finally:
        torch.set_num_threads(threads_before)
    return scorer.scores()


def _read_ahead(pairs: Sequence[FilePair], read: Any, threads: int) -> Iterator[tuple[FilePair, tuple[Tensor, Tensor]]]:
    """What is read of each pair, in order, a few pairs ahead."""
    waiting: deque[tuple[FilePair, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for pair in pairs:
            waiting.append((pair, pool.submit(read, pair)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _files_by_name(folder: Path, suffix: str | None = None) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    suffixes = DEPTH_SUFFIXES if suffix is None else frozenset((f".{suffix.lower().lstrip('.')}",))
    if not suffixes <= DEPTH_SUFFIXES:
        raise UserError(f"--suffix names one of {', '.join(sorted(DEPTH_SUFFIXES))}; got {suffix!r}")
    found: dict[str, Path] = {}
    for path in files_below(folder, lambda path: path.suffix.lower() in suffixes)[0]:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(
                f"{folder} holds two files for {name!r}: {found[name].name} and {path.name}; of predictions say which "
                f"with --suffix {path.suffix.lstrip('.')}"
            )
        found[name] = path
    if not found:
        raise UserError(f"{folder} holds no depth files ({', '.join(sorted(suffixes))})")
    return found
