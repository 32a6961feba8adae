"""The names that settings may hold. Light: importing them loads nothing."""

from typing import Literal, get_args

Condenser = Literal["dc", "dsa", "dm", "mtt", "dd"]
Method = Literal["dc", "dsa", "dm", "mtt", "dd", "random", "herding", "k-center", "k-means", "class-means"]
Defence = Literal[
    "patch scan",
    "range guard",
    "neural cleanse",
    "neuron stimulation (ABS)",
    "STRIP",
    "activation clustering",
    "spectral signatures",
]

CONDENSERS: tuple[Condenser, ...] = get_args(Condenser)
"""The methods that condense."""

METHODS: tuple[Method, ...] = get_args(Method)
"""All that ``method`` may be: the condensers, and the selections that they must be compared with."""

SELECTIONS = tuple(name for name in METHODS if name not in CONDENSERS)
"""The selections."""

DEFENCES: tuple[Defence, ...] = get_args(Defence)
"""The defences."""
