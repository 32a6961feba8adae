"""Condensed sets with everything that a set can hold."""

import torch

from tenfold.systems.condensation_audit import CondensedSet, Preprocessing, TrainingRecipe, fit_zca


def make_set(n=6, count=3, shape=(1, 4, 4), *, soft=False, whole=False, **changes):
    """A set of ``n`` random images; ``whole`` gives it every optional part."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % count
    if soft:
        labels = torch.randn(n, count, generator=generator).softmax(1)
    zca = fit_zca(torch.randn(40, *shape, generator=generator)) if whole else None
    values = {
        "images": torch.randn(n, *shape, generator=generator),
        "labels": labels,
        "classes": tuple(f"class {number}" for number in range(count)),
        "preprocessing": Preprocessing((0.2861,) * shape[0], (0.353,) * shape[0], shape, zca),
        "recipe": TrainingRecipe(arguments={"width": 8, "depth": 1}, epochs=7, decay_at=(0.5, 0.75)),
        "method": "dm",
        "settings": {"iterations": 20, "rate": 0.1, "init": "real", "seeds": [0, 1]},
        "source": {"name": "digits", "n": 100, "class_counts": [34, 33, 33], "files": {"a.gz": "00" * 32}},
        "results": {"accuracy": 0.75},
    }
    if whole:
        values |= {
            "learning_rates": torch.rand(n, generator=generator),
            "steps": torch.arange(n),
            "initial": {
                "features.0.weight": torch.randn(2, 3, generator=generator),
                "classifier.bias": torch.randn(2, dtype=torch.float64, generator=generator),
                "norm.num_batches_tracked": torch.tensor(3),
            },
            "poisoned": {"attack": "naive", "target": 0, "trigger": {"rows": [1, 2], "pattern": [[0.5, 1.0]]}},
        }
    return CondensedSet(**(values | changes))


def same_set(one, other):
    """Whether two sets are equal, bit for bit."""
    parts = [(one.images, other.images), (one.labels, other.labels)]
    parts += [(one.learning_rates, other.learning_rates), (one.steps, other.steps)]
    parts += [
        (getattr(one.preprocessing.zca, part, None), getattr(other.preprocessing.zca, part, None))
        for part in ("mean", "matrix", "inverse")
    ]
    initial = (one.initial or {}, other.initial or {})
    if initial[0].keys() != initial[1].keys():
        return False
    parts += [(initial[0][name], initial[1][name]) for name in initial[0]]
    for first, second in parts:
        if (first is None) != (second is None):
            return False
        if first is not None and not (first.dtype == second.dtype and torch.equal(first, second)):
            return False
    plain = ("classes", "recipe", "method", "settings", "source", "results", "poisoned")
    numbers = ("mean", "std", "image_shape")
    eps = [getattr(cset.preprocessing.zca, "eps", None) for cset in (one, other)]
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and all(getattr(one.preprocessing, name) == getattr(other.preprocessing, name) for name in numbers)
        and eps[0] == eps[1]
    )
