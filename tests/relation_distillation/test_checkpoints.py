"""Official files and transformers' models."""

import argparse

import pytest
import torch

from tenfold.attention.heads import heads_per_block
from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.method import RelationDistiller
from tenfold.systems.relation_distillation.vit.build import largest_difference
from tenfold.systems.relation_distillation.vit.masked_autoencoder import MAEDecoder, MaskedAutoencoder
from tenfold.systems.relation_distillation.vit.official_files import (
    load_decoder,
    load_official,
    load_teacher_weights,
    read_official,
)
from tenfold.systems.relation_distillation.vit.tinymim_star import TinyMIMStar
from tenfold.systems.relation_distillation.vit.transformers_vit import from_transformers, to_transformers
from tenfold.systems.relation_distillation.vit.vision_transformer import load_backbone, vision_transformer

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(width=48, depth=3, heads=3, seed=0, **options):
    torch.manual_seed(seed)
    return vision_transformer(image_size=32, patch=8, width=width, depth=depth, heads=heads, **options).eval()


def test_a_training_checkpoint_with_its_namespace_loads_and_nothing_else_is_executed(tmp_path):
    model = network(heads=[3, 3, 6])
    path = tmp_path / "checkpoint-299.pth"
    settings = argparse.Namespace(model="tinymim_vit_tiny", lr=1e-3)
    torch.save({"model": model.state_dict(), "epoch": 299, "args": settings, "scaler": {}}, path)
    assert read_official(path).kind == "tinymim-pretrained"
    loaded = load_official(path, heads=[3, 3, 6])
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    with pytest.raises(UserError, match="name its heads"):
        load_official(path)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"model": model.state_dict(), "args": Evil()}, path)
    with pytest.raises(UserError, match="nothing was executed"):
        load_official(path)


@pytest.mark.parametrize(
    ("width", "name", "last", "others"),
    [(192, "TinyMIM-PT-T.pth", 12, 6), (384, "TinyMIM-PT-S.pth", 12, 6), (768, "TinyMIM-PT-B.pth", 16, 12),
     (768, "mae_pretrain_vit_base.pth", 12, 12)],
)  # fmt: skip
def test_published_head_counts(tmp_path, width, name, last, others):
    torch.save({"model": network(width=width, depth=2, heads=12).state_dict()}, tmp_path / name)
    assert read_official(tmp_path / name).heads() == [others, last]
    assert heads_per_block(load_official(tmp_path / name)) == [others, last]


