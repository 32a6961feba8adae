"""MovieLens ratings: the layouts 100K, 1M and 20M/25M/latest.

GroupLens publishes the data and forbids passing them on: the user downloads them.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.data import find_data
from tenfold.errors import UserError
from tenfold.files import regular

AGES = (1, 18, 25, 35, 45, 50, 56)
OCCUPATIONS = 21
GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
LAYOUTS = {
    "100k": "ml-100k with u.data, u.user, u.item",
    "1m": "ml-1m with ratings.dat, users.dat, movies.dat",
    "25m": "ml-25m (or ml-20m, ml-latest, ml-latest-small) with ratings.csv, movies.csv",
}


@dataclass(frozen=True)
class Ratings:
    """Ratings, and what is known about their users and movies.

    Attributes:
        columns: ``(n,)`` int64 ``user`` and ``movie``; where known ``gender``, ``age`` and ``occupation`` of the user;
            ``genres`` of the movie as ``(n, genres)`` float32 that sums to 1 (or 0 for a movie without genre).
        rating: ``(n,)`` float32 stars.
        time: ``(n,)`` int64 seconds since 1970.
        sizes: number of values of each integer column, and of genres.
    """

    columns: dict[str, Tensor]
    rating: Tensor
    time: Tensor
    sizes: dict[str, int]

    def __len__(self) -> int:
        return len(self.rating)


def load_movielens(root: str | Path | None, layout: str, *, rows: int | None = None) -> Ratings:
    """Read MovieLens as GroupLens publishes it.

    Args:
        root: folder that holds the data's folder, or the files; ``TENFOLD_DATA`` where ``None``.
        layout: ``100k``, ``1m`` or ``25m`` (also 20M and latest).
        rows: read only the first ratings.

    Raises:
        UserError: files are missing or cut short, a row is malformed, or names a user or movie that is not known.
    """
    if layout not in LAYOUTS:
        raise UserError(f"there is no MovieLens layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    folder = _find_folder(find_data(root), layout)
    if layout == "25m":
        table = _numbers(folder / "ratings.csv", ",", rows, skip=1)
        movies = _read_movies_csv(folder / "movies.csv")
        return _assemble(table, {}, movies, folder)
    if layout == "100k":
        users = {
            int(user): (gender, _age_group(age), job)
            for user, age, gender, job, _ in _fields(folder / "u.user", "|", 5)
        }
        jobs = {job: n for n, job in enumerate(sorted({job for _, _, job in users.values()}))}
        known = {user: (int(gender == "F"), age, jobs[job]) for user, (gender, age, job) in users.items()}
        listed = {
            int(row[0]): [n for n, flag in enumerate(row[6:24]) if flag == "1"]
            for row in _fields(folder / "u.item", "|", 24)
        }
        return _assemble(_numbers(folder / "u.data", "\t", rows), known, listed, folder)
    known = {}
    for user, gender, age, occupation, _ in _fields(folder / "users.dat", "::", 5):
        known[_whole(user, "users.dat")] = (int(gender == "F"), _age_group(age), _whole(occupation, "users.dat"))
    listed = {}
    for movie, _, genres in _fields(folder / "movies.dat", "::", 3):
        listed[_whole(movie, "movies.dat")] = [GENRES.index(name) for name in genres.split("|") if name in GENRES]
    return _assemble(_numbers(folder / "ratings.dat", "::", rows), known, listed, folder)


def _whole(text: str, file: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{file}: {text!r} is not a whole number") from error


def _age_group(age: str) -> int:
    return int(np.searchsorted(AGES, _whole(age, "users"), side="right") - 1)


def _find_folder(root: Path, layout: str) -> Path:
    ratings = {"100k": "u.data", "1m": "ratings.dat", "25m": "ratings.csv"}[layout]
    names = {"100k": ["ml-100k"], "1m": ["ml-1m"], "25m": ["ml-25m", "ml-20m", "ml-latest", "ml-latest-small"]}[layout]
    for place in (root, *(root / name for name in names)):
        if (place / ratings).is_file():
            return place
    raise UserError(
        f"{root} holds no MovieLens {layout}: put the folder {LAYOUTS[layout]} there, as GroupLens gives it"
    )


def _fields(path: Path, separator: str, count: int) -> list[list[str]]:
    """Lines of a small latin-1 table, split."""
    try:
        lines = regular(path).read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    rows = [line.split(separator) for line in lines if line]
    for number, row in enumerate(rows, 1):
        if len(row) != count:
            raise UserError(f"{path}, line {number}: {len(row)} fields instead of {count}")
    return rows


def _read_movies_csv(path: Path) -> dict[int, list[int]]:
    import csv

    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not rows or not {"movieId", "genres"} <= set(rows[0]):
        raise UserError(f"{path} must have the columns movieId, title, genres")
    names = {name: n for n, name in enumerate(GENRES)} | {"Children": GENRES.index("Children's")}
    return {
        _whole(row["movieId"], path.name): [names[name] for name in (row["genres"] or "").split("|") if name in names]
        for row in rows
    }


def _numbers(path: Path, separator: str, rows: int | None, skip: int = 0) -> NDArray[np.float64]:
    """User, movie, rating, time of each row."""
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if content.count(b"\n", 0, 10_000) < skip or not content.strip():
        raise UserError(f"{path} is empty; it must have at least one row")
    if len(separator) > 1:
        content = content.replace(separator.encode(), b"\t")
        separator = "\t"
    try:
        table = np.loadtxt(
            io.BytesIO(content),
            delimiter=separator,
            skiprows=skip,
            max_rows=rows,
            ndmin=2,
            encoding="latin-1",
            comments=None,
        )
    except ValueError as error:
        raise UserError(f"{path} is malformed: {' '.join(str(error).split())} (rows counted from 0)") from error
    if len(table) == 0 or table.shape[1] != 4:
        raise UserError(f"{path} must have four columns, user, movie, rating and time, and at least one row")
    bad = ~(np.isfinite(table).all(1) & (table[:, 2] >= 0.5) & (table[:, 2] <= 5))
    if bad.any():
        raise UserError(f"{path}: row {int(bad.argmax())} (counted from 0) has a rating outside 0.5 to 5, or no number")
    return table


def _assemble(
    table: NDArray[np.float64],
    users: dict[int, tuple[int, int, int]],
    movies: dict[int, list[int]],
    folder: Path,
) -> Ratings:
    user_ids, user = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    movie_ids, movie = np.unique(table[:, 1].astype(np.int64), return_inverse=True)
    for kind, found, known in (("user", user_ids, users), ("movie", movie_ids, movies)):
        if known and (missing := [number for number in found.tolist() if number not in known]):
            raise UserError(f"{folder}: the ratings name {kind} {missing[0]}, which is not in the table of {kind}s")
    genres = np.zeros((len(movie_ids), len(GENRES)), dtype=np.float32)
    for row, number in enumerate(movie_ids.tolist()):
        if movies[number]:
            genres[row, movies[number]] = 1 / len(movies[number])
    columns = {"user": torch.from_numpy(user), "movie": torch.from_numpy(movie)}
    sizes = {"user": len(user_ids), "movie": len(movie_ids), "genres": len(GENRES)}
    if users:
        facts = np.array([users[number] for number in user_ids.tolist()], dtype=np.int64)[user]
        for column, name in enumerate(("gender", "age", "occupation")):
            columns[name] = torch.from_numpy(np.ascontiguousarray(facts[:, column]))
        sizes |= {"gender": 2, "age": len(AGES), "occupation": max(OCCUPATIONS, int(facts[:, 2].max()) + 1)}
    columns["genres"] = torch.from_numpy(genres[movie])
    return Ratings(
        columns,
        torch.from_numpy(table[:, 2].astype(np.float32)),
        torch.from_numpy(table[:, 3].astype(np.int64)),
        sizes,
    )
