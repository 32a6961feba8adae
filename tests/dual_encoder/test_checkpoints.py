"""Official names, transformers' ViLT, towers of other libraries: forward passes that agree."""

import json

import pytest
import torch
from dual_for_tests import ANSWERS, WORDS, batch, dual, fusion, sizes
from torch import nn

from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.systems.dual_encoder.attention.readers import SingleStream, TwoTowers
from tenfold.systems.dual_encoder.checkpoints.official import (
    dual_from_official,
    fusion_from_official,
    read_official,
    to_official,
)
from tenfold.systems.dual_encoder.checkpoints.transformers_vilt import fusion_from_transformers, save_transformers
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import SPECIAL, QuestionTokenizer
from tenfold.systems.dual_encoder.load import load, load_network, save_dual_encoder
from tenfold.systems.dual_encoder.method import DistillationObjective
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.networks.module_towers import ModuleImageTower, transformers_towers
from tenfold.systems.dual_encoder.training.teachers import load_teacher, with_answers

transformers = pytest.importorskip("transformers")


def vilt(kind="ViltForQuestionAnswering", **changes):
    torch.manual_seed(0)
    given = {"vocab_size": sizes().vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "image_size": 12, "patch_size": 4, "max_position_embeddings": 10,
             "id2label": dict(enumerate(ANSWERS)), "label2id": {a: n for n, a in enumerate(ANSWERS)}}  # fmt: skip
    model = getattr(transformers, kind)(transformers.ViltConfig(**given | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def given(side=12):
    found = batch(sizes_of_images=[(side, 8), (8, side)])
    pixel_mask = found["patch_mask"][:, 0].repeat_interleave(4, 1).repeat_interleave(4, 2).long()
    theirs = {"input_ids": found["text"], "attention_mask": found["text_mask"].long(),
              "pixel_values": found["pixels"][:, 0], "pixel_mask": pixel_mask}  # fmt: skip
    return found, theirs


@pytest.mark.parametrize("side", [12, 20])
def test_transformers_vilt_becomes_a_fusion_encoder_and_goes_back(tmp_path, side):
    theirs = vilt()
    ours, answers = fusion_from_transformers(theirs)
    inputs, their_inputs = given(side)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs), theirs(**their_inputs).logits, atol=1e-5, rtol=1e-5)
    assert answers == ANSWERS
    save_transformers(ours, tmp_path, answers)
    back = transformers.ViltForQuestionAnswering.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(**their_inputs).logits, ours(**inputs), atol=1e-5, rtol=1e-5)


def test_a_pair_of_images_in_transformers():
    theirs = vilt("ViltForImagesAndTextClassification", num_images=2, modality_type_vocab_size=3,
                  id2label={0: "False", 1: "True"}, label2id={"False": 0, "True": 1})  # fmt: skip
    ours, answers = fusion_from_transformers(theirs)
    inputs = batch(images=2)
    with torch.no_grad():
        logits = theirs(input_ids=inputs["text"], attention_mask=inputs["text_mask"].long(),
                        pixel_values=inputs["pixels"]).logits  # fmt: skip
        torch.testing.assert_close(ours(**inputs), logits, atol=1e-5, rtol=1e-5)
    assert answers == ("False", "True")


