"""``tenfold predict`` and ``tenfold evaluate``: answers about image files, and accuracy on sets."""

import json
from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import load_manifest
from tenfold.run import read_config
from tenfold.systems.dual_encoder.attention.readers import inputs_of
from tenfold.systems.dual_encoder.cli.asking import say_unknown
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors
from tenfold.systems.dual_encoder.load import describe, load, load_network
from tenfold.systems.dual_encoder.networks.build import SYSTEM
from tenfold.systems.dual_encoder.scoring.measure import predict_answers, score_answers, summarize
from tenfold.systems.dual_encoder.scoring.result_files import write_predictions
from tenfold.systems.dual_encoder.sets.load_sets import load_question_sets
from tenfold.systems.dual_encoder.sets.photo_folder import read_asked

_TABLES = (".csv", ".jsonl")


def predict(run: str, inputs: list[str], *, question: str | None = None, factory: str | None = None) -> str:
    """Answer questions about images, one JSON line each: one question about image files, or the rows of tables.

    Args:
        run: folder of a run or model.
        inputs: image files, with --question; or CSV or JSONL files with columns image (relative to the file) and
            question.
        question: about each of the image files.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    answerer = load(run, factory=factory)
    asked: list[tuple[str, Any]] = []
    for name in inputs:
        if Path(name).suffix.lower() in _TABLES:
            rows = read_asked(name, answerer.model.images)
            asked += [(row.question, row.images if len(row.images) > 1 else row.images[0]) for row in rows]
        elif question is None:
            raise UserError(f"{printable(name)} is an image: ask something with --question")
        elif answerer.model.images != 1:
            raise UserError(
                "this model is asked about pairs of images: give a CSV file with the columns image and image2"
            )
        else:
            asked.append((question, name))
    say_unknown(answerer, [text for text, _ in asked])
    lines = []
    for start in range(0, len(asked), 64):
        part = asked[start : start + 64]
        for found in answerer([text for text, _ in part], [images for _, images in part]):
            row = {"image": found.image, "question": found.question, "answer": found.answer}
            lines.append(json.dumps(row | {"probability": round(found.probability, 6)}, ensure_ascii=False))
    return "\n".join(lines)


def evaluate(
    run: str,
    *,
    data: str | None = None,
    root: str | None = None,
    file: str | None = None,
    predictions: str | None = None,
    factory: str | None = None,
) -> dict[str, Any]:
    """Accuracy of a run's dual encoder (or of an imported fusion encoder) on its own test questions, or on others.

    Args:
        run: folder of a run or model.
        data: name of a set, see tenfold run dual-encoder --help; the run's own where not given.
        root: folder of the data.
        file: within it, for data folder and arrow.
        predictions: file to write the answers to, in the set's own format: VQA's JSON list of question_id and answer;
            for others CSV lines of id and answer.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    manifest = load_manifest(run, SYSTEM)
    network, _ = load_network(run, factory=factory)
    tokenizer, preparation, answers, _ = describe(manifest)
    if data is None:
        if not (Path(run) / "config.yaml").exists():
            raise UserError(f"{run} names no data: name a set with --data")
        options = read_config(run)["data"]
        options.pop("also", None)
        splits = load_question_sets(seed=int(read_config(run)["seed"]), **options)
        name = options["name"]
    elif data == "grid-qa":
        name, splits = data, load_question_sets(data, scenes=1)
    else:
        name, splits = data, load_question_sets(data, root, file=file, scenes=0, test=0)
    test = splits.test
    order = {answer: place for place, answer in enumerate(answers)}
    unknown = [answer for answer in test.answers if answer not in order]
    if unknown:
        raise UserError(
            f"the model does not know the answer {printable(unknown[0])!r} of {name}: it was made for others"
        )
    columns = torch.tensor([order[answer] for answer in test.answers])
    tensors = QuestionTensors(test, tokenizer, preparation)
    chosen = predict_answers(network, tensors, forward=lambda batch: network(**inputs_of(batch))[:, columns])
    if predictions is not None:
        write_predictions(predictions, name, test, chosen)
    found = summarize(test, score_answers(test, chosen))
    del found["rows"]
    return {"data": name, "questions": len(test), **found}
