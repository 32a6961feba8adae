"""A transformers checkpoint that is made here: nothing is downloaded."""

import pytest
import torch


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny BERT with a vocabulary of its own, saved as any transformers checkpoint."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "place", "even", "odd", "steps", "on", "inverse", ":"]
    words += [str(n) for n in range(30)]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
