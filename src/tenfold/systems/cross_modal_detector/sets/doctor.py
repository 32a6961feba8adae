"""What is wrong with a rig's calibration: points that should project and do not, edges, signs and units."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tenfold.systems.cross_modal_detector.geometry.boxes import points_in_boxes
from tenfold.systems.cross_modal_detector.geometry.poses import inverse_pose, lidar_to_image
from tenfold.systems.cross_modal_detector.sets.frames import Frame, read_image, read_points

_NEAR = 0.5


@dataclass
class CameraFinding:
    """What was found about one camera.

    Attributes:
        name: of it.
        projected: share of the points before it that fall into its image.
        coverage: share of a grid of 8 x 12 cells of the image that points fall into.
        edges: correlation of jumps in depth with jumps in brightness, at the calibration as it is.
        best_shift: columns and rows by which points should move for the highest correlation.
        best_edges: that correlation.
        upright: correlation of rows with angles below the horizon of the LiDAR: near 1 where the camera stands upright.
        mistakes: what looks wrong, in words.
    """

    name: str
    projected: float
    coverage: float
    edges: float
    best_shift: tuple[int, int]
    best_edges: float
    upright: float = 1.0
    mistakes: list[str] = field(default_factory=list)


@dataclass
class RigFinding:
    """What was found about a rig.

    Attributes:
        frames: that were looked at.
        points: median number of a cloud.
        boxes: number in all.
        empty_boxes: share of them without a point above their lowest fifth, where there may be ground.
        cameras: see ``CameraFinding``.
        mistakes: what looks wrong about the whole, in words.
    """

    frames: int
    points: int
    boxes: int
    empty_boxes: float
    cameras: list[CameraFinding]
    mistakes: list[str]


def examine_rig(frames: Sequence[Frame], *, most: int = 5) -> RigFinding:
    """Look at a rig's frames.

    Args:
        frames: of one rig.
        most: frames to read, spread over all.
    """
    chosen = [frames[n] for n in np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))]
    clouds = [None if frame.points is None else read_points(frame.points) for frame in chosen]
    counts = [0 if cloud is None else len(cloud) for cloud in clouds]
    inside = [
        _hits(cloud, frame.boxes)
        for cloud, frame in zip(clouds, chosen, strict=True)
        if cloud is not None and len(frame.boxes)
    ]
    hits = np.concatenate(inside) if inside else np.zeros(0)
    names = [view.name for view in chosen[0].cameras]
    cameras = [_camera(n, name, chosen, clouds) for n, name in enumerate(names)]
    empty = float((hits == 0).mean()) if len(hits) else 0.0
    return RigFinding(
        frames=len(chosen),
        points=int(np.median(counts)),
        boxes=sum(len(frame.boxes) for frame in chosen),
        empty_boxes=empty,
        cameras=cameras,
        mistakes=_mistakes_of_clouds(chosen, clouds, empty),
    )


def _hits(cloud: NDArray, boxes: NDArray) -> NDArray[np.int64]:
    """Points in each box above its lowest fifth: a box in a wrong place mostly holds ground."""
    upper = np.array(boxes, dtype=np.float64)
    upper[:, 2] += 0.1 * upper[:, 5]
    upper[:, 5] *= 0.8
    return points_in_boxes(cloud, upper).sum(0)


def _mistakes_of_clouds(frames: Sequence[Frame], clouds: Sequence[NDArray | None], empty: float) -> list[str]:
    found = []
    whole = [cloud for cloud in clouds if cloud is not None and len(cloud)]
    if not whole:
        return ["no frame has a LiDAR point"]
    far = float(np.median([np.quantile(np.linalg.norm(cloud[:, :3], axis=1), 0.95) for cloud in whole]))
    if far > 1000:
        found.append(
            f"95 % of the points lie within {far:,.0f} of the LiDAR: are they in millimetres? Metres are expected"
        )
    elif far < 1:
        found.append(f"95 % of the points lie within {far:.2f} of the LiDAR: are they in kilometres, or empty returns?")
    intensity = float(np.median([cloud[:, 3].max() for cloud in whole]))
    if 0 < intensity <= 1:
        found.append("intensities lie in [0, 1]; 0 to 255 are expected: multiply by 255")
    if empty > 0.7:
        text = f"{empty:.0%} of the boxes hold no point: are they in another frame than the points"
        mended = [_hits_if_changed(frames, clouds, change) for change in _CHANGES.values()]
        best = int(np.argmin(mended))
        if mended[best] < empty - 0.25:
            text += f" ({list(_CHANGES)[best]} would leave {mended[best]:.0%} empty)"
        found.append(f"{text}?")
    return found


_CHANGES = {
    "z raised by half the height (z is the centre of gravity here, not the bottom)": lambda b: (
        b + np.eye(9)[2] * b[:, 5:6] / 2
    ),
    "length and width swapped": lambda b: b[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]],
    "yaw in radians, not degrees": lambda b: np.where(np.arange(9) == 6, np.deg2rad(b), b),
    "yaw turned by 90 degrees": lambda b: b + np.eye(9)[6] * np.pi / 2,
    "yaw negated": lambda b: b * np.where(np.arange(9) == 6, -1, 1),
    "x and y swapped": lambda b: b[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]],
    "y negated": lambda b: b * np.where(np.arange(9) == 1, -1, 1),
}


def _hits_if_changed(frames: Sequence[Frame], clouds: Sequence[NDArray | None], change) -> float:  # type: ignore[no-untyped-def]
    hits = [
        _hits(cloud, change(np.nan_to_num(frame.boxes)))
        for frame, cloud in zip(frames, clouds, strict=True)
        if cloud is not None and len(frame.boxes)
    ]
    return float((np.concatenate(hits) == 0).mean()) if hits else 1.0


def _camera(number: int, name: str, frames: Sequence[Frame], clouds: Sequence[NDArray | None]) -> CameraFinding:
    shares, cover, scores, stands = [], [], [], []
    pairs = []
    for frame, cloud in zip(frames, clouds, strict=True):
        view = frame.cameras[number]
        if cloud is None or view.image is None:
            continue
        image = read_image(view.image)
        pairs.append((view, cloud, image))
        u, v, depth = _pixels(cloud, lidar_to_image(view.intrinsics, view.lidar2cam))
        inside = (u >= 0) & (u < image.shape[1]) & (v >= 0) & (v < image.shape[0])
        shares.append(float(inside.mean()) if len(inside) else 0.0)
        stands.append(_upright(cloud, lidar_to_image(view.intrinsics, view.lidar2cam), image.shape))
        cells = np.unique(
            (v[inside] * 8 // image.shape[0]).astype(int) * 12 + (u[inside] * 12 // image.shape[1]).astype(int)
        )
        cover.append(len(cells) / 96)
        scores.append(_edge_scores(u[inside], v[inside], depth[inside], image))
    if not pairs:
        return CameraFinding(name, 0.0, 0.0, 0.0, (0, 0), 0.0, 1.0, ["no frame has both an image of it and a cloud"])
    total = np.mean(scores, 0)
    middle = total.shape[0] // 2
    best = np.unravel_index(int(total.argmax()), total.shape)
    shift = (int(best[1]) - middle, int(best[0]) - middle) if total[best] > 0 else (0, 0)
    finding = CameraFinding(
        name,
        float(np.mean(shares)),
        float(np.mean(cover)),
        float(total[middle, middle]),
        shift,
        float(total[best]),
        float(np.mean(stands)),
    )
    finding.mistakes = _mistakes_of_camera(finding, pairs)
    return finding


def _pixels(cloud: NDArray, matrix: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    seen = cloud[:, :3].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    seen = seen[seen[:, 2] > _NEAR]
    return seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2], seen[:, 2]


def _upright(cloud: NDArray, matrix: NDArray, shape: tuple[int, ...]) -> float:
    """Correlation of rows in the image with angles below the LiDAR's horizon, of the points that fall into it."""
    seen = cloud[:, :3].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    front = seen[:, 2] > _NEAR
    u, v = (seen[front, n] / seen[front, 2] for n in (0, 1))
    inside = (u >= 0) & (u < shape[1]) & (v >= 0) & (v < shape[0])
    xyz = cloud[front][inside]
    below = -np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))
    if inside.sum() < 10 or below.std() == 0 or v[inside].std() == 0:
        return 0.0
    return float(np.corrcoef(v[inside], below)[0, 1])


