"""Near-duplicate pages by SimHash, and splits that no page straddles."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from tenfold.systems.query_summarizer.rouge.counting import ngrams
from tenfold.systems.query_summarizer.text.words import all_words

_BITS = 64


def simhash(text: str) -> int:
    """64-bit SimHash of a text's word trigrams (Charikar, STOC 2002)."""
    grams = ngrams(all_words(text), 3) or Counter({(text,): 1})
    digests = [
        int.from_bytes(hashlib.blake2b(" ".join(gram).encode(), digest_size=8).digest(), "big") for gram in grams
    ]
    bits = (np.array(digests, dtype=np.uint64)[:, None] >> np.arange(_BITS, dtype=np.uint64)) & np.uint64(1)
    weights = np.array(list(grams.values()), dtype=np.int64)[:, None]
    votes = ((2 * bits.astype(np.int64) - 1) * weights).sum(0)
    return int(sum(1 << bit for bit in range(_BITS) if votes[bit] > 0))


class NearDuplicates:
    """Groups of texts whose SimHashes differ in at most three bits, found as they come.

    Three different bits leave one of four blocks of 16 bits alone, so only texts that share a block are compared.
    """

    def __init__(self, distance: int = 3) -> None:
        self.distance = distance
        self._blocks: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)

    def first_like(self, key: str, value: int) -> str:
        """The key of the first text that is like this one; its own where there is none, and it is kept.

        Args:
            key: of the text.
            value: its SimHash.
        """
        blocks = [(place, (value >> (16 * place)) & 0xFFFF) for place in range(4)]
        for block in blocks:
            for other, known in self._blocks[block]:
                if (other ^ value).bit_count() <= self.distance:
                    return known
        for block in blocks:
            self._blocks[block].append((value, key))
        return key


def components(edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For every node of a graph the smallest node of its connected component."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for first, second in edges:
        a, b = sorted((root(first), root(second)))
        parent[b] = a
    return {node: root(node) for node in parent}


def split_components(
    members: dict[str, str], sizes: dict[str, int], shares: Sequence[float] = (0.9, 0.05, 0.05), seed: int = 0
) -> dict[str, str]:
    """A split name for every component, close to the wanted shares, the same for the same seed.

    Components come in an order that their hash gives; each goes where most is missing.

    Args:
        members: node to component, of ``components``.
        sizes: examples of each component.
        shares: of train, validation and test; sum to 1.
        seed: of the order.
    """
    names = ("train", "validation", "test")
    total = max(1, sum(sizes.values()))
    wanted = {name: share * total for name, share in zip(names, shares, strict=True)}
    filled = dict.fromkeys(names, 0)
    order = sorted(set(members.values()), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    found = {}
    for component in sorted(order, key=lambda name: -sizes.get(name, 0)):
        name = max(names, key=lambda split: (wanted[split] - filled[split]) / max(wanted[split], 1e-9))
        found[component] = name
        filled[name] += sizes.get(component, 0)
    return found
