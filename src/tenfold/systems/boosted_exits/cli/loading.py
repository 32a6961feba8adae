"""The network of a run or model folder, rebuilt."""

from pathlib import Path

from tenfold.data import Splits
from tenfold.errors import UserError
from tenfold.export import Manifest, load_manifest, load_weights
from tenfold.systems.boosted_exits.builders import ExitNetwork, build_network
from tenfold.systems.boosted_exits.policies.exit_policy import ExitPolicy


def load_network(folder: str | Path, factory: str | None = None) -> tuple[ExitNetwork, Manifest]:
    """Rebuild the network of a run or model folder, in eval mode.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Raises:
        UserError: the folder holds no such network, the weights are damaged or do not fit.
    """
    manifest = load_manifest(folder)
    if manifest.system != "boosted-exits":
        raise UserError(f"{folder} holds a model of {manifest.system!r}, not of boosted-exits")
    if manifest.builder == "factory" and factory != manifest.arguments.get("factory"):
        raise UserError(
            f"the network of {folder} is made by {manifest.arguments.get('factory')!r}: allow it with --factory"
        )
    network = build_network(manifest.builder, **manifest.arguments)
    load_weights(network, folder)
    return network.eval(), manifest


def policy_of(manifest: Manifest, run: str) -> ExitPolicy:
    """The exit policy that a model was delivered with, or a ``UserError`` where it has none yet."""
    if not manifest.extra.get("policy"):
        raise UserError(
            f"{run} has no thresholds yet: solve them with tenfold boosted-exits thresholds RUN --save true"
        )
    return ExitPolicy.from_dict(manifest.extra["policy"])


def require_shape(splits: Splits, manifest: Manifest) -> None:
    """Refuse data whose images have another shape than the network takes."""
    wanted = tuple(manifest.arguments["image_shape"])
    if tuple(splits.image_shape) != wanted:
        raise UserError(f"the network takes images {wanted}; those of {splits.name} are {tuple(splits.image_shape)}")
