"""Detectors by name: plain arguments in, a network out, as a model's manifest holds them."""

from collections.abc import Sequence

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector.matching.codes import BoxCode
from tenfold.systems.cross_modal_detector.networks.branches import Pillars, SmallImageNetwork
from tenfold.systems.cross_modal_detector.networks.decoder import Start
from tenfold.systems.cross_modal_detector.networks.detector import CrossModalDetector
from tenfold.systems.cross_modal_detector.networks.encodings import Frequencies

SMALL_PAD = 8
"""To multiples of which the small image network's images are padded: its stride."""


def build_small(
    *,
    area: Sequence[float],
    classes: int,
    image: bool = True,
    lidar: bool = True,
    dim: int = 64,
    queries: int = 60,
    layers: int = 2,
    heads: int = 4,
    hidden: int = 128,
    depths: int = 16,
    image_width: int = 8,
    image_blocks: int = 2,
    pillar_grid: Sequence[int] = (48, 48),
    pillar_width: int = 16,
    pillar_blocks: int = 2,
    dropout: float = 0.0,
    frequencies: Frequencies = "octaves",
    normalize_codes: bool = True,
    start: Start = "tied",
    box_code: BoxCode = "clean",
) -> CrossModalDetector:
    """A detector for small worlds: a small convolutional image network and pillars.

    Args:
        area: the range, six numbers in metres.
        classes: number of classes, one task.
        image: whether it has cameras.
        lidar: whether it has LiDAR.
        dim: of tokens and queries.
        queries: number of queries.
        layers: of the decoder.
        heads: of the attentions.
        hidden: width of the feed-forward networks.
        depths: points along a ray.
        image_width: see ``SmallImageNetwork``.
        image_blocks: see there.
        pillar_grid: see ``Pillars``.
        pillar_width: see there.
        pillar_blocks: see there.
        dropout: of the attentions.
        frequencies: see ``CoordinateEncoding``.
        normalize_codes: see there.
        start: see ``Decoder``.
        box_code: see ``CrossModalDetector``.

    Raises:
        UserError: sizes do not go together.
    """
    if dim % heads or dim % 2:
        raise UserError(f"dim must be even and a multiple of heads; got {dim} and {heads}")
    if len(area) != 6 or any(low >= high for low, high in zip(area[:3], area[3:], strict=True)):
        raise UserError(f"area is x_min, y_min, z_min, x_max, y_max, z_max; got {list(area)}")
    if len(pillar_grid) != 2 or any(cells < 2 or cells % 2 for cells in pillar_grid):
        raise UserError(f"pillar_grid is two even numbers of cells, along y and x; got {list(pillar_grid)}")
    if image_width % 8 or pillar_width % 8:
        raise UserError(f"image_width and pillar_width are multiples of 8; got {image_width} and {pillar_width}")
    grid = (int(pillar_grid[0]), int(pillar_grid[1]))
    return CrossModalDetector(
        area,
        [classes],
        image=SmallImageNetwork(dim, image_width, image_blocks) if image else None,
        lidar=Pillars(dim, area, grid, width=pillar_width, blocks=pillar_blocks) if lidar else None,
        dim=dim,
        queries=queries,
        layers=layers,
        heads=heads,
        hidden=hidden,
        depths=depths,
        dropout=dropout,
        frequencies=frequencies,
        normalize_codes=normalize_codes,
        start=start,
        box_code=box_code,
        pad=SMALL_PAD,
    )
