"""Pairs of question and image per second at the size of ViLT-B/32 and of the toy, and an index of a million images.

    python benchmarks/dual_encoder_throughput.py [--part toy|base|index] [--images N] [--repeats N] [--out FILE]

Weights are random: times do not depend on them. One process; its threads are said in the results. Everything of a part
is timed in one run, one way after the other, each after a call that does not count; medians. The first two rows include
the encoding of images. A vision-language model with a vision cache is a computed row: from its sizes, at the speed that
the fusion encoder reaches here.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import tenfold
from tenfold.files import write_atomically
from tenfold.systems.dual_encoder import (
    DualEncoder,
    FusionEncoder,
    ImagePreparation,
    QuestionTokenizer,
    Sizes,
    VisualAnswerer,
    VisualIndex,
    measure_throughput,
)
from tenfold.systems.dual_encoder.cli.bench import drawn_questions
from tenfold.systems.dual_encoder.index.throughput import time_calls
from tenfold.systems.dual_encoder.inputs.tokenizer import SPECIAL

TOY = Sizes(vocabulary=64, width=64, layers=3, heads=8, patch=8, grid=2, max_tokens=10)
BASE = Sizes(vocabulary=4000)  # ViLT-B/32, but for the rows of its word table, which take no time
ANSWERS = {"toy": 12, "base": 3129}


def make(name: str) -> tuple[VisualAnswerer, FusionEncoder, ImagePreparation]:
    """A dual encoder as it is served and a fusion encoder, with random weights."""
    torch.manual_seed(0)
    sizes = TOY if name == "toy" else BASE
    side = sizes.grid * sizes.patch
    wide = 512 if name == "base" else side  # a photograph of 480 x 640 becomes 384 x 512: 192 patches
    vocabulary = [*SPECIAL, *(f"word{chr(97 + n // 676 % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n % 26)}"
                              for n in range(sizes.vocabulary - len(SPECIAL)))]  # fmt: skip
    tokenizer = QuestionTokenizer(vocabulary, "words", sizes.max_tokens)
    preparation = ImagePreparation(patch=sizes.patch, shorter=side, longest=max(side, wide))
    answers = tuple(map(str, range(ANSWERS[name])))
    model = DualEncoder.from_sizes(sizes, len(answers))
    return (
        VisualAnswerer(model, tokenizer, preparation, answers, "multilabel"),
        FusionEncoder(sizes, len(answers)).eval(),
        preparation,
    )


def throughput(name: str, repeats: int) -> dict:
    """All ways to answer, at one size."""
    answerer, teacher, _ = make(name)
    batch = 32 if name == "toy" else 4
    tensors = drawn_questions(answerer, max(batch, 16))
    if name == "base":
        pixels = tensors.data.images.pixels
        tensors.data.images.pixels = torch.nn.functional.pad(pixels, (0, 512 - pixels.shape[-1]))
    timed = measure_throughput(answerer, teacher, tensors, batch_sizes=(1, batch), repeats=repeats)
    many = next(key for key in timed if key.startswith("dual, every"))
    fusion = [key for key in timed if key.startswith("fusion")][-1]
    speed = timed[fusion]["pairs_per_second"]["median"]
    cached = [key for key in timed if key.startswith("dual, cached images")][-1]
    merged = [key for key in timed if key.startswith("dual, cached, no padding")][-1]
    return {
        "sizes": asdict(answerer.model.image_tower.sizes),
        "answers": len(answerer.answers),
        "timed": timed,
        "times_the_teacher": {key: timed[key]["pairs_per_second"]["median"] / speed for key in (cached, merged, many)},
        "bytes_per_image": {
            kind: answerer.vector_shape[1] * size + (4 if kind == "int8" else 0)
            for kind, size in (("float32", 4), ("float16", 2), ("int8", 1))
        },
    }


def index_of(images: int, name: str, kind: str, questions: int, repeats: int) -> dict:
    """An index of many images: size, memory, seconds per question; the first places agree with a plain sort."""
    answerer, _, _ = make(name)
    shape = answerer.vector_shape
    with tempfile.TemporaryDirectory() as folder:
        index = VisualIndex.create(Path(folder) / "index", answerer.fingerprint, shape, kind)
        start, segment = time.perf_counter(), 65536
        with index.writing():
            for first in range(0, images, segment):
                count = min(segment, images - first)
                generator = torch.Generator().manual_seed(first)
                names = [f"{first + n:07d}" for n in range(count)]
                index.add_locked(names, torch.randn(count, *shape, generator=generator).tanh())
        written = time.perf_counter() - start
        index = VisualIndex.open(Path(folder) / "index", answerer.fingerprint)
        words = [word for word in answerer.tokenizer.vocabulary if word.isalpha()]
        asked = [" ".join(words[n : n + 4]) for n in range(questions)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        one = time_calls(lambda: answerer.search(asked[:1], index, "1", 10), images, repeats)
        many = time_calls(lambda: answerer.search(asked, index, "1", 10), images * questions, 1)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = answerer.search(asked[0], index, "1", 10)[0]
        chances = answerer.chances(asked[:1], index, "1")[0].numpy()
        exact = [int(answer.image) for answer in found] == np.argsort(-chances, kind="stable")[:10].tolist()
    return {
        "images": images,
        "width": shape[1],
        "kind": kind,
        "bytes": index.nbytes,
        "bytes_per_image": index.nbytes // images,
        "seconds_to_write": written,
        "seconds_per_question": one["milliseconds"]["median"] / 1000,
        f"seconds_per_question_of_{questions}": many["milliseconds"]["median"] / 1000 / questions,
        "memory_mb_while_searching": (after - before) / 1024,
        "exact": exact,
    }


def computed_vision_language_model(base: dict) -> dict:
    """A vision-language model of 0.5 billion parameters with its vision cache, computed: no such weights are here."""
    parameters, image_tokens, question_tokens, answer_tokens = 0.36e9, 64, 14, 2
    macs = (
        parameters * (question_tokens + answer_tokens) + 32 * 2 * 960 * (question_tokens + answer_tokens) * image_tokens
    )
    key = [k for k in base["timed"] if k.startswith("fusion")][-1]
    reached = base["timed"][key]["pairs_per_second"]["median"] * 20.8e9
    return {
        "what": "a vision-language model with cached vision, 360 million parameters in its text part, 64 image tokens, "
        "14 of the question, 2 of the answer: computed at the multiply-adds per second that the fusion encoder reaches",
        "giga_macs_per_pair": macs / 1e9,
        "pairs_per_second": reached / macs,
        "bytes_per_image": 64 * 32 * 2 * 5 * 64 * 2,
    }


def main() -> None:
    """Time the parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["toy", "base", "index"], action="append")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/dual-encoder-throughput.json")
    options = parser.parse_args()
    path = Path(options.out)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found["environment"] = {
        "tenfold": tenfold.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    for part in options.part or ["toy", "base", "index"]:
        if part == "index":
            found["index"] = [
                index_of(options.images, "toy", "float16", 16, options.repeats),
                index_of(options.images, "base", "float16", 16, 1),
            ]
        else:
            found[part] = throughput(part, options.repeats)
            if part == "base":
                found["vision_language_model"] = computed_vision_language_model(found["base"])
        write_atomically(path, json.dumps(found, indent=1) + "\n")
        print(part, json.dumps(found[part], indent=1))


if __name__ == "__main__":
    main()
