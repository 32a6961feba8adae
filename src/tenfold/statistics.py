"""Passage to :mod:`tenfold.arms` until every room uses it."""

from tenfold.arms import PairedDifference, claim_of_difference, paired_difference

UNSETTLED = ""

__all__ = ["UNSETTLED", "PairedDifference", "claim_of_difference", "paired_difference"]
