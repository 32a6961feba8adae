"""Ratings that nobody gave, in the layout of MovieLens 1M: hidden tastes, power-law popularity."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.data.movielens import AGES, GENRES, OCCUPATIONS, Ratings, _assemble


@dataclass(frozen=True)
class SyntheticMovieLens:
    """Users, movies and ratings that nobody gave; ids count from 1, as in MovieLens 1M.

    Attributes:
        users: rows of ``users.dat``: id, gender, age code, occupation, zip code.
        movies: rows of ``movies.dat``: id, title, genres.
        ratings: ``(n, 4)`` rows of ``ratings.dat``: user, movie, stars, time.
    """

    users: list[tuple[int, str, int, int, str]]
    movies: list[tuple[int, str, str]]
    ratings: NDArray[np.int64]

    def write(self, root: str | Path) -> Path:
        """Write ``ml-1m`` below ``root`` in the layout of MovieLens 1M; gives the folder."""
        folder = Path(root) / "ml-1m"
        folder.mkdir(parents=True, exist_ok=True)
        tables: dict[str, Sequence[Sequence[object]]] = {
            "users.dat": self.users,
            "movies.dat": self.movies,
            "ratings.dat": self.ratings.tolist(),
        }
        for name, rows in tables.items():
            text = "".join("::".join(map(str, row)) + "\n" for row in rows)
            (folder / name).write_bytes(text.encode("latin-1"))
        return folder

    def ratings_table(self) -> Ratings:
        """As ``load_movielens`` would read it."""
        users = {user: (int(gender == "F"), AGES.index(age), job) for user, gender, age, job, _ in self.users}
        movies = {movie: [GENRES.index(name) for name in genres.split("|")] for movie, _, genres in self.movies}
        return _assemble(self.ratings.astype(np.float64), users, movies, Path("synthetic MovieLens"))


def synthetic_movielens(
    users: int = 600, movies: int = 400, rows: int = 30_000, *, factors: int = 4, noise: float = 0.7, seed: int = 0
) -> SyntheticMovieLens:
    """Ratings by hidden tastes: ``3.6 + bias(user) + bias(movie) + taste . character + genre + noise``, in stars.

    Args:
        users: number of users; some rate much, most little.
        movies: number of movies, whose popularity falls as a power law.
        rows: number of ratings, all of different pairs.
        factors: hidden dimensions of taste.
        noise: standard deviation of what nothing explains, in stars.
        seed: of everything.
    """
    if rows > users * movies // 2:
        raise UserError(f"{rows} different ratings are too many for {users} users and {movies} movies")
    random = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, movies + 1) ** 0.8
    activity = random.pareto(1.5, users) + 0.3
    pairs: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    while len(pairs) < rows:
        user = random.choice(users, rows, p=activity / activity.sum())
        movie = random.choice(movies, rows, p=popularity / popularity.sum())
        pairs = np.unique(np.concatenate([pairs, user * movies + movie]))
    pairs = random.permutation(pairs)[:rows]
    user, movie = pairs // movies, pairs % movies
    genres = [sorted(random.choice(len(GENRES), random.integers(1, 4), replace=False)) for _ in range(movies)]
    liked = random.normal(0, 0.25, (users, len(GENRES)))
    genre_effect = np.array([liked[u, genres[m]].mean() for u, m in zip(user, movie, strict=True)])
    taste, character = random.normal(0, 1, (users, factors)), random.normal(0, 0.5, (movies, factors))
    score = (
        3.6
        + random.normal(0, 0.4, users)[user]
        + random.normal(0, 0.5, movies)[movie]
        + (taste[user] * character[movie]).sum(1) / factors**0.5
        + genre_effect
        + random.normal(0, noise, rows)
    )
    stars = np.clip(np.rint(score), 1, 5).astype(np.int64)
    times = 956_703_932 + random.permutation(rows) * 60
    order = np.argsort(user, kind="stable")
    table = np.stack([user + 1, movie + 1, stars, times], axis=1)[order]
    people = [
        (
            n + 1,
            "FM"[int(random.random() < 0.7)],
            AGES[random.integers(len(AGES))],
            int(random.integers(OCCUPATIONS)),
            f"{random.integers(10_000, 99_999)}",
        )
        for n in range(users)
    ]
    titles = [(n + 1, f"Film {n + 1} ({1930 + n % 70})", "|".join(GENRES[g] for g in genres[n])) for n in range(movies)]
    return SyntheticMovieLens(people, titles, table)
