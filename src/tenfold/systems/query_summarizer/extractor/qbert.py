"""``QBert``: the paper's extractor. A BERT reads the query and a window of sentences; each ``[CLS]`` gets a score.


h = BERT(window);  u_i = h[c_i];  v = inter-sentence layers (optional);  z_i = w . v_i + b;  p_i = sigmoid(z_i)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.encoders.local_folder import Tokenizer
from tenfold.systems.query_summarizer.extractor.inter_sentence import InterSentence
from tenfold.systems.query_summarizer.extractor.pack_windows import (
    Packing,
    Window,
    collate_windows,
    merge_scores,
    pack_windows,
)
from tenfold.systems.query_summarizer.text.sentences import Document


class QBert(nn.Module):
    """Encoder, optional inter-sentence layers, and a linear score.

    Args:
        encoder: ``(ids, types, mask) -> (batch, tokens, width)`` with attributes ``width`` and ``max_tokens``.
        tokenizer: its tokenizer.
        packing: how windows are made; its size is cut to the encoder's.
        inter_layers: 0 (the default) or 2, as in BertSum.
        prior: share of positive sentences: the first loss is then the entropy of the prior.

    Raises:
        UserError: the encoder's windows are too small.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Tokenizer,
        packing: Packing | None = None,
        *,
        inter_layers: int = 0,
        prior: float = 0.1,
    ) -> None:
        super().__init__()
        packing = packing or Packing()
        limit = int(encoder.max_tokens)  # type: ignore[arg-type]
        if packing.max_tokens > limit:
            packing = Packing(limit, packing.query_tokens, packing.sentence_tokens, packing.segments, packing.overlap)
        if not 0 < prior < 1:
            raise UserError(f"prior is a share in (0, 1); got {prior}")
        width = int(encoder.width)  # type: ignore[arg-type]
        self.encoder, self.tokenizer, self.packing = encoder, tokenizer, packing
        self.inter_sentence = InterSentence(width, inter_layers, heads=_heads(width)) if inter_layers else None
        self.head = nn.Linear(width, 1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.constant_(self.head.bias, math.log(prior / (1 - prior)))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (logits) of the sentences of a batch of windows.

        Args:
            batch: of ``collate_windows``.

        Returns:
            ``(batch, sentences)``; what stands where no sentence is means nothing.
        """
        hidden = self.encoder(batch["ids"], batch["types"], batch["mask"])
        vectors = hidden.gather(1, batch["cls"][..., None].expand(-1, -1, hidden.shape[-1]))
        if self.inter_sentence is not None:
            vectors = self.inter_sentence(vectors, batch["there"])
        return self.head(vectors).squeeze(-1)

    def windows(self, query: str, documents: Sequence[Document], masked: bool = False) -> list[Window]:
        """Windows of a topic.

        Args:
            query: what is asked.
            documents: the sources.
            masked: the query is swapped for ``[MASK]``.
        """
        pieces = [[self.tokenizer.encode(sentence.text) for sentence in document.sentences] for document in documents]
        asked = [self.tokenizer.mask] if masked else self.tokenizer.encode(query)
        return pack_windows(asked, pieces, self.tokenizer, self.packing)

    def unread_pieces(self, query: str) -> int:
        """Pieces of a query beyond ``packing.query_tokens``, which windows leave out."""
        return max(0, len(self.tokenizer.encode(query)) - self.packing.query_tokens)

    @torch.inference_mode()
    def score(
        self, query: str, documents: Sequence[Document], *, masked: bool = False, tokens_per_batch: int = 8192
    ) -> Tensor:
        """One logit per sentence of all documents, one document after the other ``(n,)``.

        A document's scores do not depend on the others; windows of similar length share a batch.

        Args:
            query: what is asked.
            documents: the sources.
            masked: the query is swapped for ``[MASK]``, to see what it changes.
            tokens_per_batch: tokens of a batch at most, padding included.
        """
        was_training = self.training
        self.eval()
        windows = self.windows(query, documents, masked)
        order = sorted(range(len(windows)), key=lambda number: len(windows[number].ids))
        scores: list[Tensor] = [torch.empty(0)] * len(windows)
        device = self.head.weight.device
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop - start + 1) * len(windows[order[stop]].ids) <= tokens_per_batch:
                stop += 1
            chosen = order[start:stop]
            batch = collate_windows([windows[number] for number in chosen], self.tokenizer.pad)
            logits = self({name: value.to(device) for name, value in batch.items()}).float().cpu()
            for number, row in zip(chosen, logits, strict=True):
                scores[number] = row[: len(windows[number].cls)]
            start = stop
        self.train(was_training)
        return merge_scores(windows, scores, sum(len(document.sentences) for document in documents))


def _heads(width: int) -> int:
    """Eight heads, or as many as share the width evenly."""
    return next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
