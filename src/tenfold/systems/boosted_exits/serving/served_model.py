"""A model folder of boosted exits, rebuilt and ready to call; a manifest alone never runs code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from tenfold.data.preprocessing import Preprocessing
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import (
    MANIFEST,
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    refuse_code,
)
from tenfold.settings import Share
from tenfold.systems.boosted_exits.attach.attach_exits import AttachedExits
from tenfold.systems.boosted_exits.builders import ExitNetwork, build_network, stages_of
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.policies.exit_policy import ExitPolicy, check_costs
from tenfold.systems.boosted_exits.serving.runner import EarlyExitRunner, ExitOutputs

SYSTEM = "boosted-exits"

_Size = Annotated[int, Field(ge=1, le=100_000)]


class _Arguments(BaseModel):
    """What a manifest may say about a network; anything else is refused."""

    model_config = ConfigDict(extra="forbid")

    num_classes: _Size
    image_shape: Annotated[list[_Size], Field(min_length=3, max_length=3)]
    arguments: dict[str, Any] = {}
    taps: list[str] = []
    factory: str | None = None
    reweight: list[Share] = [0.5]
    rescale: bool = True


def load_network(folder: str | Path, factory: str | None = None) -> tuple[ExitNetwork, Manifest]:
    """Rebuild the network of a run or model folder, in eval mode.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Raises:
        UserError: the folder holds no such network, the manifest asks for anything but a network with plain arguments,
            or the weights are damaged or do not fit.
    """
    manifest = load_manifest(folder, SYSTEM)
    refuse_code(manifest, factory)
    place = Path(folder) / MANIFEST
    try:
        arguments = _Arguments.model_validate(manifest.arguments)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(map(str, first["loc"])))
        raise UserError(f"{printable(place)} describes no network: arguments.{where}: {first['msg']}") from error
    with no_larger_than_its_files(folder, manifest.arguments):
        network = build_network(manifest.builder, **arguments.model_dump(), from_file=place)
    load_weights(network, folder)
    costs = manifest.extra.get("costs")
    if not isinstance(costs, list) or not all(isinstance(cost, int | float) for cost in costs):
        raise UserError(f"{printable(place)} holds no costs of the exits")
    check_costs(costs, network.exits)
    classes = manifest.extra.get("classes")
    if classes is not None and (not isinstance(classes, list) or len(classes) != arguments.num_classes):
        raise UserError(f"{printable(place)} does not name its {arguments.num_classes} classes")
    return network.eval(), manifest


def policy_of(manifest: Manifest, run: str | Path) -> ExitPolicy:
    """The exit policy that a model was delivered with, or a ``UserError`` where it has none yet."""
    if not manifest.extra.get("policy"):
        raise UserError(
            f"{run} has no thresholds yet: solve them with tenfold boosted-exits thresholds RUN --save true"
        )
    return ExitPolicy.from_dict(manifest.extra["policy"])


def preprocessing_of(manifest: Manifest) -> Preprocessing:
    """What images go through into the network; a ``UserError`` where the model was saved without."""
    if "preprocessing" not in manifest.extra:
        raise UserError("this model was saved by an early version, without its preprocessing: train or import it again")
    return Preprocessing.from_dict(manifest.extra["preprocessing"])


class ServedExits(nn.Module):
    """An early-exit network as it is served: images in, the logits of the exit that each takes out.

    Args:
        stages: in eval mode.
        thresholds: ``(exits,)``; ``None`` runs every image to the end.
        preprocessing: what images go through before they come here.
        classes: names of the classes, where they are known.
        trunk: the network that was given exits, uncut; none where it has exits of its own.
    """

    def __init__(
        self,
        stages: EarlyExitModel,
        thresholds: Sequence[float] | None,
        preprocessing: Preprocessing,
        classes: Sequence[str] | None = None,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._trunk = [] if trunk is None else [trunk]  # in a list: its parameters are those of the stages
        self.stages = stages
        self.runner = None if thresholds is None else EarlyExitRunner(stages, thresholds)
        self.preprocessing = preprocessing
        self.classes = None if classes is None else tuple(classes)

    @property
    def network(self) -> nn.Module:
        """The network that was given exits, or all stages of this one, for systems that take any network."""
        return self._trunk[0] if self._trunk else ServedExits(self.stages, None, self.preprocessing, self.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of normalized images ``(batch, channels, height, width)``."""
        return self.stages.ensemble(self.stages(images))[-1] if self.runner is None else self.runner(images).logits

    def answer(self, images: Tensor) -> ExitOutputs:
        """Logits and exits of normalized images.

        Raises:
            UserError: there are no thresholds yet.
        """
        if self.runner is None:
            raise UserError("this model has no thresholds yet: tenfold boosted-exits thresholds RUN --save true")
        return self.runner(images)


def load(folder: str | Path, *, factory: str | None = None) -> ServedExits:
    """The served model of a run or model folder, in eval mode.

    Args:
        folder: of a finished run, or of an imported model.
        factory: ``package.module:function`` that the network may be made by, where it is one of the user's own.

    Raises:
        UserError: see ``load_network``; or the thresholds do not fit.
    """
    network, manifest = load_network(folder, factory)
    stages = stages_of(network, torch.zeros(2, *manifest.arguments["image_shape"]))
    thresholds = policy_of(manifest, folder).thresholds if manifest.extra.get("policy") else None
    trunk = network.trunk if isinstance(network, AttachedExits) else None
    return ServedExits(stages, thresholds, preprocessing_of(manifest), manifest.extra.get("classes"), trunk).eval()
