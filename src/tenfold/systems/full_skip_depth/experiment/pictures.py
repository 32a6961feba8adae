"""Pictures of the report: predictions and errors side by side, and what every level takes from where."""

import math
from collections.abc import Mapping

import numpy as np
import torch

from tenfold.report.pictures import image_grid, picture
from tenfold.results import Picture, Plot, Series
from tenfold.systems.full_skip_depth.delivery.colours import coloured, coloured_error
from tenfold.systems.full_skip_depth.delivery.point_clouds import to_points
from tenfold.systems.full_skip_depth.networks.depth_network import FullSkipDepth, predict_depth
from tenfold.systems.full_skip_depth.sets.splits import DepthSplits


def compare_pictures(
    name: str, splits: DepthSplits, networks: Mapping[str, FullSkipDepth], max_depth: float, rows: int = 4
) -> Picture:
    """Test images with truth, each network's prediction and its error, all on one colour scale."""
    chosen = np.unique(np.linspace(0, len(splits.test) - 1, rows).round().astype(int)).tolist()
    frames = [splits.test[n] for n in chosen]
    height, width = frames[0][1].shape
    frames = [frame for frame in frames if frame[1].shape == (height, width)]
    values = np.concatenate([depth.numpy()[depth.numpy() > 0] for _, depth, _ in frames] or [np.ones(1)])
    low, high = (float(np.percentile(values, share)) for share in (2, 98))
    cells: list[np.ndarray] = []
    for image, truth, focal in frames:
        cells += [image.permute(1, 2, 0).numpy(), coloured(truth.numpy(), low, high)]
        given = None if math.isnan(focal) else torch.tensor([focal])
        for network in networks.values():
            depth = predict_depth(network, image[None].float() / 255, given, limits=(1e-3, max_depth))[0].numpy()
            cells += [coloured(depth, low, high), coloured_error(depth, truth.numpy())]
    columns = ["image", "truth", *(part for arm in networks for part in (arm, f"{arm}, error"))]
    grid = image_grid(
        np.stack(cells).transpose(0, 3, 1, 2),
        columns=len(columns),
        scale=max(1, 150 // max(height, width)),
        column_names=columns,
    )
    return picture(
        f"predictions-{name}",
        f"Test images of {name}",
        grid,
        alt=f"Images, true depth, predicted depth and errors of {', '.join(networks)}",
        caption=f"Depth from {low:.1f} m (red) to {high:.1f} m (blue) in all columns, even in 1 / depth; black: no "
        "value. Errors from 0 (blue) to half of the true depth and more (red).",
    )


def cloud_plot(
    name: str, splits: DepthSplits, network: FullSkipDepth, max_depth: float, most: int = 2500
) -> Plot | None:
    """Prediction and truth of the middle test image as points in space, to be turned; ``None`` without focal length.

    Args:
        name: of the data.
        splits: whose test frames are looked at.
        network: in eval mode.
        max_depth: of the network.
        most: points of a cloud; every second, third, ... pixel where there are more.
    """
    image, truth, focal = splits.test[len(splits.test) // 2]
    if math.isnan(focal):
        return None
    given = torch.tensor([focal])
    depth = predict_depth(network, image[None].float() / 255, given, limits=(1e-3, max_depth))[0].numpy()
    height, width = depth.shape
    camera = (focal, focal, (width - 1) / 2, (height - 1) / 2)
    photo = image.permute(1, 2, 0).numpy()

    def cloud(called: str, values: np.ndarray, coloured_as_photo: bool) -> Series:
        valid = np.flatnonzero(values > 0)
        kept = np.zeros_like(values)
        kept.flat[valid[:: -(-len(valid) // most) or 1]] = 1
        kept *= values
        right, down, forward = to_points(kept, camera).astype(np.float64).round(2).T.tolist()
        colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in photo[kept > 0].tolist()] if coloured_as_photo else None
        return Series(name=called, x=right, y=forward, z=[-value for value in down], colours=colours)

    return Plot(
        id=f"cloud-{name}",
        title=f"A test image of {name} as points in space",
        kind="points",
        x_label="right, m",
        y_label="forward, m",
        z_label="up, m",
        series=[cloud("FSCN, in the photo's colours", depth, True), cloud("truth", truth.numpy(), False)],
        caption=f"Test image {splits.test.names[len(splits.test) // 2]}, focal length {focal:.0f} pixels, principal "
        "point in the middle. Turn it; the buttons of the legend hide a cloud. It needs WebGL.",
    )


def weights_picture(name: str, network: FullSkipDepth, splits: DepthSplits) -> Picture:
    """What every decoder level takes from every encoder level, as a chequered picture with a row per level."""
    shares = skip_shares(network, splits)
    sources = sorted({source for row in shares.values() for source in row}, key=lambda s: (s == "below", s))
    levels = sorted(shares, reverse=True)
    cells = np.ones((len(levels) * len(sources), 3, 12, 24), dtype=np.float64)
    for r, level in enumerate(levels):
        for c, source in enumerate(sources):
            if source in shares[level]:
                cells[r * len(sources) + c] -= np.array([0.9, 0.55, 0.2])[:, None, None] * shares[level][source]
            else:
                cells[r * len(sources) + c] = 0.93
    grid = image_grid(
        cells,
        columns=len(sources),
        scale=3,
        row_names=[f"level {level}" for level in levels],
        column_names=[source if source == "below" else f"E{source}" for source in sources],
    )
    return picture(
        f"sources-{name}",
        f"What every level takes from where ({name})",
        grid,
        alt="; ".join(
            f"level {level}: " + ", ".join(f"{source} {share:.0%}" for source, share in shares[level].items())
            for level in levels
        ),
        caption="Share of each source (E1: the finest encoder level; below: the decoder level below) in what the "
        "level's joining convolution adds up, by root mean square over test images; blue is more, grey is not there.",
    )


def skip_shares(network: FullSkipDepth, splits: DepthSplits, images: int = 8) -> dict[int, dict[str, float]]:
    """Shares of the sources at every level of a full-skip decoder, over some test images."""
    frames = [splits.test[n] for n in range(min(images, len(splits.test)))]
    frames = [frame for frame in frames if frame[1].shape == frames[0][1].shape]
    batch = torch.stack([image for image, _, _ in frames]).float() / 255
    normalized = (batch - network.mean) / network.std
    with torch.no_grad():
        return network.decoder.contributions(network.encoder(normalized), normalized)  # type: ignore[operator]
