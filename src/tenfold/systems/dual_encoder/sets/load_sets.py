"""The sets of an experiment by name."""

from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.dual_encoder.sets.arrow_tables import arrow_tables
from tenfold.systems.dual_encoder.sets.easy_vqa import easy_vqa
from tenfold.systems.dual_encoder.sets.grid_qa import CELL, grid_qa
from tenfold.systems.dual_encoder.sets.nlvr import nlvr
from tenfold.systems.dual_encoder.sets.nlvr2 import nlvr2
from tenfold.systems.dual_encoder.sets.photo_folder import photo_questions
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits
from tenfold.systems.dual_encoder.sets.shapes import shapes
from tenfold.systems.dual_encoder.sets.snli_ve import snli_ve
from tenfold.systems.dual_encoder.sets.vqa_v2 import vqa_v2

_SIZES = {"easy-vqa": (64, 16), "shapes": (30, 10), "nlvr": (96, 16)}


def image_size(name: str, side: int) -> tuple[int, int]:
    """Shorter side of a set's images, and of their patches, in pixels: its own, or those of ViLT-B/32.

    Args:
        name: of the set.
        side: cells per row, of ``grid-qa``.
    """
    return (CELL * side, CELL) if name == "grid-qa" else _SIZES.get(name, (384, 32))


def load_question_sets(
    name: str,
    root: str | None = None,
    *,
    file: str | None = None,
    side: int = 2,
    scenes: int = 20000,
    questions_per_scene: int = 2,
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
    if name == "easy-vqa":
        return easy_vqa(validation=validation, questions=scenes, test=test, seed=seed)
    if name == "shapes":
        return shapes(root, questions=scenes, test=test, seed=seed)
    if name == "nlvr":
        return nlvr(root, questions=scenes, test=test)
    if root is None:
        raise UserError(f"{name} is not embedded: name the folder of its published files with --data.root")
    if not Path(root).is_dir():
        raise UserError(f"the data folder {printable(root)} does not exist")
    if name == "folder":
        return photo_questions(root, str(file), validation=validation, test=test, seed=seed)
    if name == "vqa-v2":
        return vqa_v2(root, least_count=least_count, questions=scenes, test=test)
    if name == "nlvr2":
        return nlvr2(root, questions=scenes, test=test)
    if name == "snli-ve":
        return snli_ve(root, questions=scenes, test=test)
    if name == "arrow":
        return arrow_tables(root, str(file), questions=scenes, test=test)
    raise UserError(f"there is no set {name!r}")
