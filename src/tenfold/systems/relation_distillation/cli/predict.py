"""The command ``predict``."""

import json

import torch

from tenfold.data import read_images
from tenfold.systems.relation_distillation.cli.loading import load_classifier
from tenfold.systems.relation_distillation.vit.preprocessing import preprocessing_of


def predict(run: str, inputs: list[str]) -> str:
    """Predict with a run's fine-tuned student; one JSON line per image.

    Args:
        run: folder of the run.
        inputs: image files, which go through what the test images went through; or .npy files of uint8 that have the
            network's size already, one image (height, width[, channels]) or several (n, channels, height, width).
    """
    model, manifest = load_classifier(run)
    preprocessing = preprocessing_of(manifest)
    lines = []
    for name, image in read_images(inputs, preprocessing):
        with torch.no_grad():
            probabilities = model(preprocessing.normalize(image[None]))[0].softmax(-1)
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
