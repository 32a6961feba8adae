"""Condense labelled images: one call for every method, with an attack or without.

    condense(data, "dm", images_per_class=10, network="convnet")  ->  CondensedSet

``data`` are `LabelledImages` or a prepared
`RealData`; ``network`` is a name or any function that makes one.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.data.images import LabelledImages
from tenfold.errors import RunStopped, UserError
from tenfold.files import write_atomically
from tenfold.models.checkpoints import read_safetensors
from tenfold.seeds import derived_seed
from tenfold.settings import check_settings
from tenfold.systems.condensation_audit.attacks.doorping import Doorping
from tenfold.systems.condensation_audit.attacks.poisoning import Attack
from tenfold.systems.condensation_audit.condensers.condenser import Condenser
from tenfold.systems.condensation_audit.condensers.dataset_distillation import (
    DatasetDistillation,
    DatasetDistillationSettings,
)
from tenfold.systems.condensation_audit.condensers.distribution_matching import (
    DistributionMatching,
    DistributionMatchingSettings,
)
from tenfold.systems.condensation_audit.condensers.gradient_matching import GradientMatching, GradientMatchingSettings
from tenfold.systems.condensation_audit.condensers.selections import select
from tenfold.systems.condensation_audit.condensers.trajectory_matching import (
    TrajectoryMatching,
    TrajectoryMatchingSettings,
)
from tenfold.systems.condensation_audit.data.real_data import RealData, real_data
from tenfold.systems.condensation_audit.names import METHODS, SELECTIONS
from tenfold.systems.condensation_audit.networks.factories import Factory, factory_of, network_fingerprint
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.training.ensembles import train_together
from tenfold.systems.condensation_audit.training.siamese_augmentation import operations_of

Progress = Callable[[int, int, float], None]
"""Called with finished iterations, all iterations, and the last loss."""

_CONDENSERS: dict[str, tuple[Callable[..., Condenser], type, dict[str, Any]]] = {
    "dc": (GradientMatching, GradientMatchingSettings, {}),
    "dsa": (
        GradientMatching,
        GradientMatchingSettings,
        {"start": "real", "strategy": "color_crop_cutout_flip_scale_rotate"},
    ),
    "dm": (DistributionMatching, DistributionMatchingSettings, {}),
    "mtt": (TrajectoryMatching, TrajectoryMatchingSettings, {}),
    "dd": (DatasetDistillation, DatasetDistillationSettings, {}),
}
# What the attack's own network is, where the method has none that is trained: without norm, with a hidden layer.
_AUXILIARY_RECIPE = TrainingRecipe(
    epochs=60, learning_rate=0.02, momentum=0.9, weight_decay=0.0, batch_size=10**9, decay_at=()
)


def condense(
    data: LabelledImages | RealData,
    method: str = "dm",
    images_per_class: int = 10,
    network: str | Factory = "convnet",
    *,
    network_arguments: Mapping[str, Any] | None = None,
    recipe: TrainingRecipe | None = None,
    attack: Attack | None = None,
    auxiliary: Factory | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    folder: str | Path | None = None,
    experts_folder: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> CondensedSet:
    """Make a small synthetic training set (or select a small real one).

    Args:
        data: the real training images.
        method: one of ``names.METHODS``.
        images_per_class: images of each class (and, for ``dd``, of each inner step).
        network: name of a network, or a function that makes one with fresh weights.
        network_arguments: further arguments of a named network.
        recipe: how networks will be trained on the set; travels with it.
        attack: poisons the real data and may follow the condensation; the set is marked.
        auxiliary: makes the network that is trained for the attack where the method trains none.
        seed: of everything random.
        device: where to compute.
        folder: where unfinished work is kept, and continued from.
        experts_folder: of the experts of ``mtt``, which sets of the same data may share; in ``folder`` where ``None``.
        progress: called now and then.
        settings: of the method, such as ``iterations``; see its settings class.

    Raises:
        UserError: there is no such method or setting, or data, network and settings do not fit.
        RunStopped: the loss is no longer finite; the images before it are in ``folder``.
    """
    prepared = data if isinstance(data, RealData) else real_data(data)
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}; there are: {', '.join(METHODS)}")
    shape, classes = prepared.preprocessing.image_shape, len(prepared.classes)
    arguments = dict(network_arguments or {})
    factory = factory_of(network, image_shape=shape, num_classes=classes, **arguments)
    name = network if isinstance(network, str) else "factory"
    recipe = recipe or TrainingRecipe(network=name, arguments=arguments)
    batch_of = None
    if isinstance(attack, Doorping) and attack.poisons_slots(method):
        prepared, batch_of = attack.poison(prepared, derived_seed(seed, 21), slots=True), attack.batch
    elif attack is not None:
        prepared = attack.poison(prepared, derived_seed(seed, 21))
    chosen = settings_of_method(method, settings)
    operations_of(recipe.augmentation)
    used: dict[str, Any] = {} if chosen is None else dataclasses.asdict(chosen)
    if chosen is None:
        found = select(prepared, method, images_per_class, factory, seed=seed, device=device)
    else:
        make = _CONDENSERS[method][0]
        made_from = ""
        if folder is not None:
            rules = (method, images_per_class, used, seed, None if attack is None else attack.describe())
            of_network = network_fingerprint(factory, seed)
            made_from = hashlib.sha256(f"{prepared.fingerprint()} {of_network} {rules}".encode()).hexdigest()
        options: dict[str, Any] = {"seed": seed, "device": device}
        if method == "mtt" and (experts_folder or folder) is not None:
            options["folder"] = Path(experts_folder) if experts_folder is not None else Path(folder or "") / "experts"
            options["folder"].mkdir(parents=True, exist_ok=True)
        if attack is not None:
            options["on_network_trained"] = attack.update
            if batch_of is not None:
                options["batch_of"] = batch_of
            if method == "dm":
                options["auxiliary"] = _auxiliary_network(prepared, auxiliary, seed, device)
        condenser = make(prepared, images_per_class, factory, chosen, **options)
        run_condenser(condenser, attack=attack, folder=folder, progress=progress, made_from=made_from)
        found = condenser.result()
    rate = found.pop("learning_rate", None)
    if rate is not None:
        recipe = dataclasses.replace(recipe, learning_rate=rate)
    return CondensedSet(
        classes=prepared.classes,
        preprocessing=prepared.preprocessing,
        recipe=recipe,
        method=method,
        settings={
            "images_per_class": images_per_class,
            "network": name,
            "network_arguments": arguments,
            "seed": seed,
            **used,
        },
        source=prepared.source(),
        poisoned=None if attack is None else attack.describe(),
        **found,
    )


def settings_of_method(method: str, values: Mapping[str, Any]) -> Any:
    """The settings of a method, checked by their ranges; ``None`` for selections, which have none.

    Args:
        method: one of ``names.METHODS``.
        values: those that differ from the published ones.

    Raises:
        UserError: there is no such method or setting, or a value is out of its range.
    """
    if method in SELECTIONS:
        if values:
            raise UserError(f"{method} selects images and has no settings; got {min(values)!r}")
        return None
    if method not in _CONDENSERS:
        raise UserError(f"there is no method {method!r}; there are: {', '.join(METHODS)}")
    _, kind, defaults = _CONDENSERS[method]
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise UserError(f"{method} has no setting {name!r}; it has: {', '.join(known)}")
    chosen = kind(**{**defaults, **values})
    try:
        check_settings(chosen)
    except UserError as error:
        raise UserError(f"settings.{method}: {error}") from error
    operations_of(chosen.strategy if hasattr(chosen, "strategy") else "")
    return chosen


def _auxiliary_network(
    data: RealData, auxiliary: Factory | None, seed: int, device: torch.device | str
) -> Callable[[Tensor, int], nn.Module]:
    """Trains a fresh network on the synthetic images: what an attack updates its trigger on."""
    shape, classes = data.preprocessing.image_shape, len(data.classes)
    depth = next((depth for depth in (3, 2, 1) if min(shape[1:]) >= 2 ** (depth + 1)), 0)
    factory = auxiliary or factory_of(
        "convnet_baadd", image_shape=shape, num_classes=classes, width=16, depth=depth, hidden=64
    )

    def train(images: Tensor, iteration: int) -> nn.Module:
        labels = torch.arange(classes).repeat_interleave(len(images) // classes)
        seeds = [derived_seed(seed, 22, iteration)]
        return train_together(factory, images, labels, _AUXILIARY_RECIPE, seeds=seeds, device=device).networks[0]

    return train


def run_condenser(
    condenser: Condenser,
    *,
    attack: Attack | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    saves: int = 20,
    made_from: str = "",
) -> None:
    """Take all steps of a condenser; keep what is done in ``folder``, and continue what is there.

    Args:
        condenser: at its start.
        attack: whose trigger is kept, too.
        folder: where ``condensation.safetensors`` is kept; nothing is kept where ``None``.
        progress: called about a hundred times.
        saves: how often the state is written over the whole way.
        made_from: fingerprint of data, network and settings: work that was begun with another is not continued.

    Raises:
        RunStopped: a loss is not finite.
        UserError: what is kept is damaged, or was begun with other data or settings.
    """
    from safetensors.torch import save

    kept = None if folder is None else Path(folder) / "condensation.safetensors"
    first = 0
    if kept is not None and kept.exists():
        state = _kept_state(kept, made_from)
        try:
            first = int(state.pop("iteration"))
            condenser.load_state({name[2:]: value for name, value in state.items() if name.startswith("c.")})
            if attack is not None:
                attack.load_state({name[2:]: value for name, value in state.items() if name.startswith("a.")})
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{kept} is no unfinished condensation of these images: remove it to begin anew") from error
    every = max(condenser.iterations // saves, 1)
    for iteration in range(first, condenser.iterations):
        loss = condenser.step(iteration)
        if not loss < float("inf"):
            raise RunStopped(f"the loss of iteration {iteration} is {loss}; lower the learning rate of the images")
        done = iteration + 1
        if progress is not None and (done % max(condenser.iterations // 100, 1) == 0 or done == condenser.iterations):
            progress(done, condenser.iterations, loss)
        if kept is not None and (done % every == 0 or done == condenser.iterations):
            state = {f"c.{name}": value.contiguous() for name, value in condenser.state().items()}
            if attack is not None:
                state |= {f"a.{name}": value.contiguous() for name, value in attack.state().items()}
            write_atomically(kept, save({"iteration": torch.tensor(done), **state}, metadata={"made_from": made_from}))


def _kept_state(path: Path, made_from: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    state = read_safetensors(path)
    with safe_open(path, "pt") as file:
        found = (file.metadata() or {}).get("made_from")
    if found != made_from:
        raise UserError(
            f"{path} was begun with other images, labels, network or settings: name another folder, or remove it"
        )
    return state