def test_queries_and_keys_of_transformers_are_those_of_the_converted_network():
    class Adapter(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, text, text_mask, pixels, patch_mask=None):
            # Tokens are embedded once, in raster order: transformers itself would shuffle the patches.
            embeddings = converted.transformer.embed(pixels[:, 0], None)
            embeddings = embeddings + converted.token_type_embeddings.weight[1]
            mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
            words = self.model.vilt.embeddings.text_embeddings(text) + converted.token_type_embeddings.weight[0]
            states = torch.cat([words, embeddings], 1)
            whole = torch.cat([text_mask.long(), mask], 1)[:, None, None]
            added = (1.0 - whole.float()) * torch.finfo(torch.float32).min
            for layer in self.model.vilt.encoder.layer:
                out = layer(states, added)
                states = out if isinstance(out, torch.Tensor) else out[0]
            return self.model.classifier(self.model.vilt.pooler(self.model.vilt.layernorm(states)))

    model = vilt()
    converted, _ = fusion_from_transformers(model)
    inputs = batch()
    scores, (maps,) = SingleStream(Adapter(model))(inputs)
    ours, (expected,) = SingleStream(converted)(inputs)
    torch.testing.assert_close(scores, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[0].text_queries, expected[0].text_queries, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[0].image_keys, expected[0].image_keys, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("images", [1, 2])
def test_official_checkpoints_go_in_and_out(tmp_path, images):
    teacher, student = fusion(images=images), dual(1, images=images)
    head = "vqa_classifier" if images == 1 else "nlvr2_classifier"
    inputs = batch(images=images)
    state = to_official(teacher, head) | {"text_embeddings.position_ids": torch.arange(10)[None],
                                          "itm_score.fc.weight": torch.zeros(2, 8)}  # fmt: skip
    torch.save({"state_dict": state, "epoch": 3, "lr": 0.1}, tmp_path / "vilt.ckpt")
    read = fusion_from_official(read_official(tmp_path / "vilt.ckpt"), heads=2)
    torch.testing.assert_close(read(**inputs), teacher(**inputs))
    whole = to_official(student, head)
    whole |= {f"teacher_model.{name}": value for name, value in state.items()}
    assert whole["image_encoder.text_embeddings.word_embeddings.weight"].shape == (len(WORDS) + 5, 8)
    torch.save({"state_dict": whole}, tmp_path / "dide.ckpt")
    read = dual_from_official(read_official(tmp_path / "dide.ckpt"), heads=2)
    torch.testing.assert_close(read(**inputs), student(**inputs))
    with pytest.raises(UserError, match="no head"):
        fusion_from_official({n: v for n, v in state.items() if "classifier" not in n}, heads=2)
    with pytest.raises(UserError, match="lacks"):
        fusion_from_official({"vqa_classifier.3.weight": torch.zeros(2, 2)})


def test_checkpoints_are_imported_and_exported_by_the_command_line(tmp_path, capsys):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *sorted(set(WORDS))]) + "\n")
    (tmp_path / "answers.json").write_text(json.dumps({answer: n for n, answer in enumerate(ANSWERS)}))
    torch.save({"state_dict": to_official(dual(1), "vqa_classifier")}, tmp_path / "dide.ckpt")
    command = ["import", "dual-encoder", str(tmp_path / "dide.ckpt"), "--out", str(tmp_path / "model"), "--heads", "2"]
    assert main(command) == 2 and "--vocabulary" in capsys.readouterr().err
    command += ["--vocabulary", str(vocabulary)]
    assert main(command) == 2 and "--answers" in capsys.readouterr().err
    assert main([*command, "--answers", str(tmp_path / "answers.json")]) == 0
    model = load(tmp_path / "model")
    assert model.answers == ANSWERS
    torch.testing.assert_close(model.model(**batch()), dual(1)(**batch()))
    folder = save_transformers(fusion_from_transformers(vilt())[0], tmp_path / "vilt", ANSWERS)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *sorted(set(WORDS))]) + "\n")
    assert main(["import", "dual-encoder", str(folder), "--out", str(tmp_path / "teacher")]) == 0
    with pytest.raises(UserError, match="it teaches"):
        load(tmp_path / "teacher")
    for kind in ("transformers", "official"):
        out = tmp_path / kind
        assert main(["export", str(tmp_path / "teacher"), "--to", kind, "--out", str(out)]) == 0
    inputs, _ = given()
    again = fusion_from_transformers(tmp_path / "transformers")[0]
    torch.testing.assert_close(again(**inputs), load_network(tmp_path / "teacher")[0](**inputs), atol=1e-5, rtol=1e-5)
    wanted = load_network(tmp_path / "teacher")[0].sizes
    found = load_teacher(tmp_path / "vilt", wanted, ANSWERS[::-1])
    torch.testing.assert_close(found(**inputs), again(**inputs).flip(1), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"set model\.width"):
        load_teacher(tmp_path / "vilt", sizes(), ANSWERS)


def test_a_teacher_that_does_not_know_an_answer_is_refused():
    with pytest.raises(UserError, match="fine-tuned on this task"):
        with_answers(fusion(), ("a", "b", "c", "d"), ("a", "e"), "it")


def small(kind, **changes):
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return getattr(transformers, kind)(**common | changes)


def bert():
    return transformers.BertModel(small("BertConfig", vocab_size=40, max_position_embeddings=16))


def vision(kind, **changes):
    config = small(f"{kind}Config", image_size=12, patch_size=2, **changes)
    return getattr(transformers, f"{kind}Model")(config)


def clip():
    sides = {"text_config": {"vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 2},
             "vision_config": {"image_size": 12, "patch_size": 2}}  # fmt: skip
    for side in sides.values():
        side |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return transformers.CLIPModel(transformers.CLIPConfig(**sides, projection_dim=8))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("text", "image", "prefix"),
    [(bert, lambda: vision("ViT"), 1), (bert, lambda: vision("DeiT"), 2), (clip, clip, 1),
     (bert, lambda: vision("SiglipVision"), 0)],
)  # fmt: skip
def test_towers_of_transformers_learn_under_every_attention(tmp_path, text, image, prefix, attention):
    towers = transformers_towers(text(), image(), input_patch=4)
    for tower in towers:
        tower.module.config._attn_implementation = attention
    student = DualEncoder(*towers, len(ANSWERS))
    assert towers[1].prefix == prefix
    teacher, inputs = fusion(width=16), batch()
    loss, parts = DistillationObjective(TwoTowers(), SingleStream(teacher), "multilabel")(student, inputs)
    loss.backward()
    assert parts["attention"] > 0
    missing = [n for n, p in student.named_parameters() if p.grad is None and not n.endswith("mask_token")]
    unused = [n for n in missing if "post_layernorm" not in n and "final_layer_norm" not in n]
    assert not unused
    if attention == "sdpa":
        preparation = ImagePreparation(patch=4, shorter=12, longest=12, square=True)
        tokenizer = QuestionTokenizer([*SPECIAL, *sorted(set(WORDS))], "words", 10)
        save_dual_encoder(tmp_path, student, tokenizer, preparation, ANSWERS, "multilabel")
        again, _ = load_network(tmp_path)
        torch.testing.assert_close(again(**inputs), student.eval()(**inputs), atol=1e-5, rtol=1e-5)


def test_a_tower_of_ones_own_and_what_it_cannot_do():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, 4)

        def forward(self, pixel_values):
            return self.conv(pixel_values).flatten(2).transpose(1, 2)

    student = DualEncoder(dual().text_tower, ModuleImageTower(Own(), 8, 4, pool="mean", prefix=0), 4)
    assert student(**batch()).shape == (2, 4)
    with pytest.raises(UserError, match="attention layers"):
        TwoTowers()(student, batch())
    with pytest.raises(UserError, match="padding"):
        student(**batch(sizes_of_images=[(12, 8), (8, 12)]))
    with pytest.raises(UserError, match="factory"):
        save_dual_encoder("unused", student, QuestionTokenizer.of_words(WORDS), ImagePreparation(), ANSWERS, "classes")
