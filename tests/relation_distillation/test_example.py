"""The example of the docs runs, on small networks from local folders."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parents[2] / "docs/examples/relation_distillation.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_vit_from_a_local_folder(example, tmp_path):
    from timm.models import save_for_hf

    teacher = timm.create_model("vit_small_patch16_224.dino", img_size=32, patch_size=8, embed_dim=48, depth=4,
                                num_heads=6, num_classes=0)  # fmt: skip
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 6, "num_classes": 0}
    save_for_hf(teacher, tmp_path / "teacher", model_args=arguments, model_config={"input_size": [3, 32, 32]})
    (tmp_path / "images").mkdir()
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{n}.png")
    found = example.distil_vit(tmp_path / "teacher", tmp_path / "images", tmp_path / "out", epochs=3, batch=4,
                               learning_rate=1e-3)  # fmt: skip
    assert found.history[-1]["train/loss"] < found.history[0]["train/loss"]
    assert (tmp_path / "out/student.safetensors").exists()


def test_a_bert_from_a_local_folder(example, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "teacher")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "teacher")
    (tmp_path / "text.txt").write_text("a b c d\ne f\ng h i j a b c\nd e f g\n" * 4)
    found = example.distil_bert(tmp_path / "teacher", tmp_path / "text.txt", tmp_path / "out", epochs=4, batch=4,
                                learning_rate=5e-3)  # fmt: skip
    assert found.history[-1]["train/loss"] < found.history[0]["train/loss"]
    assert set(found.history[0]) >= {"train/qq", "train/kk", "train/vv"}
    assert len(transformers.BertModel.from_pretrained(tmp_path / "out/student").encoder.layer) == 2
