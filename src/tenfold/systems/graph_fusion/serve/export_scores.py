"""An encoder as ONNX: ``(heads, relations)`` to scores of all entities, checked against PyTorch before it is kept."""

from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.models.onnx import OnnxExport, export_onnx
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer


class _Scores(nn.Module):
    """Candidate vectors are constants of the exported graph: the model is frozen."""

    def __init__(self, scorer: QueryScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, heads: Tensor, relations: Tensor) -> Tensor:
        return self.scorer.score_all(heads, relations)


def export_scores(scorer: QueryScorer, path: str | Path) -> OnnxExport:
    """Write an encoder that scores all entities; any number of queries at once.

    Args:
        scorer: in eval mode.
        path: the file.

    Raises:
        UserError: the encoder cannot be exported (text towers read text, which ONNX cannot), or its answers differ.
    """
    heads = torch.tensor([0, 1 % scorer.num_entities, 0])
    relations = torch.tensor([0, 2 * scorer.num_relations - 1, scorer.num_relations])
    with scorer.encoded(), torch.no_grad():
        return export_onnx(
            _Scores(scorer),
            [heads, relations],
            path,
            input_names=["heads", "relations"],
            output_names=["scores"],
            batched=[True, True],
        )
