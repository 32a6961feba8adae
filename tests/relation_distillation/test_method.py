"""The distiller on vision transformers."""

import copy
import math

import pytest
import torch

from tenfold.attention.heads import heads_per_block
from tenfold.attention.layers import attention_layers, default_teacher_layer
from tenfold.attention.taps import tap
from tenfold.attention.tokens import resized
from tenfold.errors import UserError
from tenfold.losses import relation_kl
from tenfold.systems.relation_distillation.method import RelationDistiller, RelationLoss
from tenfold.systems.relation_distillation.vit.masked_autoencoder import MAEDecoder, MaskedAutoencoder, patchify
from tenfold.systems.relation_distillation.vit.patch_masks import keep_patches, random_patches
from tenfold.systems.relation_distillation.vit.vision_transformer import (
    set_drop_path,
    sincos_positions,
    vision_transformer,
)

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(width=24, depth=3, heads=2, seed=0, **options):
    torch.manual_seed(seed)
    return vision_transformer(image_size=16, patch=4, width=width, depth=depth, heads=heads, **options)


@pytest.mark.parametrize("pairs", [("qk", "vv"), ("qq", "kk", "vv"), ("qv",)])
@pytest.mark.parametrize("kernel", ["direct", "chunked"])
def test_a_copy_has_no_loss_and_no_gradients(pairs, kernel):
    student = network()
    distiller = RelationDistiller(student, copy.deepcopy(student), pairs, kernel=kernel).eval()
    losses = distiller.loss(IMAGES)
    losses["loss"].backward()
    assert abs(losses["loss"]) < 1e-6
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in student.parameters())


def test_the_loss_is_the_sum_of_both_relations_with_their_own_scales():
    student, teacher = network(), network(width=64, depth=3, heads=4, seed=1)
    distiller = RelationDistiller(student, teacher).eval()
    losses = distiller.loss(IMAGES)
    ours, theirs = tap(student, 3, IMAGES), tap(teacher, 3, IMAGES)
    assert ours.q.shape == (3, 4, 17, 6) and theirs.q.shape == (3, 4, 17, 16)

    def kl(a, b, u, w):
        p = (a @ b.mT / math.sqrt(6)).log_softmax(-1)
        t = (u @ w.mT / math.sqrt(16)).log_softmax(-1)
        return (t.exp() * (t - p)).sum(-1).mean()

    expected = kl(ours.q, ours.k, theirs.q, theirs.k), kl(ours.v, ours.v, theirs.v, theirs.v)
    torch.testing.assert_close(losses["qk"], expected[0].detach())
    torch.testing.assert_close(losses["vv"], expected[1].detach())
    torch.testing.assert_close(losses["loss"], sum(expected))
    unadapted = relation_kl(ours.q, ours.k, theirs.q, theirs.k, scale_s=12**-0.5)  # of the 2 heads it had
    assert abs(unadapted - losses["qk"]) > 1e-5


def test_the_adaptive_block_changes_heads_but_no_parameter():
    student, teacher = network(), network(width=64, heads=4, seed=1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    RelationDistiller(student, teacher)
    assert heads_per_block(student) == [2, 2, 4]
    after = student.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_the_map_inside_the_block_is_the_relation_of_its_number():
    teacher = network(depth=4).eval()
    block = teacher.blocks[2]
    block.attn.fused_attn = False
    seen = []
    block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    teacher(IMAGES)
    found = tap(teacher, 3, IMAGES)
    torch.testing.assert_close(seen[0], (found.q @ found.k.mT * found.scale).softmax(-1))


def test_the_forward_pass_ends_at_the_projection_of_the_last_block():
    student, ran = network(depth=4), []
    for name, module in student.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    tap(student, 3, IMAGES)
    assert "blocks.1.mlp.fc2" in ran and "blocks.2.norm1" in ran
    assert "blocks.2.attn.proj" not in ran and not any(name.startswith("blocks.3") for name in ran)


@pytest.mark.parametrize("layer", [0, 5, -5])
def test_a_layer_out_of_range_is_refused(layer):
    with pytest.raises(UserError, match="layers 1 to 4"):
        tap(network(depth=4), layer, IMAGES)
    with pytest.raises(UserError, match="the teacher has attention layers 1 to 4"):
        RelationDistiller(network(), network(depth=4), teacher_layer=layer)


def test_gradients_reach_the_student_up_to_the_tap_and_nothing_else():
    student, teacher = network(), network(width=64, heads=4, depth=4, seed=1)
    distiller = RelationDistiller(student, teacher, example=IMAGES)
    distiller.loss(IMAGES)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    missing = {name for name, p in student.named_parameters() if p.grad is None}
    last = {
        f"blocks.2.{name}" for name, _ in student.blocks[2].named_parameters() if name.split(".")[0] in ("norm2", "mlp")
    }
    assert missing == last | {"blocks.2.attn.proj.weight", "blocks.2.attn.proj.bias", "norm.weight", "norm.bias"}
    assert distiller.untrained == ["blocks.2.attn.proj", "blocks.2.norm2", "blocks.2.mlp", "norm"] or set(
        distiller.untrained
    ) == {"blocks.2.attn.proj", "blocks.2.norm2", "blocks.2.mlp", "norm"}
    before = {name: p.clone() for name, p in student.named_parameters() if name in missing}
    torch.optim.AdamW(distiller.trainable_parameters(), lr=0.1, weight_decay=0.5).step()
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters() if name in missing)


