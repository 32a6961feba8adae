"""The command ``predict``."""

import json

import torch

from tenfold.data import normalize, read_images
from tenfold.systems.relation_distillation.cli.evaluate import load_classifier


def predict(run: str, inputs: list[str]) -> str:
    """Predict with a run's fine-tuned student; one JSON line per image.

    Args:
        run: folder of the run.
        inputs: image files; or .npy files of uint8, one image (height, width[, channels]) or several (n, channels,
            height, width).
    """
    model, manifest = load_classifier(run)
    shape = [manifest.arguments["channels"], *[manifest.arguments["image_size"]] * 2]
    lines = []
    for name, image in read_images(inputs, shape):
        with torch.no_grad():
            probabilities = model(normalize(image[None], manifest.extra["mean"], manifest.extra["std"]))[0].softmax(-1)
        label = int(probabilities.argmax())
        lines.append(
            {
                "input": name,
                "class": label,
                "label": manifest.extra["classes"][label],
                "confidence": round(float(probabilities[label]), 6),
            }
        )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
