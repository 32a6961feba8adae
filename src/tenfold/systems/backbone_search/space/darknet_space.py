"""The space around YOLOX's own backbone: official Nano, Tiny and S weights can be the seed."""

from collections.abc import Mapping, Sequence
from math import prod

from tenfold.systems.backbone_search.detector.blocks import round8
from tenfold.systems.backbone_search.detector.darknet import DarknetPlan
from tenfold.systems.backbone_search.space.search_space import Choice, Genome, SearchSpace

_STAGES = ("stem", "dark2", "dark3", "dark4", "dark5")


class DarknetSpace(SearchSpace):
    """CSPDarknets around a seed: widths, depths, and one width ratio of the CSP layers' halves.

    Args:
        seed_network: the seed.
        multipliers: of widths, that the width genes choose from.
        ratios: that the ratio gene chooses from.
    """

    def __init__(
        self,
        seed_network: DarknetPlan,
        multipliers: Sequence[float] = (0.5, 0.625, 0.75, 0.875, 1, 1.25),
        ratios: Sequence[float] = (0.25, 0.375, 0.5, 0.75),
    ) -> None:
        self.network, self.multipliers = seed_network, tuple(multipliers)
        genes: dict[str, tuple[Choice, ...]] = {}
        seed: Genome = {}
        for stage, width in zip(_STAGES, seed_network.widths, strict=True):
            genes[f"{stage}.width"] = tuple(sorted({*(round8(width * m) for m in multipliers), width}))
            seed[f"{stage}.width"] = width
        for stage, depth in zip(_STAGES[1:], seed_network.depths, strict=True):
            genes[f"{stage}.depth"] = tuple(sorted({max(1, depth - 2), max(1, depth - 1), depth, depth + 1}))
            seed[f"{stage}.depth"] = depth
        genes["ratio"] = tuple(sorted({*ratios, seed_network.ratio}))
        seed["ratio"] = seed_network.ratio
        super().__init__(genes, seed)

    def plan(self, genome: Mapping[str, Choice]) -> DarknetPlan:
        """The backbone that a genome stands for."""
        widths = tuple(int(genome[f"{stage}.width"]) for stage in _STAGES)
        depths = tuple(int(genome[f"{stage}.depth"]) for stage in _STAGES[1:])
        own = self.network
        return DarknetPlan(widths, depths, float(genome["ratio"]), own.depthwise, own.stem, own.act)  # type: ignore[arg-type]

    def input_size(self, genome: Mapping[str, Choice]) -> None:
        """The input size is no gene here."""
        return

    def uniform(self) -> list[list[Genome]]:
        """Widths only, ratio only, depths only: each from the seed to the smallest."""

        def nearest(name: str, wanted: float) -> Choice:
            return min(self.genes[name], key=lambda choice: abs(float(choice) - wanted))

        widths = [
            {**self.seed, **{f"{s}.width": nearest(f"{s}.width", float(self.seed[f"{s}.width"]) * m) for s in _STAGES}}
            for m in sorted({m for m in self.multipliers if m <= 1}, reverse=True)
        ]
        own = float(self.seed["ratio"])
        ratios = [
            {**self.seed, "ratio": r} for r in sorted(self.genes["ratio"], key=float, reverse=True) if float(r) <= own
        ]
        depths = [
            {
                **self.seed,
                **{f"{s}.depth": nearest(f"{s}.depth", int(self.seed[f"{s}.depth"]) - d) for s in _STAGES[1:]},
            }
            for d in range(3)
        ]
        return [widths, ratios, depths]

    def size(self) -> int:
        """Number of different backbones: every gene always counts here."""
        return prod(len(choices) for choices in self.genes.values())
