"""The condensation half of the experiment: sets of every method, and what networks trained on them reach."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold.run import Run
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attacks.poisoning import Attack
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.load import Data
from tenfold.systems.condensation_audit.experiment.settings import Config, settings_of
from tenfold.systems.condensation_audit.networks.factories import Factory, factory_of
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.sets.files import load_set, save_set
from tenfold.systems.condensation_audit.training.ensembles import save_ensemble, train_together
from tenfold.systems.condensation_audit.training.quality import train_on


def network_of(config: Config, data: Data) -> Factory:
    """What makes the run's network.

    Raises:
        UserError: it cannot be made for these images.
    """
    factory = factory_of(
        config.network.name,
        image_shape=data.real.preprocessing.image_shape,
        num_classes=len(data.real.classes),
        **config.network.arguments,
    )
    factory()
    return factory


def measure_full(config: Config, data: Data, seed: int) -> dict[str, Any]:
    """Accuracy with all real images: the yardstick."""
    recipe = replace(recipe_of(config), epochs=config.training.full_epochs, batch_size=128, decay_at=(0.7,))
    started = time.perf_counter()
    device = config.trainer.device
    ensemble = train_together(
        network_of(config, data), data.real.images, data.real.labels, recipe, seeds=[seed], device=device
    )
    images, labels = data.test_images()
    accuracy = float(ensemble.accuracy(images.to(device), labels)[0])
    return {"accuracy": accuracy, "seconds": time.perf_counter() - started}


def make_set(
    config: Config,
    data: Data,
    factory: Factory,
    method: str,
    size: int,
    seed: int,
    *,
    attack: Attack | None = None,
    folder: Path | None = None,
    experts_folder: Path | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    **more: Any,
) -> CondensedSet:
    """One condensed (or selected) set, by the run's settings.

    Args:
        config: the settings.
        data: the data.
        factory: makes the network.
        method: of `METHODS`.
        size: images per class.
        seed: of everything random.
        attack: poisons the data.
        folder: where unfinished work is kept.
        experts_folder: where experts are kept that sets of the same data share.
        on_step: called now and then.
        more: settings that differ from the run's.
    """
    named = config.network.name
    return condense(
        data.real,
        method,
        size,
        named,
        network_arguments=config.network.arguments,
        recipe=recipe_of(config),
        attack=attack,
        seed=derived_seed(seed, 7),
        device=config.trainer.device,
        folder=folder,
        experts_folder=experts_folder,
        progress=on_step,
        **{**settings_of(config, method, size), **more},
    )


def read_own_set(config: Config, path: Path) -> CondensedSet:
    """A set that this run wrote: poisoned ones and those of the run's own network are read, too."""
    network = config.network
    return load_set(path, allow_poisoned=True, allow_network=str(network.arguments.get("factory", network.name)))


def network_seeds(config: Config, seed: int) -> list[int]:
    """Seeds of the networks that judge the sets of a seed; the same for every method and attack."""
    return [derived_seed(seed, 8, number) for number in range(config.training.networks)]


def measure_set(
    config: Config, data: Data, factory: Factory, method: str, size: int, seed: int, folder: Path, run: Run, step: str
) -> dict[str, Any]:
    """Make a set, keep it as ``set.cset``, and measure networks that are trained on it.

    Returns:
        ``accuracies`` of the networks, ``by_image``: their mean on each test image, ``seconds`` of the condensation,
        ``training_seconds``, and ``outside``: the share of the pixels that lies outside what an 8-bit image can hold.
    """
    started = time.perf_counter()
    found = make_set(
        config,
        data,
        factory,
        method,
        size,
        seed,
        folder=folder,
        experts_folder=run.folder / f"steps/experts/seed{seed}",
        on_step=lambda done, total, loss: run.progress(step, done, total, f"loss {loss:.4g}"),
    )
    made = time.perf_counter()
    device = config.trainer.device
    ensemble = train_on(found, seeds=network_seeds(config, seed), factory=factory, device=device)
    images, labels = data.test_images()
    hits = (ensemble.predict(images.to(device)).cpu() == labels).double()
    accuracies = hits.mean(1).tolist()
    ended = time.perf_counter()
    found = replace(found, results={"accuracy": sum(accuracies) / len(accuracies)})
    save_set(folder / "set.cset", found, overwrite=True)
    save_ensemble(ensemble, folder / "networks.safetensors")
    pixels = found.pixels
    return {
        "accuracies": accuracies,
        "by_image": [round(value, 4) for value in hits.mean(0).tolist()],
        "seconds": made - started,
        "training_seconds": ended - made,
        "outside": float(((pixels < -1e-4) | (pixels > 1 + 1e-4)).double().mean()),
    }


def recipe_of(config: Config) -> TrainingRecipe:
    """The recipe that travels with every set of the run."""
    options = config.training
    return TrainingRecipe(
        network=config.network.name,
        arguments=dict(config.network.arguments),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        batch_size=options.batch_size,
        decay_at=tuple(options.decay_at),
        augmentation=options.augmentation,
    )
