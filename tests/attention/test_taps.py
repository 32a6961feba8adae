"""Taps on networks of timm and transformers, on a user's own, and on text."""

import pytest
import torch
from torch import nn

from tenfold.attention.heads import heads_per_block, set_heads_per_block
from tenfold.attention.layers import Tap, attention_layers
from tenfold.attention.taps import tap, tap_layers
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.method import PRESETS, RelationDistiller
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 0}


def bert(width=24, layers=3, heads=2, seed=0, kind="Bert", **options):
    torch.manual_seed(seed)
    settings = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                "intermediate_size": 2 * width, "vocab_size": 50, **options}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**settings)
    return getattr(transformers, f"{kind}Model")(config).eval()


def vit(kind="ViT", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8,
        **options,
    )  # fmt: skip
    return getattr(transformers, f"{kind}Model")(config).eval()


def attention_map(found: Tap) -> torch.Tensor:
    logits = found.q @ found.k.repeat_interleave(found.heads // found.k.shape[1], 1).mT * found.scale
    if found.bias is not None:
        logits = logits + found.bias
    return logits.softmax(-1)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit_tiny_patch16_224", 1), ("deit3_small_patch16_224", 1), ("vit_small_patch14_reg4_dinov2", 5),
     ("vit_small_patch16_dinov3", 5), ("beit_base_patch16_224", 1), ("eva02_tiny_patch14_224", 1)],
)  # fmt: skip
def test_vision_transformers_of_timm(name, prefix):
    heads = {"num_heads": 3} if "beit" not in name else {"num_heads": 4}
    model = timm.create_model(name, **SMALL, **heads).eval()
    found = tap(model, -1, IMAGES)
    assert (found.prefix, found.grid, found.tokens) == (prefix, (4, 4), 16 + prefix)
    # The values that the real attention gives: map times values is what its output projection gets.
    seen = []
    last = model.blocks[-1].attn
    projection = last.proj
    projection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(IMAGES)
    expected = (attention_map(found) @ found.v).transpose(1, 2).flatten(2)
    if isinstance(getattr(last, "norm", None), nn.LayerNorm):
        expected = last.norm(expected)
    torch.testing.assert_close(seen[0], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vision_transformers_of_transformers(attention):
    model = vit(attn_implementation=attention)
    found = tap(model, 2, {"pixel_values": IMAGES})
    raw = tap(model, 2, {"pixel_values": IMAGES}, qk="raw")
    for name in "qkv":
        torch.testing.assert_close(getattr(found, name), getattr(raw, name))
    assert (found.prefix, found.grid) == (1, (4, 4))
    assert model.config._attn_implementation == attention  # put back


def test_masked_autoencoders_of_transformers_see_all_patches_in_order(tmp_path):
    """Shuffled as they are by default, a network would not agree with itself."""
    model = vit("ViTMAE")
    model.save_pretrained(tmp_path)
    again = transformers.ViTMAEModel.from_pretrained(tmp_path).eval()
    losses = RelationDistiller(model, again).eval().loss(IMAGES)
    assert losses["loss"].abs() < 1e-6
    assert tap(model, 1, IMAGES).tokens == 17 and model.config.mask_ratio == 0.75


def test_a_tap_takes_gradients_and_leaves_the_rest_alone():
    model = vit()
    taps, output = tap_layers(model, [1, -1], {"pixel_values": IMAGES}, stop=False)
    assert len(taps) == 2 and output is not None
    tap(model, 2, {"pixel_values": IMAGES}).q.sum().backward()
    assert model.layers[0].mlp.fc1.weight.grad is not None and model.layers[2].mlp.fc1.weight.grad is None


def test_a_user_may_bring_the_tap():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(8, 24)

        def forward(self, x):
            return self.project(x)

    def own_tap(model, x):
        q, k, v = model(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return Tap(q, k, v, scale=0.5)

    torch.manual_seed(0)
    student, teacher = Own(), Own()
    with pytest.raises(UserError, match="callable"):
        tap(student, 1, torch.randn(2, 5, 8))
    distiller = RelationDistiller(student, teacher, student_layer=own_tap, teacher_layer=own_tap)
    distiller.loss(torch.randn(2, 5, 8))["loss"].backward()
    assert student.project.weight.grad.abs().max() > 0


def test_attention_that_cannot_be_seen_is_said_to_be():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=224).eval()
    with pytest.raises(UserError, match="scaled_dot_product_attention"):
        tap(model, 1, torch.randn(1, 3, 224, 224))


def test_heads_that_belong_to_parameters_are_not_changed():
    normed = timm.create_model("vit_tiny_patch16_224", **SMALL, num_heads=2, qk_norm=True)
    with pytest.raises(UserError, match="q_norm"):
        set_heads_per_block(normed, [2, 4])
    other = vision_transformer(image_size=32, patch=8, width=48, depth=2, heads=4)
    distiller = RelationDistiller(normed, other)
    assert distiller.heads == [4] and heads_per_block(normed) == [2, 2]  # relation heads instead
    assert distiller.loss(IMAGES)["loss"] > 0


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "beit_base_patch16_224"])
def test_positions_that_belong_to_the_heads_leave_every_advice_working(name):
    """Rotary and relative positions: a setting works, or its message names one that does; the student still runs."""
    other = vision_transformer(image_size=32, patch=8, width=48, depth=2, heads=8)

    def distil(**settings):
        student = timm.create_model(name, **(SMALL | {"embed_dim": 32}), num_heads=4)
        distiller = RelationDistiller(student, other, example=IMAGES, **settings)
        distiller.loss(IMAGES)["loss"].backward()
        student.eval()(IMAGES)
        assert heads_per_block(student) == [4, 4]

    with pytest.raises(UserError, match="heads='auto'"):
        distil(heads="adaptive")
    for settings in ({"qk": "raw"}, {"heads": "mean"}, {"heads": 2, "qk": "raw"}, {"pairs": ("vv",), "heads": 4}):
        distil(**settings)
    if "beit" in name:
        with pytest.raises(UserError, match="qk='raw'"):
            distil()
    else:
        distil()


