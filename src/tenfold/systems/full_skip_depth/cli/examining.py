"""``doctor`` and ``sources``."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth.delivery.models import load_network
from tenfold.systems.full_skip_depth.sets.doctor import examine
from tenfold.systems.full_skip_depth.sets.pairs import Unpaired, pairs_by_stem, pairs_of_csv


def doctor(root: str, *, depth_scale: float | None = None, threads: int = 2) -> dict[str, Any]:
    """Look at pairs before training: partners, sizes, units, valid pixels, constant maps, files that cannot be read.

    Args:
        root: folder with rgb/ and depth/ (or train/, val/, test/ with these), or a CSV file.
        depth_scale: values per metre of the depth files; guessed from the values where not given.
        threads: that read.
    """
    path = Path(root)
    if path.is_dir():
        parts = [path / part for part in ("train", "val", "test") if (path / part).is_dir()] or [path]
        found = [pairs_by_stem(part) for part in parts]
        pairs = [pair for part, _ in found for pair in part]
        lonely = Unpaired(
            tuple(image for _, one in found for image in one.images),
            tuple(depth for _, one in found for depth in one.depths),
        )
    elif path.is_file():
        pairs = [pair for part in pairs_of_csv(path).values() for pair in part]
        lonely = Unpaired(tuple(pair.image for pair in pairs if pair.depth is None), ())
        pairs = [pair for pair in pairs if pair.depth is not None]
    else:
        raise UserError(f"there is no folder and no CSV file {root}")
    if threads < 1:
        raise UserError(f"threads must be at least 1; got {threads}")
    return examine(pairs, lonely, depth_scale=depth_scale, threads=threads)


def sources(run: str) -> str:
    """Print the learned weight of every source at every decoder level of a run's network.

    Args:
        run: folder of the run.
    """
    network, _ = load_network(run)
    if not hasattr(network.decoder, "source_weights"):
        raise UserError(f"the network of {run} has another decoder than full-skip")
    lines = ["level  weights of the encoder's levels (1: the finest); 1 means as in a plain concatenation"]
    for level, weights in sorted(network.decoder.source_weights().items(), reverse=True):  # type: ignore[operator]
        lines.append(f"{level:>5}  " + "  ".join(f"E{j} {weight:.3f}" for j, weight in weights.items()))
    return "\n".join(lines)
