"""Search spaces: named ordinal genes, the canonical form of a genome, its hash."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.errors import UserError

Choice = str | int | float | bool
Genome = dict[str, Choice]
"""A value for every gene, active or not."""


class SearchSpace:
    """Genes with ordered choices. Subclasses know networks; this one alone serves a reader's own ``build(genome)``.

    Args:
        genes: choices of every gene, in ascending order of size or strength; plain JSON values. The part of a name
            before the first dot is its stage: crossover may take stages whole.
        seed: the genome that the seed network has; the first choice of every gene where ``None``.
        canonical: drops genes that have no effect and settles equal values; all genes count where ``None``.

    Raises:
        UserError: no genes, a gene without choices or with equal ones, or a seed that is not in the space.

    Example:
        >>> space = SearchSpace({"width": (8, 16, 32), "depth": (1, 2)})
        >>> space.size(), space.seed
        (6, {'width': 8, 'depth': 1})
    """

    def __init__(
        self,
        genes: Mapping[str, Sequence[Choice]],
        seed: Mapping[str, Choice] | None = None,
        canonical: Callable[[Genome], Genome] | None = None,
    ) -> None:
        self.genes: dict[str, tuple[Choice, ...]] = {name: tuple(choices) for name, choices in genes.items()}
        self._canonical = canonical
        if not self.genes:
            raise UserError("a search space needs at least one gene")
        for name, choices in self.genes.items():
            if not choices or len(set(choices)) != len(choices):
                raise UserError(f"gene {name!r} needs choices that differ; got {choices}")
            if not all(isinstance(choice, str | int | float | bool) for choice in choices):
                raise UserError(f"choices of gene {name!r} must be plain text, numbers or truth values; got {choices}")
        self.seed: Genome = dict(seed) if seed is not None else {name: c[0] for name, c in self.genes.items()}
        self.check(self.seed)

    def check(self, genome: Mapping[str, Any]) -> None:
        """Refuse a genome that is not of this space.

        Raises:
            UserError: names the first gene that is missing, unknown or has no such choice.
        """
        for name, choices in self.genes.items():
            if name not in genome:
                raise UserError(f"the genome lacks {name!r}")
            if genome[name] not in choices:
                raise UserError(f"gene {name!r} has the choices {choices}; the genome says {genome[name]!r}")
        for name in genome:
            if name not in self.genes:
                raise UserError(f"the space has no gene {name!r}")

    def canonical(self, genome: Mapping[str, Choice]) -> Genome:
        """What of a genome has an effect: genomes that stand for one network have one canonical form."""
        return dict(genome) if self._canonical is None else self._canonical(dict(genome))

    def complete(self, canonical: Mapping[str, Choice]) -> Genome:
        """A whole genome for a canonical form: what it leaves out is as in the seed."""
        genome = {**self.seed, **canonical}
        self.check(genome)
        return genome

    def active(self, genome: Mapping[str, Choice]) -> list[str]:
        """Genes that have an effect in this genome."""
        return [name for name in self.canonical(genome) if name in self.genes]

    def digest(self, genome: Mapping[str, Choice]) -> str:
        """SHA-256 of the canonical form as JSON with sorted keys: the genome's name in caches, seeds and files."""
        return hashlib.sha256(json.dumps(self.canonical(genome), sort_keys=True).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all genes, choices and the seed: a study belongs to one of them."""
        content = {"genes": {name: list(choices) for name, choices in self.genes.items()}, "seed": self.seed}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def random(self, generator: np.random.Generator) -> Genome:
        """Every gene drawn uniformly."""
        return {name: choices[int(generator.integers(len(choices)))] for name, choices in self.genes.items()}

    def uniform(self) -> list[list[Genome]]:
        """Families of genomes that shrink the seed evenly, each from large to small; none here."""
        return []

    def size(self) -> int:
        """Number of different networks, counted after canonicalisation."""
        if self._canonical is None:
            return int(np.prod([len(choices) for choices in self.genes.values()], dtype=object))
        from itertools import product

        if np.prod([float(len(choices)) for choices in self.genes.values()]) > 1e6:
            raise UserError("this space is too large to be counted one by one")
        return len({self.digest(dict(zip(self.genes, v, strict=True))) for v in product(*self.genes.values())})