def test_the_official_mae_files_are_timms(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("vit_base_patch16_224.mae", img_size=32, patch_size=8, depth=2, num_classes=0,
                               global_pool="").eval()  # fmt: skip
    torch.save({"model": theirs.state_dict()}, tmp_path / "mae_pretrain_vit_base.pth")
    loaded = load_official(tmp_path / "mae_pretrain_vit_base.pth")
    assert torch.equal(loaded(IMAGES), theirs(IMAGES))


def test_a_full_autoencoder_gives_encoder_and_decoder(tmp_path):
    encoder = network(heads=3)
    autoencoder = MaskedAutoencoder(encoder, decoder_width=32, decoder_depth=2, decoder_heads=4)
    state = encoder.state_dict() | autoencoder.decoder.state_dict()
    assert "mask_token" in state and "decoder_blocks.1.attn.qkv.weight" in state
    torch.save({"model": state}, tmp_path / "mae_visualize.pth")
    loaded = load_official(tmp_path / "mae_visualize.pth", heads=[3])
    decoder = load_decoder(tmp_path / "mae_visualize.pth", loaded, heads=4)
    keep = torch.tensor([[0, 3, 9], [1, 2, 15]])
    visible = torch.randn(2, 4, 48)
    assert torch.equal(decoder(visible, keep, IMAGES), autoencoder.decoder.eval()(visible, keep, IMAGES))
    with pytest.raises(UserError, match="no decoder"):
        torch.save({"model": encoder.state_dict()}, tmp_path / "plain.pth")
        load_decoder(tmp_path / "plain.pth", loaded)
    assert isinstance(decoder, MAEDecoder)


def test_conversion_to_transformers_and_back_is_exact(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = network()
    theirs = to_transformers(model)
    theirs.save_pretrained(tmp_path)
    again = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    tokens = again(pixel_values=IMAGES).last_hidden_state
    torch.testing.assert_close(tokens, model(IMAGES), atol=1e-5, rtol=1e-5)
    back = from_transformers(again)
    assert torch.equal(back(IMAGES), model(IMAGES))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    with pytest.raises(UserError, match="one head count"):
        to_transformers(network(heads=[3, 3, 6]))


def test_a_chain_goes_on_with_the_heads_of_each_block(tmp_path):
    """A student with an adapted last block teaches the next one with the heads that it was trained with."""
    between = network(width=48, depth=2, heads=[3, 12])
    student = network(width=24, depth=2, heads=2, seed=1)
    RelationDistiller(student, between)
    assert heads_per_block(student) == [2, 12]
    torch.save({"model": between.state_dict()}, tmp_path / "TinyMIM-PT-S.pth")
    teacher = network(width=48, depth=2, heads=[3, 12], seed=2)
    load_teacher_weights(teacher, str(tmp_path / "TinyMIM-PT-S.pth"))
    assert torch.equal(teacher(IMAGES), between(IMAGES))


def test_fine_tuning_starts_from_the_same_function_unless_heads_are_reset():
    """As pre-trained bit-equal, uniform heads another function, by a number that is reported."""
    pretrained = network(heads=[3, 3, 6])
    same = network(heads=[3, 3, 6], seed=1, num_classes=4)
    missing = load_backbone(same, pretrained.state_dict())
    assert sorted(missing) == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    assert largest_difference(pretrained, same, IMAGES) == 0
    reset = network(heads=3, seed=1, num_classes=4)
    load_backbone(reset, pretrained.state_dict())
    assert largest_difference(pretrained, reset, IMAGES) > 1e-3


def test_positions_of_another_grid_are_resized():
    larger = vision_transformer(image_size=64, patch=8, width=48, depth=3, heads=3, num_classes=4)
    load_backbone(larger, network().state_dict())
    assert larger(torch.randn(1, 3, 64, 64)).shape == (1, 4)


def test_tinymim_star(tmp_path):
    torch.manual_seed(0)
    star = TinyMIMStar(image_size=32, patch=8, width=192, depth=2, num_classes=5, bottleneck=40).eval()
    torch.save({"model": star.state_dict()}, tmp_path / "TinyMIM-FT-Tstar.pth")
    state = star.state_dict()
    assert state["pos_embed"].shape == (1, 18, 192) and state["conv1x1.1.weight"].shape == (40, 192)
    loaded = load_official(tmp_path / "TinyMIM-FT-Tstar.pth")
    assert torch.equal(loaded(IMAGES), star(IMAGES))
    assert len(loaded.train()(IMAGES)) == 2


def test_wrong_files(tmp_path, capsys):
    wrong = tmp_path / "resnet.pth"
    torch.save({"model": {"conv1.weight": torch.zeros(2)}}, wrong)
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight"):
        load_official(wrong)
    with pytest.raises(UserError, match="has shape"):
        torch.save({"model": network(width=24).state_dict()}, wrong)
        load_teacher_weights(network(), str(wrong))
    with pytest.raises(UserError, match="another architecture"):
        load_backbone(network(num_classes=3), network(width=24).state_dict())
    with pytest.raises(UserError, match="without a gap"):  # nothing of a million blocks is built
        state = network().state_dict() | {"blocks.999999.attn.qkv.weight": torch.zeros(1)}
        torch.save({"model": state}, wrong)
        load_official(wrong)
    torch.save({"model": network(width=24).state_dict()}, wrong)
    (tmp_path / "cut.pth").write_bytes(wrong.read_bytes()[:100])
    assert main(["import", "relation-distillation", str(tmp_path / "cut.pth")]) == 2
    assert main(["import", "relation-distillation", str(tmp_path / "missing.pth")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_import_from_the_command_line(tmp_path, capsys):
    model = network(heads=[3, 3, 6], num_classes=4)
    torch.save({"model": model.state_dict()}, tmp_path / "tinymim.pth")
    folder = tmp_path / "model"
    arguments = ["import", "relation-distillation", str(tmp_path / "tinymim.pth"), "--heads", "[3, 3, 6]"]
    assert main([*arguments, "--out", str(folder)]) == 0
    assert '"num_classes": 4' in capsys.readouterr().out
    assert main([*arguments, "--out", str(folder)]) == 2
    from tenfold.systems.relation_distillation.vit.build import load_model_folder

    assert torch.equal(load_model_folder(folder)(IMAGES), model(IMAGES))