def _edge_scores(u: NDArray, v: NDArray, depth: NDArray, image: NDArray, reach: int = 4) -> NDArray[np.float64]:
    """Correlation of depth edges with brightness edges, for shifts of up to ``reach`` rows and columns."""
    grey = image.astype(np.float64).mean(2)
    gradient = np.hypot(*np.gradient(grey))
    step = max(1, image.shape[1] // 240)
    nearest = np.full(grey.shape, np.inf)
    rows, columns = v.astype(int), u.astype(int)
    np.minimum.at(nearest, (rows, columns), depth)
    # A point is an edge where a neighbour in its row, within a few columns, is much farther.
    width = 3 * step
    order = np.lexsort((columns, rows))
    same = (rows[order][1:] == rows[order][:-1]) & (np.diff(columns[order]) <= width)
    jump = np.zeros(len(order))
    jump[order[1:]] = np.where(same, np.abs(np.diff(np.log(depth[order]))), 0)
    scores = np.zeros((2 * reach + 1, 2 * reach + 1))
    if jump.std() == 0:
        return scores
    for i, down in enumerate(range(-reach, reach + 1)):
        for j, across in enumerate(range(-reach, reach + 1)):
            r = (rows + down * step).clip(0, grey.shape[0] - 1)
            c = (columns + across * step).clip(0, grey.shape[1] - 1)
            values = gradient[r, c]
            scores[i, j] = float(np.corrcoef(jump > 0.1, values)[0, 1]) if values.std() and (jump > 0.1).any() else 0.0
    return scores


def _mistakes_of_camera(finding: CameraFinding, pairs: Sequence) -> list[str]:
    """Compare the calibration with ones that have a usual mistake mended: which covers far more of the image?"""
    found = []
    for view, _, image in pairs[:1]:
        cx, cy = view.intrinsics[0, 2] / image.shape[1], view.intrinsics[1, 2] / image.shape[0]
        if not (0.2 < cx < 0.8 and 0.2 < cy < 0.8):
            found.append(
                f"the principal point lies at {cx:.0%} of the width and {cy:.0%} of the height: are the intrinsics of "
                "another image size?"
            )
    if finding.coverage >= 0.25 and finding.upright > 0.5:
        if max(map(abs, finding.best_shift)) >= 2 and finding.best_edges > finding.edges + 0.02:
            across, down = finding.best_shift
            found.append(f"LiDAR edges fit the image better when moved by {across:+d} columns and {down:+d} rows")
        return found
    mended = {
        "lidar2cam is inverted (it is cam2lidar)": lambda pose: inverse_pose(pose),
        "its translation is in millimetres": lambda pose: np.vstack(
            [np.concatenate([pose[:3, :3], pose[:3, 3:] / 1000], 1), [[0, 0, 0, 1]]]
        ),
        "the camera looks along -z (OpenGL's axes)": lambda pose: np.diag([1, -1, -1, 1]) @ pose,
        "the camera's axes are x forward, y left, z up": lambda pose: (
            np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]) @ pose
        ),
    }
    best, text = finding.coverage * max(finding.upright, 0.0), ""
    for words, change in mended.items():
        cover = []
        for view, cloud, image in pairs:
            u, v, _ = _pixels(cloud, lidar_to_image(view.intrinsics, change(view.lidar2cam)))
            inside = (u >= 0) & (u < image.shape[1]) & (v >= 0) & (v < image.shape[0])
            cells = (v[inside] * 8 // image.shape[0]).astype(int) * 12 + (u[inside] * 12 // image.shape[1]).astype(int)
            cover.append(len(np.unique(cells)) / 96)
        upright = [
            _upright(cloud, lidar_to_image(v.intrinsics, change(v.lidar2cam)), image.shape) for v, cloud, image in pairs
        ]
        score = float(np.mean(cover)) * float(np.mean(upright))
        if float(np.mean(cover)) > 0.25 and float(np.mean(upright)) > 0.5 and score > 1.5 * best:
            best, text = score, words
    message = f"points cover {finding.coverage:.0%} of its image"
    if finding.upright <= 0.5:
        message += f", and low points do not lie low in it (correlation {finding.upright:.2f})"
    found.append(f"{message}: perhaps {text}" if text else f"{message}: is it calibrated?")
    return found