def test_heads_with_which_a_network_no_longer_runs_are_put_back():
    class Fixed(nn.Module):
        """An attention layer of one's own, whose head width is written down."""

        def __init__(self):
            super().__init__()
            self.num_heads = 2
            self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, 12).permute(2, 0, 3, 1, 4)
            return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    student, teacher = nn.Sequential(Fixed()), nn.Sequential(Fixed())
    teacher[0].num_heads = 4
    teacher[0].forward = lambda x: nn.functional.scaled_dot_product_attention(
        *teacher[0].qkv(x).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
    )
    batch = torch.randn(2, 5, 24)
    distiller = RelationDistiller(student, teacher, example=batch)
    assert distiller.heads == [4] and student[0].num_heads == 2
    student(batch)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_networks_are_tapped_as_they_are(wrap):
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, num_heads=2)
    expected = tap(model, -1, IMAGES)
    torch.testing.assert_close(tap(wrap(model), -1, IMAGES).q, expected.q)
    assert RelationDistiller(wrap(model), model).eval().loss(IMAGES)["loss"].abs() < 1e-6


def test_parts_that_are_compiled_run_as_written_while_they_are_tapped():
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, num_heads=2)
    expected = tap(model, -1, IMAGES)
    model.compile()
    torch.testing.assert_close(tap(model, -1, IMAGES).q, expected.q)


def test_a_pool_that_attends_is_no_layer():
    model = timm.create_model("eva02_tiny_patch14_224", **SMALL, num_heads=3, global_pool="map").eval()
    assert tap(model, -1, IMAGES).q.shape == (2, 3, 17, 8)
    with pytest.raises(UserError, match="layers 1 to 2"):
        tap(model, 3, IMAGES)


def test_images_are_resized_for_a_teacher_of_other_patches():
    student = vision_transformer(image_size=16, patch=4, width=48, depth=2, heads=2)
    teacher = vit()  # patches of 8 pixels, images of 32
    small = torch.nn.functional.interpolate(IMAGES, (16, 16))
    for batch in (small, (small, {"pixel_values": small})):
        assert RelationDistiller(student, teacher).loss(batch)["loss"] > 0


def test_distilling_between_libraries():
    torch.manual_seed(1)
    student = vision_transformer(image_size=32, patch=8, width=48, depth=2, heads=2)
    distiller = RelationDistiller(student, vit(), example=IMAGES)
    first = distiller.loss(IMAGES)["loss"]
    optimizer = torch.optim.AdamW(distiller.trainable_parameters(), lr=5e-3)
    for _ in range(20):
        loss = distiller.loss(IMAGES)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * first


def tokens(lengths=(9, 5), length=9):
    ids = torch.randint(1, 50, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_text_and_its_padding(preset):
    """More padding changes neither loss nor gradients."""
    settings = dict(PRESETS[preset])
    if preset == "minilmv2":
        settings["heads"] = 4
    gradients, losses = [], []
    for length in (9, 14):
        student, teacher = bert(), bert(width=32, layers=4, heads=4, seed=1)
        distiller = RelationDistiller(student, teacher, **settings).eval()
        batch = tokens(length=14)
        batch = {name: value[:, :length] for name, value in batch.items()}
        loss = distiller.loss(batch)["loss"]
        loss.backward()
        losses.append(loss.detach())
        gradients.append(student.encoder.layer[1].attention.self.key.weight.grad)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-4)
    copied = RelationDistiller(bert(), bert(), **settings).eval()
    assert copied.loss(tokens())["loss"].abs() < 1e-6


def test_a_two_layer_bert_learns_from_a_deeper_one():
    student, teacher = bert(layers=2), bert(width=32, layers=4, heads=4, seed=1)
    distiller = RelationDistiller(student, teacher, example=tokens())
    assert distiller.layers == [(2, 3, 1.0)] and attention_layers(student)[1].heads == 4
    assert "pooler" in distiller.untrained
    first = distiller.loss(tokens())["loss"]
    optimizer = torch.optim.AdamW(distiller.trainable_parameters(), lr=5e-3)
    for _ in range(20):
        loss = distiller.loss(tokens())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * first


def test_causal_models_with_grouped_queries():
    settings = {"num_key_value_heads": 2}
    student = bert(kind="Llama", heads=4, width=32, layers=2, **settings)
    teacher = bert(kind="Llama", heads=4, width=48, layers=2, seed=1, **settings)
    batch = {"input_ids": tokens()["input_ids"]}
    found = tap(teacher, 2, batch)
    assert found.k.shape[1] == 2 and attention_map(found).triu(1).abs().max() == 0
    distiller = RelationDistiller(student, teacher).eval()
    short = {"input_ids": batch["input_ids"][:, :1].expand(-1, 1)}
    assert distiller.loss(short)["loss"].abs() < 1e-6  # one token attends to itself alone, in both relations
    changed = batch["input_ids"].clone()
    losses = distiller.loss(batch)
    assert losses["qk"] > 0 and losses["vv"] > 0
    assert RelationDistiller(student, student).eval().loss({"input_ids": changed})["loss"].abs() < 1e-6
