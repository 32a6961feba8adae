"""Condensed images and triggers for the report page."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tenfold.report.pictures import image_grid, picture
from tenfold.results import Picture
from tenfold.systems.condensation_audit.experiment.set_arms import read_own_set
from tenfold.systems.condensation_audit.experiment.settings import Config
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet

_MOST_CLASSES, _MOST_IMAGES = 10, 10


def first_images(found: CondensedSet, per_class: int) -> torch.Tensor:
    """The first images of each class, class by class, in pixel units."""
    rows = [
        (found.hard_labels == label).nonzero().flatten()[:per_class]
        for label in range(min(len(found.classes), _MOST_CLASSES))
    ]
    return found.pixels[torch.cat(rows)]


def pictures_of(folder: Path, config: Config, methods: Sequence[str]) -> list[Picture]:
    """The first seed's sets: one image of every class by each method, the delivered set, the poisoned ones.

    Args:
        folder: of the run.
        config: its settings.
        methods: whose sets there are.
    """
    size = config.attack.images_per_class
    made = []
    shown = [
        (method, read_own_set(config, path))
        for method in methods
        if (path := folder / f"steps/sets/{method}-{size}/seed{config.seed}/set.cset").exists()
    ]
    if shown:
        columns = min(len(shown[0][1].classes), _MOST_CLASSES)
        made.append(
            picture(
                "methods",
                "One image of every class, by method",
                image_grid(
                    torch.cat([first_images(found, 1) for _, found in shown]),
                    columns=columns,
                    row_names=[method for method, _ in shown],
                    column_names=list(shown[0][1].classes[:columns]),
                ),
                alt="Rows of small images, one row for each method, one column for each class",
                caption="Values outside the pixel range are drawn as black or white.",
            )
        )
    for name in ("naive", "doorping", "doorping-valid"):
        path = folder / f"steps/attacks/{name}/seed{config.seed}/set.cset"
        if path.exists():
            found = read_own_set(config, path)
            target = (found.poisoned or {})["target"]
            rows = (found.hard_labels == target).nonzero().flatten()[:_MOST_IMAGES]
            made.append(
                picture(
                    f"poisoned-{name}",
                    f"{name}: the target class of the poisoned set",
                    image_grid(found.pixels[rows], columns=len(rows)),
                    alt=f"The condensed images of class {found.classes[target]} after the attack {name}",
                    caption="What a reader of the set would have to find the trigger in.",
                )
            )
    return made
