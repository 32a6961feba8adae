"""Sparse convolutions against dense ones, voxels in their order, official checkpoints of all configurations."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector import (
    CONFIGURATIONS,
    SparseConv,
    SparseTensor,
    Voxelizer,
    build_published,
    load_official,
)
from tenfold.systems.cross_modal_detector.networks.published_branches import PublishedLidarNetwork
from tenfold.systems.cross_modal_detector.networks.sparse_encoder import ActiveNorm, SparseEncoder


def some_voxels(shape=(5, 9, 11), channels=4, share=0.2):
    torch.manual_seed(0)
    places = (torch.rand(2, *shape) < share).nonzero()
    return SparseTensor(torch.randn(len(places), channels), places, shape, 2)


def test_submanifold_convolution_is_the_dense_one_at_active_voxels():
    x, conv = some_voxels(), SparseConv(4, 6)
    dense = F.conv3d(x.dense(), conv.weight.permute(0, 4, 1, 2, 3), padding=1)
    at = x.places.unbind(1)
    found = conv(x).features
    torch.testing.assert_close(found, dense[at[0], :, at[1], at[2], at[3]], rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    gradient, conv.weight.grad = conv.weight.grad.clone(), None
    F.conv3d(x.dense(), conv.weight.permute(0, 4, 1, 2, 3), padding=1)[
        at[0], :, at[1], at[2], at[3]
    ].square().sum().backward()
    torch.testing.assert_close(gradient, conv.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0))],
)
def test_strided_convolution_is_the_dense_one_everywhere(kernel, stride, padding):
    x, conv = some_voxels(), SparseConv(4, 6, kernel, stride, padding)
    dense = F.conv3d(x.dense(), conv.weight.permute(0, 4, 1, 2, 3), stride=stride, padding=padding)
    torch.testing.assert_close(conv(x).dense(), dense, rtol=1e-5, atol=1e-5)


def test_normalization_sees_active_voxels_only():
    norm, values = ActiveNorm(3).train(), torch.randn(50, 3) * 2 + 5
    found = norm(values)
    assert found.mean(0).abs().max() < 1e-5 and (norm.running_mean - 0.01 * values.mean(0)).abs().max() < 1e-5
    dense = torch.zeros(1, 3, 200)
    dense[0, :, :50] = values.T
    assert (F.batch_norm(dense, None, None, training=True)[0, :, :50].T - found).abs().max() > 0.5
    assert torch.isfinite(norm(values[:1])).all()


def test_the_encoder_halves_three_times_and_takes_no_voxels():
    torch.manual_seed(0)
    encoder = SparseEncoder(5, (41, 32, 24), widths=(4, 4, 8, 8), out=8).eval()
    x = some_voxels((41, 32, 24), 5, 0.01)
    assert encoder(x.features, x.places, 2).shape == (2, 16, 4, 3)
    assert encoder(x.features[:0], x.places[:0], 2).abs().max() < 1e6


def test_voxels_come_in_order_and_are_cut():
    cloud = torch.tensor([[0.5, 0.5, 0.5, 1, 0], [3.5, 0.5, 0.5, 2, 0], [0.6, 0.5, 0.5, 3, 0], [0.7, 0.5, 0.5, 99, 0],
                          [1.5, 0.5, 0.5, 1, 0], [2.5, 2.5, 2.5, 1, 0], [9, 9, 9, 9, 9]])  # fmt: skip
    voxels = Voxelizer((0, 0, 0, 4, 4, 4), (1, 1, 1), (5, 4, 4), most_points=2, max_voxels=(3, 4)).train()
    features, places = voxels.single(cloud)
    assert places.tolist() == [[0, 0, 0], [0, 0, 3], [0, 0, 1]] and features[:, 3].tolist() == [2, 2, 1]
    assert len(voxels.eval().single(cloud)[0]) == 4
    order = torch.tensor([3, 0, 1, 2, 4, 5, 6])
    assert voxels.single(cloud[order])[0][0, 3] == 50  # which points are kept depends on their order
    assert voxels.single(cloud[:0])[0].shape == (0, 5)


def test_voxels_beyond_the_released_grid_are_left_out():
    """0.1 m voxels over 108 m are 1080; the released r50 configuration writes 1024."""
    found = CONFIGURATIONS["cmt_voxel0100_r50_800x320_cbgs"]
    voxels = Voxelizer((-54, -54, -5, 54, 54, 3), found.voxel, found.grid)
    cloud = torch.tensor([[48.35, 0, 0, 1, 0], [48.45, 0, 0, 1, 0], [0, 50.0, 0, 1, 0]])
    assert voxels.single(cloud)[1].tolist() == [[25, 540, 1023]]
    with torch.device("meta"):
        whole = build_published(configuration="cmt_voxel0100_r50_800x320_cbgs", grid="whole")
    assert whole.lidar.encoder.grid == (41, 1088, 1088)


def official_names(configuration):
    """Names and shapes of an official checkpoint, written down from its layout."""
    names = {}

    def norm(name, width):
        names.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        names[f"{name}.num_batches_tracked"] = ()

    if "vov" in configuration or "camera" in configuration:
        vov_names(names, norm)
    if "r50" in configuration:
        from torchvision.models import resnet50

        with torch.device("meta"):
            state = resnet50(weights=None).state_dict()
        names.update({f"img_backbone.{k}": tuple(v.shape) for k, v in state.items() if not k.startswith("fc.")})
    if "lidar" not in configuration:
        for level, width in enumerate((1024, 2048) if "r50" in configuration else (768, 1024)):
            names[f"img_neck.lateral_convs.{level}.conv.weight"] = (256, width, 1, 1)
            names[f"img_neck.lateral_convs.{level}.conv.bias"] = (256,)
        names["img_neck.fpn_convs.0.conv.weight"], names["img_neck.fpn_convs.0.conv.bias"] = (256, 256, 3, 3), (256,)
    if "camera" not in configuration:
        lidar_names(names, norm)
    head_names(names, kernel=3 if "lidar" in configuration else 1, rays="lidar" not in configuration)
    return names


def vov_names(names, norm):
    for number, (inner, outer) in enumerate(((3, 64), (64, 64), (64, 128)), 1):
        names[f"img_backbone.stem.stem_{number}/conv.weight"] = (outer, inner, 3, 3)
        norm(f"img_backbone.stem.stem_{number}/norm", outer)
    source = 128
    stages = ((2, 128, 256, 1), (3, 160, 512, 3), (4, 192, 768, 9), (5, 224, 1024, 3))
    for stage, width, concat, blocks in stages:
        for block in range(1, blocks + 1):
            name = f"OSA{stage}_{block}"
            base = f"img_backbone.stage{stage}.{name}"
            own = source if block == 1 else concat
            for layer in range(5):
                names[f"{base}.layers.{layer}.{name}_{layer}/conv.weight"] = (width, width if layer else own, 3, 3)
                norm(f"{base}.layers.{layer}.{name}_{layer}/norm", width)
            names[f"{base}.concat.{name}_concat/conv.weight"] = (concat, own + 5 * width, 1, 1)
            norm(f"{base}.concat.{name}_concat/norm", concat)
            names[f"{base}.ese.fc.weight"], names[f"{base}.ese.fc.bias"] = (concat, concat, 1, 1), (concat,)
        source = concat


def lidar_names(names, norm):
    base = "pts_middle_encoder"
    names[f"{base}.conv_input.0.weight"] = (16, 3, 3, 3, 5)
    norm(f"{base}.conv_input.1", 16)
    widths = (16, 32, 64, 128)
    for stage, width in enumerate(widths, 1):
        for block in (0, 1):
            for conv in (1, 2):
                names[f"{base}.encoder_layers.encoder_layer{stage}.{block}.conv{conv}.weight"] = (width, 3, 3, 3, width)
                norm(f"{base}.encoder_layers.encoder_layer{stage}.{block}.bn{conv}", width)
    for stage, (width, after) in enumerate(pairwise(widths), 1):
        names[f"{base}.encoder_layers.encoder_layer{stage}.2.0.weight"] = (after, 3, 3, 3, width)
        norm(f"{base}.encoder_layers.encoder_layer{stage}.2.1", after)
    names[f"{base}.conv_out.0.weight"] = (128, 3, 1, 1, 128)
    norm(f"{base}.conv_out.1", 128)
    for block, (source, width) in enumerate(((256, 128), (128, 256))):
        for layer in range(6):
            names[f"pts_backbone.blocks.{block}.{3 * layer}.weight"] = (width, width if layer else source, 3, 3)
            norm(f"pts_backbone.blocks.{block}.{3 * layer + 1}", width)
    names["pts_neck.deblocks.0.0.weight"], names["pts_neck.deblocks.1.0.weight"] = (256, 128, 1, 1), (256, 256, 2, 2)
    norm("pts_neck.deblocks.0.1", 256)
    norm("pts_neck.deblocks.1.1", 256)
    names["pts_bbox_head.shared_conv.conv.weight"] = (256, 512, 3, 3)
    norm("pts_bbox_head.shared_conv.bn", 256)


def head_names(names, kernel, rays):
    head = "pts_bbox_head"
    names[f"{head}.reference_points.weight"] = (900, 3)
    shapes = {"bev_embedding.0": (256, 512), "bev_embedding.2": (256, 256)}
    shapes |= {"rv_embedding.0": (1024, 192), "rv_embedding.2": (256, 1024)} if rays else {}
    for layer in range(6):
        base = f"transformer.decoder.layers.{layer}"
        for attention in (0, 1):
            names[f"{head}.{base}.attentions.{attention}.attn.in_proj_weight"] = (768, 256)
            names[f"{head}.{base}.attentions.{attention}.attn.in_proj_bias"] = (768,)
            shapes[f"{base}.attentions.{attention}.attn.out_proj"] = (256, 256)
        shapes |= {f"{base}.ffns.0.layers.0.0": (1024, 256), f"{base}.ffns.0.layers.1": (256, 1024)}
        shapes |= {f"{base}.norms.{n}": (256,) for n in range(3)}
    shapes["transformer.decoder.post_norm"] = (256,)
    for name, shape in shapes.items():
        names[f"{head}.{name}.weight"], names[f"{head}.{name}.bias"] = shape, shape[:1]
    for name, width in {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "cls_logits": 10}.items():
        base = f"{head}.task_heads.0.{name}"
        names |= {f"{base}.0.weight": (384, 256, kernel), f"{base}.1.weight": (384,), f"{base}.1.bias": (384,),
                  f"{base}.3.weight": (6 * width, 64, kernel), f"{base}.3.bias": (6 * width,)}  # fmt: skip


def write_official(path, names, older=False):
    """A checkpoint in the official layout, its tensors one number each in storage."""
    state = {}
    for name, shape in names.items():
        if older and len(shape) == 5:
            shape = (*shape[1:], shape[0])  # the layout before spconv 2
        state[name] = torch.zeros(()).expand(shape)
    torch.save({"meta": {"mmcv_version": "1.6.0"}, "state_dict": state, "optimizer": {}}, path)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_official_checkpoints_load_strictly(configuration, tmp_path):
    names = official_names(configuration)
    with torch.device("meta"):
        detector = build_published(configuration=configuration)
    write_official(tmp_path / "official.pth", names)
    load_official(detector, tmp_path / "official.pth")
    lacking = dict(names)
    del lacking["pts_bbox_head.reference_points.weight"]
    write_official(tmp_path / "lacking.pth", lacking)
    with pytest.raises(UserError, match="lacks 'reference_points"):
        load_official(detector, tmp_path / "lacking.pth")
    write_official(tmp_path / "more.pth", names | {"pts_bbox_head.extra.weight": (2,)})
    with pytest.raises(UserError, match="extra"):
        load_official(detector, tmp_path / "more.pth")
    if "camera" not in configuration:
        write_official(tmp_path / "older.pth", names, older=True)
        load_official(detector, tmp_path / "older.pth")


def test_the_published_lidar_branch_runs_on_a_small_cloud():
    torch.manual_seed(0)
    network = PublishedLidarNetwork((-4, -4, -5, 4, 4, 3), (0.25, 0.25, 0.2), (41, 32, 32), dim=16).eval()
    cloud = torch.rand(200, 5) * torch.tensor([8.0, 8, 7.9, 255, 0]) - torch.tensor([4.0, 4, 5, 0, 0])
    with torch.no_grad():
        both = network([cloud, cloud[:0]])
        alone = network([cloud])
    assert both.shape == (2, 16, 4, 4)
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert np.isfinite(both.numpy()).all()