def test_key_biases_get_no_gradient_from_attention_maps_alone():
    student, teacher = network(), network(width=64, heads=4, seed=1)
    gradients = {}
    for pairs in (("qk",), ("kk",)):
        student.zero_grad()
        RelationDistiller(student, teacher, pairs).loss(IMAGES)["loss"].backward()
        gradients[pairs[0]] = student.blocks[2].attn.qkv.bias.grad[24:48].abs().max()
    assert gradients["qk"] < 1e-7 < 1e-5 < gradients["kk"]


def test_the_class_token_takes_part_and_registers_leave_before_the_softmax():
    student, teacher = network().eval(), network(width=64, heads=2, seed=1).eval()
    loss = RelationDistiller(student, teacher, ("qk",)).loss(IMAGES)["loss"]
    ours, theirs = tap(student, 3, IMAGES), tap(teacher, 3, IMAGES)
    without = relation_kl(*(x[:, :, 1:] for x in (ours.q, ours.k, theirs.q, theirs.k)))
    assert abs(loss - without) > 1e-6
    registers = network(width=64, heads=2, seed=1, prefix_tokens=5).eval()
    found = RelationDistiller(student, registers, ("qk",)).loss(IMAGES)["loss"]
    theirs = tap(registers, 3, IMAGES)
    kept = [0, *range(5, 21)]
    torch.testing.assert_close(found, relation_kl(ours.q, ours.k, theirs.q[:, :, kept], theirs.k[:, :, kept]))
    logits = theirs.q @ theirs.k.mT * theirs.scale
    after = logits.softmax(-1)[:, :, kept][..., kept]
    assert after.sum(-1).max() < 0.99  # dropped after the softmax, rows would not sum to one


def test_masked_input_is_the_same_for_both_with_its_own_positions():
    student, teacher = network().eval(), network(width=64, heads=2, seed=1).eval()
    keep = random_patches(student, IMAGES, 0.75)
    assert keep.shape == (3, 4) and (keep.diff(dim=1) > 0).all()
    for model in (student, teacher):
        with torch.no_grad():
            whole = model.patch_embed(IMAGES) + model.pos_embed[:, 1:]
            expected = whole.gather(1, keep[..., None].expand(-1, -1, model.embed_dim))
        seen = []
        handle = model.blocks[0].register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        with keep_patches(model, keep):
            tap(model, 1, IMAGES)
        handle.remove()
        torch.testing.assert_close(seen[0][:, 1:], expected)
        torch.testing.assert_close(seen[0][:, 0], (model.cls_token[0] + model.pos_embed[:, 0]).expand(3, -1))
    distiller = RelationDistiller(student, teacher, mask_ratio=0.75)
    assert distiller.loss(IMAGES)["loss"] > 0
    copied = RelationDistiller(student, copy.deepcopy(student), mask_ratio=0.75).eval()
    assert copied.loss(IMAGES)["loss"] < 1e-6


