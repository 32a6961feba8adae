"""Which image belongs to which depth map: folders by stem, CSV files, and the field's split lists."""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import files_below, inside
from tenfold.systems.full_skip_depth.sets.depth_files import DEPTH_SUFFIXES

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))
IMAGE_FOLDERS = ("rgb", "images", "image", "color", "colour")
DEPTH_FOLDERS = ("depth", "depths", "groundtruth")


@dataclass(frozen=True)
class Pair:
    """An image and its depth map.

    Attributes:
        name: short, unique.
        image: file.
        depth: file; ``None`` where the list says that there is none.
        focal: focal length in pixels; NaN where unknown.
    """

    name: str
    image: Path
    depth: Path | None
    focal: float = float("nan")


@dataclass(frozen=True)
class Unpaired:
    """Files without a partner."""

    images: tuple[Path, ...]
    depths: tuple[Path, ...]


def pairs_by_stem(root: str | Path, *, focal: float = float("nan")) -> tuple[list[Pair], Unpaired]:
    """Pairs of ``root/rgb`` (or images, image, color) and ``root/depth`` by their paths without suffixes.

    Args:
        root: the folder. Ultralytics' layout (``images/``, ``depth/``) is one of these.
        focal: focal length in pixels of all images.

    Returns:
        The pairs, sorted by name, and what has no partner.

    Raises:
        UserError: a folder is missing, or holds two files of one stem.
    """
    root = Path(root)
    folders = []
    for names in (IMAGE_FOLDERS, DEPTH_FOLDERS):
        found = [root / name for name in names if (root / name).is_dir()]
        if len(found) != 1:
            said = "none" if not found else " and ".join(path.name for path in found)
            raise UserError(f"{root} needs one folder of {', '.join(names)}; it has {said}")
        folders.append(found[0])
    images, depths = _by_stem(folders[0], IMAGE_SUFFIXES), _by_stem(folders[1], DEPTH_SUFFIXES)
    pairs = [Pair(name, images[name], depths[name], focal) for name in sorted(images) if name in depths]
    lonely = Unpaired(
        tuple(path for name, path in images.items() if name not in depths),
        tuple(path for name, path in depths.items() if name not in images),
    )
    return pairs, lonely


def require_partners(pairs: Sequence[Pair], lonely: Unpaired, root: str | Path, *, skip: bool) -> list[str]:
    """Refuse files without a partner, or say in a note how many are left out.

    Raises:
        UserError: there are some and they are not to be skipped, or there is no pair at all.
    """
    if not pairs:
        raise UserError(f"{root} holds no image and depth map of the same name")
    count = len(lonely.images) + len(lonely.depths)
    if not count:
        return []
    first = (*lonely.images, *lonely.depths)[0]
    text = f"{len(lonely.images)} images without depth and {len(lonely.depths)} depth maps without an image"
    if not skip:
        raise UserError(f"{text} in {root}, the first is {first.name}; leave them out with --data.skip_unpaired true")
    return [f"{text} were left out, as asked."]


def pairs_of_csv(path: str | Path) -> dict[str, list[Pair]]:
    """Pairs of a CSV file with the columns ``image`` and ``depth``, and optionally ``focal`` and ``split``.

    Paths are relative to the file's folder and stay within it; an empty depth means that there is none.

    Args:
        path: the CSV file, UTF-8.

    Returns:
        Pairs by the value of ``split``; all under ``all`` where there is no such column.

    Raises:
        UserError: a column is missing, a row is not right, or a path leaves the folder.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {"image", "depth"} <= set(columns):
                raise UserError(f"{path} needs the columns image and depth; it has {', '.join(columns) or 'none'}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    parts: dict[str, list[Pair]] = {}
    for number, row in enumerate(rows, 2):
        if not row["image"] or None in row or None in row.values():
            raise UserError(f"{path}, line {number}: expected {len(columns)} cells with an image among them")
        image = inside(path.parent, row["image"])
        depth = inside(path.parent, row["depth"]) if row["depth"] else None
        focal = _number(row.get("focal") or "nan", f"{path}, line {number}")
        parts.setdefault(row.get("split") or "all", []).append(Pair(row["image"], image, depth, focal))
    if not parts:
        raise UserError(f"{path} holds no rows")
    return parts


def pairs_of_list(
    path: str | Path, image_roots: Sequence[Path], depth_roots: Sequence[Path], *, right: bool = False
) -> list[Pair]:
    """Pairs of a split list: ``<image> <depth> <focal>`` a line, or with the right camera's two paths after them.

    Args:
        path: the list, ``.txt`` or ``.txt.gz``. A leading ``/`` of a path is stripped; a depth of ``None`` is none.
        image_roots: folders that images are looked for in, in turn.
        depth_roots: folders that depth maps are looked for in, in turn.
        right: also take the right camera's pair of lines that have one.

    Raises:
        UserError: a line is not of this form, or a file is in none of the folders.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split()
        if len(cells) not in (3, 5):
            raise UserError(f"{path}, line {number}: expected 'image depth focal', got {len(cells)} words")
        focal = _number(cells[2], f"{path}, line {number}")
        for image, depth in [cells[:2], cells[3:5]] if right and len(cells) == 5 else [cells[:2]]:
            pairs.append(
                Pair(
                    image.lstrip("/"),
                    _find(image, image_roots, f"{path}, line {number}"),
                    None if depth == "None" else _find(depth, depth_roots, f"{path}, line {number}"),
                    focal,
                )
            )
    if not pairs:
        raise UserError(f"{path} holds no lines")
    return pairs


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file, packed by gzip or not, without empty ones.

    Raises:
        UserError: it cannot be read, or is longer than 64 MiB unpacked.
    """
    path = Path(path)
    limit = 2**26
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{path} is no split list: it is longer than {limit:,} bytes")
        return [line for line in content.decode("utf-8").splitlines() if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _find(name: str, roots: Sequence[Path], where: str) -> Path:
    relative = name.lstrip("/")
    for root in roots:
        path = inside(root, relative)
        if path.is_file():
            return path
    raise UserError(f"{where}: {relative} is in none of {', '.join(map(str, roots))}")


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files_below(folder, lambda path: path.suffix.lower() in suffixes)[0]:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{folder} holds two files for {name!r}: {found[name].name} and {path.name}")
        found[name] = path
    return found


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{where}: the focal length {text!r} is no number") from error
    if value <= 0 or value == float("inf"):
        raise UserError(f"{where}: the focal length must be above 0; got {text}")
    return value
