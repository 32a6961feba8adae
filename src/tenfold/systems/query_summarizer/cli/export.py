"""``tenfold export`` and ``tenfold import``: for deployment, and from checkpoints of PreSumm and BertSum."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.files import make_folder
from tenfold.models.checkpoints import load_strictly
from tenfold.models.folder import save_model
from tenfold.models.onnx import export_onnx
from tenfold.systems.query_summarizer.encoders.bert import Bert, BertShape
from tenfold.systems.query_summarizer.encoders.presumm import read_presumm, shape_of_state
from tenfold.systems.query_summarizer.extractor.build_extractor import description_of
from tenfold.systems.query_summarizer.extractor.fast_scorer import DECILES, FEATURES, WINDOW, FastScorer
from tenfold.systems.query_summarizer.extractor.qbert import QBert
from tenfold.systems.query_summarizer.load import SYSTEM, load_network
from tenfold.systems.query_summarizer.text.wordpiece import WordPiece


class _Positional(nn.Module):
    """An extractor with its batch as separate inputs, as ONNX wants it."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(dict(zip(self.names, inputs, strict=True)))


def export(run: str, *, to: Literal["onnx", "safetensors"] = "onnx", out: str | None = None) -> dict[str, Any]:
    """Write a run's scorer for deployment; ONNX is checked against PyTorch before it is kept.

    Args:
        run: folder of a run or model.
        to: onnx: scores of windows, inputs as named in the answer; safetensors: the weights with their manifest.
        out: folder to write; RUN/export where not given.
    """
    network, manifest = load_network(run)
    folder = make_folder(out or Path(run) / "export")
    if to == "safetensors":
        save_model(folder, network, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    generator = torch.Generator().manual_seed(0)
    example: dict[str, Tensor]
    if isinstance(network, FastScorer):
        width = network.sentence.in_features
        there = torch.ones(2, WINDOW, dtype=torch.bool)
        there[1, WINDOW // 2 :] = False
        example = {
            "vectors": nn.functional.normalize(torch.randn(2, WINDOW, width, generator=generator), dim=-1),
            "query": nn.functional.normalize(torch.randn(2, width, generator=generator), dim=-1),
            "features": torch.randn(2, WINDOW, FEATURES, generator=generator),
            "deciles": torch.randint(0, DECILES, (2, WINDOW), generator=generator),
            "there": there,
        }
    else:
        assert isinstance(network, QBert)
        tokens = network.packing.max_tokens
        mask = torch.ones(2, tokens, dtype=torch.bool)
        mask[1, tokens // 2 :] = False
        example = {
            "ids": torch.randint(0, len(manifest.extra["vocabulary"]), (2, tokens), generator=generator),
            "types": torch.zeros(2, tokens, dtype=torch.long),
            "mask": mask,
            "cls": torch.tensor([[3, 9, 15], [3, 9, 0]]),
            "there": torch.tensor([[True, True, True], [True, True, False]]),
        }
    names = tuple(example)
    made = export_onnx(
        _Positional(network, names).eval(),
        list(example.values()),
        folder / "model.onnx",
        input_names=names,
        output_names=["scores"],
        batched=[True] * len(names),
    )
    return {"onnx": str(made.path), "inputs": list(names), "largest_difference": made.max_difference}


def import_official(
    checkpoint: str, *, vocabulary: str, out: str | None = None, heads: int | None = None, words: int = 250
) -> dict[str, Any]:
    """Turn an extractor of PreSumm or BertSum into a model folder; it reads the query in front of the sentences.

    Args:
        checkpoint: the .pt file; nothing in it is executed.
        vocabulary: vocab.txt of the BERT that it was trained from.
        out: folder to write; the checkpoint's name without its suffix where not given.
        heads: of attention; 64 channels each where not given.
        words: budget of summaries.
    """
    folder = Path(out) if out else Path(Path(checkpoint).stem)
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    state, layers = read_presumm(checkpoint)
    shape, tokenizer = BertShape(**shape_of_state(state, heads)), WordPiece.from_file(vocabulary)
    if len(tokenizer) != shape.vocab_size:
        raise UserError(f"{vocabulary} has {len(tokenizer):,} pieces, the checkpoint {shape.vocab_size:,}")
    model = QBert(Bert(shape), tokenizer, inter_layers=layers)
    load_strictly(model, state, checkpoint)
    builder, arguments, extra = description_of(model)
    save_model(
        folder,
        model.eval(),
        system=SYSTEM,
        builder=builder,
        arguments=arguments,
        extra=extra | {"words": words, "block": "trigram"},
    )
    return {"model": str(folder), "layers": shape.num_hidden_layers, "inter_layers": layers}