def test_reconstruction_is_added_as_an_auxiliary_loss():
    student, teacher = network(), network(width=64, heads=2, seed=1)
    decoder = MAEDecoder(student, width=16, depth=1, heads=2)
    distiller = RelationDistiller(student, teacher, mask_ratio=0.75, decoder=decoder, example=IMAGES)
    torch.manual_seed(3)
    losses = distiller.loss(IMAGES)
    torch.testing.assert_close(losses["loss"].detach(), losses["qk"] + losses["vv"] + losses["reconstruction"])
    assert distiller.untrained == []  # now the whole student is needed


def test_an_unshuffled_autoencoder_reconstructs_what_it_saw():
    student = network()
    autoencoder = MaskedAutoencoder(student, decoder_width=16, decoder_depth=1, decoder_heads=2)
    loss = autoencoder(IMAGES)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    patches = patchify(IMAGES, 4)
    assert patches.shape == (3, 16, 48)
    torch.testing.assert_close(patches[0, 5].view(4, 4, 3).permute(2, 0, 1), IMAGES[0, :, 4:8, 4:8])


def test_two_relations_of_equal_weight_unless_told_otherwise():
    student, teacher = network().eval(), network(width=64, heads=2, seed=1).eval()
    one = RelationDistiller(student, teacher).loss(IMAGES)
    other = RelationDistiller(student, teacher, weights=[2.0, 0.5]).loss(IMAGES)
    torch.testing.assert_close(other["loss"], 2 * one["qk"] + 0.5 * one["vv"])
    several = RelationDistiller(student, teacher, more_layers=[(1, 2, 0.5)]).loss(IMAGES)
    assert several["loss"] > one["loss"]
    plain = RelationDistiller(student, teacher, softmax=False).loss(IMAGES)
    assert plain["loss"] != one["loss"]


@pytest.mark.parametrize("heads", [1, 2, 4, 8, "mean"])
def test_relation_heads_and_mean(heads):
    student, teacher = network(heads=3), network(width=64, heads=4, seed=1)
    distiller = RelationDistiller(student, teacher, heads=heads).eval()
    found = distiller.loss(IMAGES)["qk"]
    assert heads_per_block(student) == [3, 3, 3]
    ours, theirs = tap(student, 3, IMAGES), tap(teacher, 3, IMAGES)
    if heads == "mean":
        logits = [(t.q @ t.k.mT * t.scale).mean(1, keepdim=True) for t in (ours, theirs)]
    else:
        joined = [
            [x.transpose(1, 2).reshape(3, 17, heads, -1).transpose(1, 2) for x in (t.q, t.k)] for t in (ours, theirs)
        ]
        logits = [q @ k.mT / math.sqrt(q.shape[-1]) for q, k in joined]
    p, t = (x.log_softmax(-1) for x in logits)
    torch.testing.assert_close(found, (t.exp() * (t - p)).sum(-1).mean().detach())


def test_heads_that_cannot_be_aligned():
    with pytest.raises(UserError, match="not a multiple of 5 heads"):
        RelationDistiller(network(), network(width=60, heads=5), heads="adaptive")
    common = RelationDistiller(network(), network(width=60, heads=5))  # 3 divides 24 and 60
    assert common.heads == [4]
    with pytest.raises(UserError, match="do not divide"):
        RelationDistiller(network(), network(width=60, heads=5), heads=5).loss(IMAGES)


def test_grids_that_differ():
    student = network()
    torch.manual_seed(1)
    teacher = vision_transformer(image_size=8, patch=2, width=64, depth=3, heads=2)
    coarse = vision_transformer(image_size=16, patch=8, width=64, depth=3, heads=2)
    with pytest.raises(UserError, match="4 x 4, teacher 2 x 2"):
        RelationDistiller(student, coarse, grid="error").loss(IMAGES)
    assert RelationDistiller(student, coarse, grid="interpolate").loss(IMAGES)["loss"] > 0
    matched = RelationDistiller(student, teacher, grid="match-input")
    assert matched.loss(IMAGES)["loss"] > 0


def test_the_teachers_layer_by_the_rule():
    assert default_teacher_layer(24, 12) == 18
    assert default_teacher_layer(12, 12) == 12
    assert default_teacher_layer(6, 4) == 4


