"""``tenfold export`` and ``tenfold import``."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.files import make_folder, printable, read_json, write_atomically
from tenfold.models.folder import MANIFEST, save_model
from tenfold.systems.dual_encoder.checkpoints.official import (
    dual_from_official,
    fusion_from_official,
    is_dide,
    read_official,
    to_official,
)
from tenfold.systems.dual_encoder.checkpoints.transformers_vilt import (
    fusion_from_transformers,
    is_transformers_folder,
    save_transformers,
    tokenizer_of_folder,
)
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.load import describe, load_network, save_dual_encoder
from tenfold.systems.dual_encoder.method import Task
from tenfold.systems.dual_encoder.networks.build import SYSTEM
from tenfold.systems.dual_encoder.networks.dual_encoder import require_answers

_HEADS = {"vqa": "vqa_classifier", "nlvr2": "nlvr2_classifier", "snli-ve": "ve_classifier"}


class _Text(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, text: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        return self.tower(text, text_mask)


class _Image(nn.Module):
    def __init__(self, tower: nn.Module, side: int) -> None:
        super().__init__()
        self.tower, self.side = tower, side

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixels, None, self.side)


class _Head(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.fusion, self.classifier = model.fusion, model.classifier

    def forward(self, text: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        both = torch.cat([text[:, None].expand(-1, images.shape[1], -1), images], -1)
        return self.classifier(self.fusion(both).flatten(1))


def export(
    run: str,
    *,
    to: Literal["onnx", "safetensors", "transformers", "official"] = "onnx",
    out: str | None = None,
    head: Literal["vqa", "nlvr2", "snli-ve"] = "vqa",
    factory: str | None = None,
) -> dict[str, Any]:
    """Write a run's model for deployment; ONNX is checked against PyTorch before it is kept.

    Args:
        run: folder of the run.
        to: onnx: text_tower.onnx, image_tower.onnx (of pairs one for each side) and answer_head.onnx, with what they
            take in model.json; safetensors: the weights with their manifest; transformers: a folder that ViLT of
            transformers loads, of a fusion encoder; official: model.ckpt in the names of the official program.
        out: folder to write; RUN/export where not given.
        head: the official program's name for the task, for official.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    model, manifest = load_network(run, factory=factory)
    folder = make_folder(Path(out) if out else Path(run) / "export")
    fusion = manifest.builder == "fusion"
    if to == "safetensors":
        save_model(folder, model, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / MANIFEST)}
    if to == "transformers":
        if not fusion:
            raise UserError("transformers has no dual encoder: only a fusion encoder (a teacher) is written for it")
        return {"transformers": str(save_transformers(model, folder, describe(manifest)[2]))}
    if to == "official":
        if manifest.builder not in ("fusion", "dual"):
            raise UserError("the official program knows towers of ViLT's form only")
        with (folder / "model.ckpt").open("wb") as file:
            torch.save({"state_dict": to_official(model, _HEADS[head])}, file)
        return {"official": str(folder / "model.ckpt")}
    if fusion:
        raise UserError("a fusion encoder is not exported to ONNX: it teaches; export the dual encoder")
    return _export_onnx(model, manifest, folder)


def _export_onnx(model: Any, manifest: Any, folder: Path) -> dict[str, Any]:
    from tenfold.models.onnx import describe_onnx, export_onnx

    tokenizer, preparation, answers, task = describe(manifest)
    side = preparation.shorter // preparation.patch * preparation.patch
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, side, side, generator=generator)
    text = torch.randint(5, len(tokenizer.vocabulary), (2, tokenizer.max_tokens), generator=generator)
    mask = torch.ones_like(text, dtype=torch.bool)
    mask[:, -1] = False
    parts: list[tuple[str, nn.Module, tuple[torch.Tensor, ...], list[str], str]] = [
        ("text_tower", _Text(model.text_tower), (text, mask), ["text", "text_mask"], "text_vector")
    ]
    for number in range(model.images):
        name = "image_tower" if model.images == 1 else f"image_tower_{number + 1}"
        parts.append((name, _Image(model.image_tower, number), (pixels,), ["pixels"], "image_vector"))
    with torch.no_grad():
        t, v = model.encode_text(text, mask), torch.randn(2, model.images, model.image_tower.width, generator=generator)
    parts.append(("answer_head", _Head(model), (t, v), ["text_vector", "image_vectors"], "scores"))
    extra = {"system": SYSTEM, "tenfold.answers": json.dumps(list(answers)), "tenfold.task": task}
    found: dict[str, Any] = {}
    worst = 0.0
    for name, module, inputs, names, output in parts:
        done = export_onnx(
            module.eval(), inputs, folder / f"{name}.onnx", input_names=names, output_names=[output],
            batched=[True] * len(inputs),
        )  # fmt: skip
        describe_onnx(done.path, extra | {"tenfold.preparation": json.dumps(preparation.to_dict())})
        found[name] = str(done.path)
        worst = max(worst, done.max_difference)
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return {**found, "largest_difference": worst, "image_size": side, "tokens": tokenizer.max_tokens}


