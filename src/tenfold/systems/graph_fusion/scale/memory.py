"""How many scores are held at once: rows and tiles within a memory budget."""

import logging

log = logging.getLogger("tenfold")

BUDGET_BYTES = 2**31
"""Largest score matrix that is held at once, about; beyond it, batches and tiles become smaller."""


def rows_within(entities: int, rows: int, budget: int = BUDGET_BYTES, copies: int = 4) -> int:
    """How many queries may be scored at once against all entities; at least 1.

    Args:
        entities: N.
        rows: how many are wanted; fewer are given, with a note in the log, where their scores exceed the budget.
        budget: bytes.
        copies: matrices of that size that are alive together.
    """
    fitting = max(1, budget // (4 * entities * copies))
    if fitting < rows:
        log.info(
            "scores of %d queries x %d entities exceed %d MiB: %d at a time", rows, entities, budget >> 20, fitting
        )
    return min(rows, fitting)


def too_large(rows: int, entities: int, budget: int = BUDGET_BYTES, copies: int = 4) -> bool:
    """Whether the scores of so many queries against all entities exceed the budget."""
    return 4 * rows * entities * copies > budget


def tile_size(rows: int, budget: int = BUDGET_BYTES, copies: int = 4) -> int:
    """Entities per tile so that a tile of scores stays within the budget, and within a cache-friendly 16,384."""
    return max(1, min(16_384, budget // (4 * max(rows, 1) * copies)))
