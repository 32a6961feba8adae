"""Small dual encoders and fusion encoders for tests."""

import torch

from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder, sharpen

WORDS = ["is", "there", "a", "red", "green", "blue", "circle", "square", "what", "color", "shape", "at", "nw"]
ANSWERS = ("yes", "no", "red", "circle")


def tokenizer(max_tokens=10):
    return QuestionTokenizer.of_words(WORDS, max_tokens)


def sizes(**changes):
    given = {"width": 8, "layers": 2, "heads": 2, "patch": 4, "grid": 3, "max_tokens": 10, "dropout": 0.0}
    return Sizes(vocabulary=len(tokenizer().vocabulary), **given | changes)


def fusion(seed=0, answers=4, **changes):
    torch.manual_seed(seed)
    model = FusionEncoder(sizes(**changes), answers)
    return _alive(model).eval()


def dual(seed=0, answers=4, **changes):
    torch.manual_seed(seed)
    return _alive(DualEncoder.from_sizes(sizes(**changes), answers)).eval()


@torch.no_grad()
def _alive(model):
    """Weights that are far from a network that does nothing: biases, norms, embeddings are all drawn."""
    sharpen(model)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model


def batch(questions=("is there a red circle", "what color"), images=1, side=12, seed=1, sizes_of_images=None):
    """Inputs of a model; images of several sizes in pixels where ``sizes_of_images`` says so."""
    generator = torch.Generator().manual_seed(seed)
    text, mask = tokenizer().batch(list(questions))
    found = {"text": text, "text_mask": mask}
    preparation = ImagePreparation(patch=4, shorter=4, longest=400)
    if sizes_of_images is None:
        sizes_of_images = [(side, side)] * (len(questions) * images)
    drawn = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes_of_images]
    pixels, patches = preparation.batch(drawn)
    found["pixels"] = pixels.unflatten(0, (len(questions), images))
    if patches is not None:
        found["patch_mask"] = patches.unflatten(0, (len(questions), images))
    return found


def answerer(seed=0, task="multilabel", **changes):
    preparation = ImagePreparation(patch=4, shorter=12, longest=24)
    return VisualAnswerer(dual(seed, **changes), tokenizer(), preparation, ANSWERS, task)