def test_drop_path_is_constant_but_in_the_last_block_and_off_in_the_teacher():
    student, teacher = network(depth=4), network(depth=4, seed=1)
    set_drop_path(student, 0.1)
    set_drop_path(teacher, 0.1)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in student.blocks]
    assert rates == [0.1, 0.1, 0.1, 0.0]
    set_drop_path(student, 0.3, "linear")
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in student.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    distiller = RelationDistiller(student, teacher)
    assert student.training and not teacher.training
    assert RelationDistiller(student, teacher, teacher_training=True).teacher.training
    assert not distiller.eval().student.training


def test_agreement_tells_a_copy_from_an_untrained_network():
    student, teacher = network(), network(width=64, heads=2, seed=1)
    apart = RelationDistiller(student, teacher).agreement(IMAGES)
    equal = RelationDistiller(student, copy.deepcopy(student)).eval().agreement(IMAGES)
    assert equal["qk_overlap"] > 0.99 > apart["qk_overlap"]
    assert equal["vv_share"] < 1e-3 < apart["vv_share"]


def test_agreement_is_measured_without_dropout_and_leaves_modes_and_masks_alone():
    student, teacher = network(), network(width=64, heads=2, seed=1)
    student.pos_drop = torch.nn.Dropout(0.5)
    distiller = RelationDistiller(student, teacher, mask_ratio=0.5)
    first = distiller.agreement(IMAGES)
    assert distiller.agreement(IMAGES) == first and distiller.masks.step == 0
    assert student.training and not teacher.training


def test_what_is_lent_is_given_back():
    """But for its weights a student is as it was, and saves and loads as what it is."""
    student, teacher = network().eval(), network(width=64, heads=4, seed=1)
    student.norm.requires_grad_(False)
    distiller = RelationDistiller(student, teacher, example=IMAGES)
    assert heads_per_block(student) == [2, 2, 4] and student.training and not teacher.training
    distiller.release()
    assert heads_per_block(student) == [2, 2, 2] and not student.training and teacher.training
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == ["norm.weight", "norm.bias"]
    assert all(p.requires_grad for p in teacher.parameters())
    again = network(seed=5).eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(IMAGES), student(IMAGES))
    RelationDistiller(student, teacher, example=IMAGES).release(keep_heads=True)
    assert heads_per_block(student) == [2, 2, 4]


def test_teachers_of_another_image_size():
    student = network()
    torch.manual_seed(1)
    teacher = vision_transformer(image_size=32, patch=4, width=64, depth=3, heads=2)
    with pytest.raises(UserError, match="32 x 32 pixels alone"):
        RelationDistiller(student, teacher).loss(IMAGES)
    losses = [RelationDistiller(student, teacher, grid="interpolate").eval().loss(batch)["loss"]
              for batch in (IMAGES, (IMAGES, resized(IMAGES, (32, 32))))]  # fmt: skip
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("batch", [(IMAGES, torch.zeros(3, dtype=torch.int64)), (IMAGES, IMAGES, IMAGES), (IMAGES,)])
def test_a_batch_with_labels_is_no_pair(batch):
    with pytest.raises(UserError, match=r"inputs=lambda batch: batch\[0\]"):
        RelationDistiller(network(), network(seed=1)).loss(batch)


def test_checkpoints_hold_the_student_alone():
    student, teacher = network(), network(width=64, heads=2, seed=1)
    distiller = RelationDistiller(student, teacher)
    state = distiller.state_dict()
    assert all(name.startswith("student.") for name in state)
    wrapped = torch.nn.ModuleDict({"task": distiller})
    assert not any("teacher" in name for name in wrapped.state_dict())
    wrapped.load_state_dict(wrapped.state_dict())
    distiller.load_state_dict(state)


def test_positions_are_those_of_the_official_files():
    positions = sincos_positions(8, (2, 3))
    assert positions.shape == (1, 7, 8) and positions[0, 0].abs().max() == 0
    row, column = 1, 2
    expected = [math.sin(column), math.sin(column / 100), math.cos(column), math.cos(column / 100),
                math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]  # fmt: skip
    assert positions[0, 1 + row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_relations_are_named_by_two_letters():
    for pairs in (["qx"], ["q"], [], ["qk", "qk"]):
        with pytest.raises(UserError):
            RelationLoss(pairs)
    assert len(attention_layers(network())) == 3
