"""``tenfold evaluate`` and ``tenfold predict``: a run's network on its test split, or on single images."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.data import Preprocessing, read_images
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import load_manifest
from tenfold.models.onnx import onnx_session
from tenfold.settings import PositiveInt
from tenfold.systems.boosted_exits.cli.run_data import data_of
from tenfold.systems.boosted_exits.policies.exit_policy import ExitPolicy, evaluate_policy, record_exits
from tenfold.systems.boosted_exits.policies.metrics import calibration_errors, exit_accuracies
from tenfold.systems.boosted_exits.policies.metrics import predict as predict_images
from tenfold.systems.boosted_exits.serving.served_model import SYSTEM, load, load_network

CPU = torch.device("cpu")


def evaluate(
    run: str,
    *,
    data: str | None = None,
    root: str | None = None,
    unreadable: Literal["refuse", "leave-out"] = "refuse",
    batch_size: PositiveInt = 256,
    factory: str | None = None,
) -> dict[str, Any]:
    """Measure a run's network again on its test split: every exit, and the thresholds it was delivered with.

    Args:
        run: folder of the run, or of an imported model.
        data: name of the data, where not those of the run.
        root: folder of the data, where not that of the run.
        unreadable: for image files that cannot be read: refuse names them, leave-out goes on without.
        batch_size: images at a time.
        factory: of a network of your own, see load_network.
    """
    network, manifest = load_network(run, factory)
    splits = data_of(manifest, run, data, root, unreadable)
    extra = manifest.extra
    test = record_exits(*predict_images(network, splits.test_batches(batch_size), CPU), extra["costs"])
    answer: dict[str, Any] = {
        "data": splits.name,
        "images": test.samples,
        "accuracy": [round(100 * value, 3) for value in exit_accuracies(test).tolist()],
        "calibration_error": [round(value, 5) for value in calibration_errors(test).tolist()],
        "costs": extra["costs"],
        "notes": list(splits.notes),
    }
    if extra.get("policy"):
        outcome = evaluate_policy(test, ExitPolicy.from_dict(extra["policy"]).thresholds)
        answer["served"] = {
            "accuracy": round(100 * outcome.accuracy, 3),
            "cost": outcome.cost,
            "exit_shares": list(outcome.exit_shares),
        }
    return answer


def predict(run: str, inputs: list[str], *, factory: str | None = None) -> str:
    """Predict with a run's network, which stops at the first exit that is sure enough; one JSON line per image.

    Args:
        run: folder of the run.
        inputs: image files; or .npy files of uint8, one image (height, width[, channels]) or several (n, channels,
            height, width).
        factory: of a network of your own, see load_network.
    """
    served = load(run, factory=factory)
    costs = load_manifest(run, SYSTEM).extra["costs"]
    lines = []
    for name, image in read_images(inputs, served.preprocessing):
        output = served.answer(served.preprocessing.normalize(image[None]))
        lines.append(_line(name, output.logits[0], int(output.exits[0]), costs, served.classes))
    return "\n".join(lines)


def predict_onnx(path: str, inputs: list[str]) -> str:
    """Predict with an exported model.onnx on onnxruntime; one JSON line per image, as ``predict`` gives.

    Args:
        path: the branching graph of ``tenfold export RUN --to onnx``, which carries classes and preprocessing along.
        inputs: as for ``predict``.
    """
    session = onnx_session(path)
    told = session.get_modelmeta().custom_metadata_map
    try:
        classes, costs, described = (json.loads(told[name]) for name in ("classes", "costs", "preprocessing"))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} carries no classes and preprocessing along: export it again with tenfold") from error
    preprocessing = Preprocessing.from_dict(described)
    if list(session.get_inputs()[0].shape) != [1, *preprocessing.image_shape]:
        raise UserError(f"{path} takes inputs {session.get_inputs()[0].shape}, not what its preprocessing gives")
    lines = []
    for name, image in read_images(inputs, preprocessing):
        logits, exit = session.run(["logits", "exit"], {"input": preprocessing.normalize(image[None]).numpy()})
        lines.append(_line(name, torch.from_numpy(logits[0]), int(exit[0]), costs, classes))
    return "\n".join(lines)


def _line(name: str, logits: Tensor, leaving: int, costs: Sequence[float], classes: Sequence[str] | None) -> str:
    probabilities = logits.softmax(-1)
    label = int(probabilities.argmax())
    answer = {
        "input": printable(name),
        "class": label,
        "label": printable(classes[label]) if classes else str(label),
        "confidence": round(float(probabilities[label]), 6),
        "exit": leaving + 1,
        "cost": costs[leaving],
    }
    return json.dumps(answer, ensure_ascii=False)