def import_official(
    checkpoint: str,
    *,
    out: str | None = None,
    vocabulary: str | None = None,
    answers: str | None = None,
    heads: int | None = None,
) -> dict[str, Any]:
    """Take a fine-tuned ViLT (official, or of transformers) or a trained DiDE checkpoint into a model folder.

    Args:
        checkpoint: the file, or a local folder of transformers' ViLT; nothing in it is executed.
        out: folder to write; the checkpoint's name without its suffixes where not given.
        vocabulary: BERT's vocab.txt; the folder's own where it has one.
        answers: JSON file: a list of answers, or a mapping between answers and numbers (ans2label, label2ans); the
            folder's own where it has them. Of two or three scores those of NLVR2 and SNLI-VE where not given.
        heads: attention heads, where they are not one per 64 of the width.
    """
    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    if (folder / MANIFEST).exists():
        raise UserError(f"{printable(folder)} already holds a model; name another folder with --out")
    known: tuple[str, ...] | None = None
    model: Any
    if Path(checkpoint).is_dir():
        if not is_transformers_folder(checkpoint):
            raise UserError(f"{printable(checkpoint)} is no folder of transformers (it has no config.json)")
        model, known = fusion_from_transformers(checkpoint)
        sizes = model.sizes
        tokens = (
            tokenizer_of_folder(checkpoint, sizes.max_tokens)
            if vocabulary is None
            else QuestionTokenizer.from_file(vocabulary, sizes.max_tokens)
        )
    else:
        state = read_official(checkpoint)
        dual = is_dide(state)
        read: Any = dual_from_official if dual else fusion_from_official
        model = read(state, heads, printable(checkpoint))
        sizes = model.image_tower.sizes if dual else model.sizes
        if vocabulary is None:
            raise UserError("an official checkpoint has no vocabulary: name BERT's vocab.txt with --vocabulary")
        tokens = QuestionTokenizer.from_file(vocabulary, sizes.max_tokens)
    scored = model.classifier[-1].out_features
    if answers is not None:
        known = read_answers(answers)
    elif known is None:
        known = {2: ("False", "True"), 3: ("contradiction", "entailment", "neutral")}.get(scored)
    if known is None or len(known) != scored:
        raise UserError(f"the model scores {scored} answers: name a JSON file of as many with --answers")
    if len(tokens.vocabulary) != sizes.vocabulary:
        raise UserError(f"the vocabulary has {len(tokens.vocabulary)} pieces; the model {sizes.vocabulary}")
    task: Task = "classes" if scored <= 3 else "multilabel"
    shorter = sizes.grid * sizes.patch
    preparation = ImagePreparation(sizes.patch, shorter, max(shorter, int(1333 / 800 * shorter)))
    save_dual_encoder(folder, model, tokens, preparation, require_answers(known), task)
    kind = "fusion encoder" if hasattr(model, "sizes") else "dual encoder"
    return {"model": str(folder), "kind": kind, "answers": scored, "task": task}


def read_answers(path: str | Path) -> tuple[str, ...]:
    """A closed list of answers: a JSON list, or a mapping from answers to numbers or the other way round.

    Raises:
        UserError: it is neither, or numbers are missing.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("id2label"), dict):
        content = content["id2label"]
    if isinstance(content, list):
        return require_answers(content)
    if isinstance(content, dict) and content:
        numbered = (
            {int(number): str(answer) for number, answer in content.items()}
            if all(str(key).isdigit() for key in content) and not all(isinstance(v, int) for v in content.values())
            else {int(number): str(answer) for answer, number in content.items() if isinstance(number, int)}
        )
        if sorted(numbered) == list(range(len(content))):
            return require_answers([numbered[number] for number in range(len(content))])
    raise UserError(f"{printable(path)} holds no list of answers, and no mapping between answers and 0, 1, 2 ...")
