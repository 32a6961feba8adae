"""``tenfold evaluate`` and ``tenfold predict``: a run's network on its test split, or on single images."""

import json
from typing import Any, Literal

import torch

from tenfold.data import read_images
from tenfold.systems.boosted_exits.builders import stages_of
from tenfold.systems.boosted_exits.cli.loading import data_of, load_network, policy_of, preprocessing_of
from tenfold.systems.boosted_exits.policies.exit_policy import ExitPolicy, evaluate_policy, record_exits
from tenfold.systems.boosted_exits.policies.metrics import calibration_errors, exit_accuracies
from tenfold.systems.boosted_exits.policies.metrics import predict as predict_images
from tenfold.systems.boosted_exits.serving.runner import EarlyExitRunner

CPU = torch.device("cpu")


def evaluate(
    run: str,
    *,
    data: str | None = None,
    root: str | None = None,
    unreadable: Literal["refuse", "leave-out"] = "refuse",
    batch_size: int = 256,
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
    network, manifest = load_network(run, factory)
    extra, shape = manifest.extra, manifest.arguments["image_shape"]
    preprocessing = preprocessing_of(manifest)
    runner = EarlyExitRunner(stages_of(network, torch.zeros(2, *shape)), policy_of(manifest, run).thresholds)
    lines = []
    for name, image in read_images(inputs, preprocessing):
        output = runner(preprocessing.normalize(image[None]))
        probabilities = output.logits[0].softmax(-1)
        label, leaving = int(probabilities.argmax()), int(output.exits[0])
        lines.append(
            {
                "input": name,
                "class": label,
                "label": extra["classes"][label],
                "confidence": round(float(probabilities[label]), 6),
                "exit": leaving + 1,
                "cost": extra["costs"][leaving],
            }
        )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
