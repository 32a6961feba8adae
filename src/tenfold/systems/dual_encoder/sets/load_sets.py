"""The sets of an experiment by name."""

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.sets.grid_qa import CELL, grid_qa
from tenfold.systems.dual_encoder.sets.photo_folder import photo_questions
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits

SIDES = {"easy-vqa": 64, "shapes": 30}
"""Side of a set's square images in pixels."""


def image_side(name: str, side: int) -> int | None:
    """Side of a set's images where it has one of its own.

    Args:
        name: of the set.
        side: cells per row, of ``grid-qa``.
    """
    return CELL * side if name == "grid-qa" else SIDES.get(name)


def load_question_sets(
    name: str,
    root: str | None = None,
    *,
    file: str | None = None,
    side: int = 2,
    scenes: int = 20000,
    questions_per_scene: int = 3,
    validation: int = 500,
    test: int = 1500,
    least_count: int = 9,
    seed: int = 0,
) -> QuestionSplits:
    """Training, validation and test questions of a set.

    Args:
        name: see ``experiment.settings.DataOptions``, as all others.
        root: folder of the data.
        file: within it.
        side: of ``grid-qa``.
        scenes: of ``grid-qa``; of others training questions at most, 0 for all.
        questions_per_scene: of ``grid-qa``.
        validation: number of validation questions, where the set has no such part.
        test: number of test questions at most, 0 for all.
        least_count: of an answer of ``vqa-v2``.
        seed: of what is drawn.

    Raises:
        UserError: the data are missing or damaged, or the set is unknown.
    """
    if name == "grid-qa":
        return grid_qa(
            scenes, questions_per_scene=questions_per_scene, validation=validation, test=test, side=side, seed=seed
        )
    if name == "folder":
        return photo_questions(str(root), str(file), validation=validation, test=test, seed=seed)
    raise UserError(f"there is no set {name!r}")
