"""Latency as a sum over blocks: each distinct block is timed once, a network costs the sum of its own.

A network is timed in seconds, and a search asks for thousands; a sum is known at once. It leaves out what blocks do to
each other (fusion, caches), so that it is believed only where it orders whole networks as their own times do:
Spearman's rank correlation of 0.9 on twenty of them, or it is refused.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.files import write_atomically
from tenfold.models.onnx import export_onnx, onnx_session
from tenfold.systems.backbone_search.detector.blocks import Activation, ConvBNAct
from tenfold.systems.backbone_search.detector.head import DecoupledHead, decode, make_grid
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan, make_block
from tenfold.systems.backbone_search.detector.pafpn import PAFPN
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan
from tenfold.systems.backbone_search.objectives.latency import clock_of

LEAST_CORRELATION = 0.9
"""Spearman's, of sums with whole networks; a table with less is refused."""

WHOLE_NETWORKS = 20
"""That a table is compared with."""

Timer = Callable[[Mapping[str, tuple[nn.Module, list[Tensor]]]], dict[str, float]]
"""Milliseconds of modules on their inputs, by name."""


@dataclass
class LookUpTable:
    """Milliseconds of blocks, measured when they are first met.

    Attributes:
        template: neck, head, classes; its backbone is replaced.
        height: of the input.
        width: of the input.
        timer: measures modules; onnxruntime on this machine by default.
        entries: milliseconds by block.
    """

    template: DetectorPlan
    height: int
    width: int
    timer: Timer
    entries: dict[str, float] = field(default_factory=dict)

    def milliseconds(self, plan: DetectorPlan) -> float:
        """The sum over a detector's parts.

        Raises:
            UserError: its backbone is not of the mobile family.
        """
        parts = self._parts(plan)
        self.measure([plan])
        return sum(self.entries[name] for name, _ in parts)

    def measure(self, plans: Iterable[DetectorPlan]) -> None:
        """Time those parts of detectors that are not known yet, all at once."""
        missing: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {}
        for plan in plans:
            missing |= {name: make for name, make in self._parts(plan) if name not in self.entries}
        if missing:
            self.entries |= self.timer({name: make() for name, make in missing.items()})

    def check(self, plans: Sequence[DetectorPlan], milliseconds: Sequence[float]) -> float:
        """Compare sums with the times of whole networks.

        Args:
            plans: different detectors, such as ``WHOLE_NETWORKS`` random ones.
            milliseconds: measured of each as a whole.

        Returns:
            Spearman's rank correlation.

        Raises:
            UserError: it is below 0.9, so that the table is not to be used.
        """
        from scipy.stats import spearmanr

        self.measure(plans)
        found = float(spearmanr([self.milliseconds(plan) for plan in plans], milliseconds).statistic)
        if not found >= LEAST_CORRELATION:
            raise UserError(
                f"the look-up table orders networks otherwise than their own times do (rank correlation {found:.2f} on "
                f"{len(plans)} networks, at least {LEAST_CORRELATION} is needed): measure whole networks, or on a "
                "machine with less else to do"
            )
        return found

    def save(self, path: Path) -> None:
        """Write the entries as JSON."""
        write_atomically(path, json.dumps(dict(sorted(self.entries.items())), indent=1) + "\n")

    def load(self, path: Path) -> None:
        """Read entries that ``save`` wrote.

        Raises:
            UserError: the file is not that.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.entries |= {str(name): float(value) for name, value in found.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is no look-up table: {error}") from error

    def _parts(self, plan: DetectorPlan) -> list[tuple[str, Callable[[], tuple[nn.Module, list[Tensor]]]]]:
        backbone = plan.backbone
        if not isinstance(backbone, MobilePlan):
            raise UserError("a look-up table is of mobile backbones; measure detectors of other families whole")
        height, width, act = self.height, self.width, backbone.act
        parts: list[tuple[str, Callable[[], tuple[nn.Module, list[Tensor]]]]] = []

        def add(name: str, make: Callable[[], nn.Module], *shapes: tuple[int, int, int]) -> None:
            parts.append((name, lambda: (make().eval(), [torch.zeros(1, *shape) for shape in shapes])))

        add(
            f"stem {backbone.stem} {act} {height}x{width}",
            lambda: ConvBNAct(3, backbone.stem, 3, 2, act=act),
            (3, height, width),
        )
        height, width, incoming, taps = -(-height // 2), -(-width // 2), backbone.stem, []
        for number, stage in enumerate(backbone.stages):
            for block in stage:
                parts.append(_block_part(block, incoming, height, width, act, backbone.se))
                height, width, incoming = -(-height // block.stride), -(-width // block.stride), block.width
            if number in backbone.taps:
                taps.append((incoming, height, width))
        maps, size = tuple(taps), (self.height, self.width)
        add(
            f"around {taps} {plan.neck} {plan.head} {plan.num_classes} {act}",
            lambda: _NeckAndHead(plan, [channels for channels, _, _ in maps], size),
            *maps,
        )
        return parts


def _block_part(
    block: BlockPlan, incoming: int, height: int, width: int, act: Activation, se: bool
) -> tuple[str, Callable[[], tuple[nn.Module, list[Tensor]]]]:
    inner = block.ranks if block.operator == "tucker" else block.expansion
    name = (
        f"{block.operator} {incoming}-{block.width} e{inner} k{block.kernel} s{block.stride} {height}x{width} {act}"
        f"{' se' if se else ''}{'' if block.residual else ' plain'}"
    )
    return name, lambda: (make_block(block, incoming, act, se).eval(), [torch.zeros(1, incoming, height, width)])


class _NeckAndHead(nn.Module):
    """Neck, head and decoding, which depend on the maps at the taps only."""

    def __init__(self, plan: DetectorPlan, taps: Sequence[int], size: tuple[int, int]) -> None:
        super().__init__()
        c3, c4, c5 = taps
        self.neck = PAFPN((c3, c4, c5), plan.neck, plan.depth, plan.depthwise, plan.backbone.act)
        self.head = DecoupledHead(plan.neck, plan.head, plan.num_classes, plan.depthwise, plan.backbone.act)
        self.size = size

    def forward(self, *maps: Tensor) -> Tensor:
        raw = self.head(self.neck(maps))
        places, strides = make_grid(*self.size)
        return torch.cat([decode(raw, places, strides), raw[..., 4:].sigmoid()], -1)


class _SideBySide(nn.Module):
    """Modules that have nothing to do with each other, in one graph: one export for all of them."""

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.inputs = nn.ModuleList(modules), list(inputs)

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        outputs, place = [], 0
        for part, count in zip(self.parts, self.inputs, strict=True):
            outputs.append(part(*tensors[place : place + count]))
            place += count
        return outputs


def onnx_timer(threads: int = 1, runs: int = 50, warmup: int = 10) -> Timer:
    """Median milliseconds of each module in onnxruntime on this machine.

    Args:
        threads: of onnxruntime.
        runs: timed runs of each.
        warmup: runs before.
    """

    def measure(modules: Mapping[str, tuple[nn.Module, list[Tensor]]]) -> dict[str, float]:
        onnx = require("onnx", "onnx")
        from onnx.utils import Extractor

        counts = [len(inputs) for _, inputs in modules.values()]
        tensors = [tensor for _, inputs in modules.values() for tensor in inputs]
        names = [[f"x{row}_{k}" for k in range(count)] for row, count in enumerate(counts)]
        outputs = [f"y{row}" for row in range(len(counts))]
        times = {}
        with TemporaryDirectory() as folder:
            path = Path(folder) / "parts.onnx"
            export_onnx(
                _SideBySide([module for module, _ in modules.values()], counts).eval(), tensors, path,
                input_names=[name for own in names for name in own], output_names=outputs, tolerance=1e-3,
            )  # fmt: skip
            extractor = Extractor(onnx.load(str(path)))
            for row, (name, (_, inputs)) in enumerate(modules.items()):
                onnx.save(extractor.extract_model(names[row], [outputs[row]]), str(path))
                feeds = {key: value.numpy() for key, value in zip(names[row], inputs, strict=True)}
                times[name] = _median_ms(onnx_session(path, threads), feeds, runs, warmup, clock_of(threads))
        return times

    return measure


def _median_ms(session: Any, feeds: Mapping[str, Any], runs: int, warmup: int, clock: Callable[[], float]) -> float:
    times = []
    for run in range(warmup + runs):
        start = clock()
        session.run(None, dict(feeds))
        if run >= warmup:
            times.append((clock() - start) * 1000)
    return median(times)
