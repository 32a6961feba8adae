"""The space of mobile backbones: width, depth and expansion of every stage and layer; kernels and operators on demand.

The paper's abstract names width, depth and expansion: mode ``paper``. Kernels and operators (mode ``full``) are a
reconstruction after MobileDet's space; so is the choice of values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.blocks import Activation, round8
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan
from tenfold.systems.backbone_search.space.search_space import Choice, Genome, SearchSpace

Mode = Literal["paper", "full"]


@dataclass(frozen=True)
class MobileSeed:
    """The seed network of a mobile space, stage by stage, and the values that genes may take.

    Attributes:
        stem: channels of the stem.
        widths: seed width of each stage.
        depths: seed number of blocks of each stage.
        expansions: seed expansion of each stage; a stage of 1 keeps it.
        kernels: seed kernel of each stage.
        strides: of each stage's first block.
        taps: stages whose outputs the neck reads.
        multipliers: of widths, that the width genes choose from.
        expansion_choices: that the expansion genes choose from.
        fixed_depths: stages whose depth is no gene.
        act: activation.
        se: squeeze-and-excitation in every block.
    """

    stem: int = 16
    widths: tuple[int, ...] = (16, 24, 32, 72, 96, 144, 160)
    depths: tuple[int, ...] = (1, 1, 4, 4, 4, 4, 1)
    expansions: tuple[float, ...] = (1, 4, 6, 6, 6, 6, 6)
    kernels: tuple[int, ...] = (3, 3, 3, 5, 3, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    taps: tuple[int, int, int] = (2, 4, 6)
    multipliers: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875, 1, 1.25)
    expansion_choices: tuple[int, ...] = (2, 3, 4, 6, 8)
    fixed_depths: tuple[int, ...] = (0, 6)
    act: Activation = "silu"
    se: bool = False


SMALL_SEED = MobileSeed(
    stem=16, widths=(16, 24, 40, 64), depths=(1, 2, 2, 2), expansions=(4, 4, 4, 4), kernels=(3, 3, 5, 5),
    strides=(2, 2, 2, 2), taps=(1, 2, 3), fixed_depths=(0,),
)  # fmt: skip
"""A seed for small images and CPUs: four stages."""


class MobileSpace(SearchSpace):
    """Mobile backbones around a seed.

    Args:
        seed_network: see ``MobileSeed``; the default is the detector space at 320 to 416 pixels.
        mode: ``paper`` (width, depth, expansion) or ``full`` (kernel and operator, too).
        per_stage: one expansion, kernel and operator gene per stage instead of per layer.
        sizes: input sizes ``(height, width)`` to choose from, in ascending order; a gene where there are several.

    Raises:
        UserError: the seed's stages do not agree in number or have no maps at strides 8, 16 and 32, or an input size is
            no multiple of 32.

    Example:
        >>> space = MobileSpace(per_stage=True)
        >>> space.plan(space.seed).stages[2][0].width
        32
    """

    def __init__(
        self,
        seed_network: MobileSeed | None = None,
        mode: Mode = "paper",
        per_stage: bool = False,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.network = network = seed_network or MobileSeed()
        self.mode, self.per_stage = mode, per_stage
        stages = len(network.widths)
        for name in ("depths", "expansions", "kernels", "strides"):
            if len(getattr(network, name)) != stages:
                raise UserError(f"the seed has {stages} widths but {len(getattr(network, name))} {name}")
        if mode not in ("paper", "full"):
            raise UserError(f"the space's mode is paper or full; got {mode!r}")
        if any(height % 32 or width % 32 or height < 32 or width < 32 for height, width in sizes):
            raise UserError(f"input sizes must be multiples of 32; got {list(sizes)}")
        genes: dict[str, tuple[Choice, ...]] = {}
        seed: Genome = {}

        def add(name: str, choices: Sequence[Choice], value: Choice) -> None:
            genes[name] = tuple(sorted({*choices, value}, key=lambda c: (isinstance(c, str), c)))
            seed[name] = value

        if len(sizes) > 1:
            genes["size"] = tuple(f"{height}x{width}" for height, width in sizes)
            seed["size"] = genes["size"][-1]
        for i in range(stages):
            stage = f"s{i + 1}"
            width, depth = round8(network.widths[i]), network.depths[i]
            add(f"{stage}.width", [round8(width * m) for m in network.multipliers], width)
            deepest = depth
            if i not in network.fixed_depths:
                choices = [d for d in range(depth - 2, depth + 2) if 1 <= d <= 6]
                add(f"{stage}.depth", choices, depth)
                deepest = max([*choices, depth])
            for j in range(1 if per_stage else deepest):
                layer = stage if per_stage else f"{stage}.l{j + 1}"
                if network.expansions[i] != 1:
                    add(f"{layer}.expand", network.expansion_choices, network.expansions[i])
                if mode == "full":
                    add(f"{layer}.kernel", (3, 5, 7), network.kernels[i])
                    genes[f"{layer}.op"], seed[f"{layer}.op"] = ("ibn", "fused", "tucker"), "ibn"
        super().__init__(genes, seed)
        self.plan(seed).check()

    def _layers(self, genome: Mapping[str, Choice], i: int) -> list[str]:
        """The gene prefixes of a stage's blocks."""
        stage = f"s{i + 1}"
        depth = int(genome.get(f"{stage}.depth", self.network.depths[i]))
        return [stage if self.per_stage else f"{stage}.l{j + 1}" for j in range(depth)]

    def canonical(self, genome: Mapping[str, Choice]) -> Genome:
        """Genes of layers beyond a stage's depth, and the expansion of Tucker blocks, have no effect."""
        kept: Genome = {"size": genome["size"]} if "size" in self.genes else {}
        for i in range(len(self.network.widths)):
            stage = f"s{i + 1}"
            for name in (f"{stage}.width", f"{stage}.depth"):
                if name in genome:
                    kept[name] = genome[name]
            for layer in dict.fromkeys(self._layers(genome, i)):
                for part in ("expand", "kernel", "op"):
                    name = f"{layer}.{part}"
                    if name in genome and not (part == "expand" and genome.get(f"{layer}.op") == "tucker"):
                        kept[name] = genome[name]
        return kept

    def plan(self, genome: Mapping[str, Choice]) -> MobilePlan:
        """The backbone that a genome stands for."""
        network, stages = self.network, []
        for i in range(len(network.widths)):
            blocks = []
            for j, layer in enumerate(self._layers(genome, i)):
                operator: Any = genome.get(f"{layer}.op", "ibn")
                # The first stage of expansion 1 keeps MobileNet's light block whatever the operator gene says.
                expansion = float(genome.get(f"{layer}.expand", network.expansions[i]))
                blocks.append(
                    BlockPlan(
                        operator,
                        int(genome[f"s{i + 1}.width"]),
                        network.strides[i] if j == 0 else 1,
                        int(genome.get(f"{layer}.kernel", network.kernels[i])),
                        expansion if operator != "tucker" else 1.0,
                    )
                )
            stages.append(tuple(blocks))
        return MobilePlan(round8(network.stem), tuple(stages), network.taps, network.act, network.se)

    def input_size(self, genome: Mapping[str, Choice]) -> tuple[int, int] | None:
        """Height and width of the input where it is a gene, else ``None``."""
        if "size" not in self.genes:
            return None
        height, width = str(genome["size"]).split("x")
        return int(height), int(width)

    def scaled(self, width: float = 1, expansion: float = 1, shallower: int = 0) -> Genome:
        """The seed with every width and expansion scaled to its nearest choice and every stage that much shallower."""
        genome = dict(self.seed)
        for name, choices in self.genes.items():
            part = name.rpartition(".")[2]
            if part == "depth":
                genome[name] = max(int(choices[0]), int(self.seed[name]) - shallower)
            elif part in ("width", "expand"):
                wanted = float(self.seed[name]) * (width if part == "width" else expansion)
                genome[name] = min(choices, key=lambda choice: abs(float(choice) - wanted))
        return genome

    def uniform(self) -> list[list[Genome]]:
        """Widths only, expansions only, depths only, all together: each from the seed to the smallest."""
        widths = sorted({m for m in self.network.multipliers if m <= 1}, reverse=True)
        factors = [1, 0.75, 2 / 3, 0.5, 1 / 3, 0.25]
        return [
            [self.scaled(width=m) for m in widths],
            [self.scaled(expansion=f) for f in factors],
            [self.scaled(shallower=d) for d in range(3)],
            [self.scaled(m, f, d) for m in widths for f, d in ((0.75, 0), (0.75, 1), (0.5, 1))],
        ]

    def size(self) -> int:
        """Number of different backbones, counted after canonicalisation."""
        total = len(self.genes.get("size", (1,)))
        for i in range(len(self.network.widths)):
            stage = f"s{i + 1}"
            depths = [int(d) for d in self.genes.get(f"{stage}.depth", (self.network.depths[i],))]

            def options(layer: str) -> int:
                parts = {part: len(self.genes.get(f"{layer}.{part}", (1,))) for part in ("expand", "kernel")}
                operators = self.genes.get(f"{layer}.op", ("ibn",))
                return parts["kernel"] * sum(1 if op == "tucker" else parts["expand"] for op in operators)

            if self.per_stage:
                layers = len(depths) * options(stage)
            else:
                layers = sum(prod(options(f"{stage}.l{j + 1}") for j in range(depth)) for depth in depths)
            total *= len(self.genes[f"{stage}.width"]) * layers
        return total


def count_by_enumeration(space: SearchSpace) -> int:
    """Different canonical forms, counted genome by genome: what ``size`` must give. For small spaces."""
    return len({space.digest(dict(zip(space.genes, values, strict=True))) for values in product(*space.genes.values())})
