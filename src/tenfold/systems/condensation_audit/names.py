"""The names that settings may hold. Light: importing them loads nothing."""

CONDENSERS = ("dc", "dsa", "dm", "mtt", "dd")
"""The methods that condense."""

SELECTIONS = ("random", "herding", "k-center", "k-means", "class-means")
"""The selections that condensers must be compared with."""

METHODS = (*CONDENSERS, *SELECTIONS)
"""All that ``method`` may be."""

DEFENCES = (
    "patch scan",
    "range guard",
    "neural cleanse",
    "neuron stimulation (ABS)",
    "STRIP",
    "activation clustering",
    "spectral signatures",
)
"""The defences."""
