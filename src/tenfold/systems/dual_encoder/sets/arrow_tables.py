"""Arrow tables of the ViLT family (ViLT, METER, DiDE): one row per image with lists of questions, images as bytes."""

from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError, require
from tenfold.files import first_line, inside, printable
from tenfold.systems.dual_encoder.sets.images import EncodedImages
from tenfold.systems.dual_encoder.sets.nlvr2 import group_of
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions
from tenfold.systems.dual_encoder.sets.snli_ve import LABELS

_PARTS = {
    "vqav2": ("vqav2_train", "vqav2_trainable_val", "vqav2_rest_val"),
    "nlvr2": ("nlvr2_train", "nlvr2_dev", "nlvr2_test1"),
    "snli_ve": ("snli_ve_train", "snli_ve_dev", "snli_ve_test"),
}


def read_table(path: str | Path) -> Any:
    """An Arrow file (record batches), mapped into memory.

    Raises:
        UserError: pyarrow is missing, or the file is missing or damaged.
    """
    arrow = require("pyarrow", "tables")
    try:
        return arrow.ipc.RecordBatchFileReader(arrow.memory_map(str(path), "r")).read_all()
    except (OSError, arrow.ArrowException, ValueError) as error:
        raise UserError(f"cannot read the table {printable(path)}: {first_line(error)}") from error


def table_questions(
    tables: list[Any], kind: str, answers: tuple[str, ...] | None, source: str | Path
) -> VisualQuestions:
    """The questions of tables.

    Args:
        tables: see ``read_table``.
        kind: ``vqav2``, ``nlvr2`` or ``snli_ve``.
        answers: the closed list; in ``vqav2`` all answers of the tables where ``None``.
        source: for messages.

    Raises:
        UserError: a column is missing, or lists do not belong together.
    """
    columns = ("image_0", "image_1") if kind == "nlvr2" else ("image",)
    wanted = (*columns, "questions", "answers")
    where: list[tuple[Any, str, int]] = []
    questions, labels, ids, rows = [], [], [], []
    for table in tables:
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise UserError(f"{printable(source)} is no table of {kind}: it lacks the column {missing[0]}")
        scored = kind == "vqav2" and "answer_scores" in table.column_names
        texts, right = table["questions"].to_pylist(), table["answers"].to_pylist()
        scores = table["answer_scores"].to_pylist() if scored else [None] * len(texts)
        name = "question_id" if kind == "vqav2" else "identifier"
        names = table[name].to_pylist() if name in table.column_names else list(range(len(texts)))
        for row, (asked, given, weights) in enumerate(zip(texts, right, scores, strict=True)):
            if len(asked) != len(given):
                raise UserError(f"{printable(source)}, row {row}: {len(asked)} questions and {len(given)} answers")
            first = len(where)
            where += [(table, column, row) for column in columns]
            for k, (text, answer) in enumerate(zip(asked, given, strict=True)):
                labels.append(_label(kind, answer, None if weights is None else weights[k]))
                questions.append(text)
                own = names[row]
                ids.append(str(own[k] if isinstance(own, list) else own if len(asked) == 1 else f"{own}-{k}"))
                rows.append(list(range(first, first + len(columns))))
    if kind != "vqav2":
        answers = ("False", "True") if kind == "nlvr2" else LABELS
    known = answers or tuple(sorted({answer for label in labels for answer in label}))
    pictures = EncodedImages(
        lambda number: where[number][0][where[number][1]][where[number][2]].as_py(),
        [f"row {row}, {column} of {printable(source)}" for _, column, row in where],
    )
    inside_list = frozenset(known)
    return VisualQuestions(
        images=pictures,
        questions=tuple(questions),
        rows=torch.tensor(rows),
        labels=tuple({a: s for a, s in label.items() if a in inside_list} for label in labels),
        answers=known,
        task="multilabel" if kind == "vqav2" else "classes",
        ids=tuple(ids),
        groups=tuple(group_of(name) for name in ids) if kind == "nlvr2" and all(n.count("-") >= 3 for n in ids) else (),
    )


def _label(kind: str, answer: Any, scores: list[float] | None) -> dict[str, float]:
    if kind == "vqav2":
        given = answer if isinstance(answer, list) else [answer]
        return dict(zip(map(str, given), scores or [1.0] * len(given), strict=False))
    if kind == "snli_ve" and isinstance(answer, int):
        return {LABELS[answer]: 1.0}
    return {str(answer): 1.0}


def arrow_tables(root: str | Path, kind: str, *, questions: int = 0, test: int = 0) -> QuestionSplits:
    """Training, validation and test tables of a folder.

    Args:
        root: the folder.
        kind: ``vqav2``, ``nlvr2`` or ``snli_ve``: the tables' beginning. Of ``vqav2`` train and trainable_val are
            learnt from, rest_val selects and tests, as in the official program.
        questions: training questions at most, 0 for all.
        test: test questions at most, 0 for all.

    Raises:
        UserError: a table is missing or damaged.
    """
    if kind not in _PARTS:
        raise UserError(f"tables are named {', '.join(_PARTS)}; got {printable(kind, 40)!r}")

    def read(*names: str) -> list[Any]:
        return [read_table(inside(root, f"{name}.arrow")) for name in names]

    if kind == "vqav2":
        train = table_questions(read(*_PARTS[kind][:2]), kind, None, root)
        validation = tested = table_questions(read(_PARTS[kind][2]), kind, train.answers, root)
    else:
        train, validation, tested = (table_questions(read(name), kind, None, root) for name in _PARTS[kind])
    return QuestionSplits(
        f"{kind} tables",
        train.subset(range(min(questions or len(train), len(train)))),
        validation,
        tested.subset(range(min(test or len(tested), len(tested)))),
    )
