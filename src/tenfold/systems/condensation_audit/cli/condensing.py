"""The verbs that condense: ``condense``, ``redteam``, and ``quality``, which measures a set."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.poisoning import Attack
from tenfold.systems.condensation_audit.cli.options import (
    AttackChoice,
    Condensing,
    DataChoice,
    image_options,
    read_data,
)
from tenfold.systems.condensation_audit.condensers.condense import condense as condense_images
from tenfold.systems.condensation_audit.data.load import load_data, require_shape
from tenfold.systems.condensation_audit.sets.files import load_set, save_set
from tenfold.systems.condensation_audit.training.quality import evaluate_set, train_on


def condense(
    images: DataChoice,
    how: Condensing,
    *,
    out: str = "condensed.cset",
    networks: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Condense a data set into a small synthetic one, and measure what networks trained on it reach.

    Args:
        images: the real images.
        how: method, network, recipe.
        out: the set to write: a folder NAME.cset, or one .safetensors file.
        networks: trained to measure it; none where 0.
        seed: of everything random.
        device: cpu, cuda.
    """
    return _condense(images, how, None, out, networks, seed, device)


def redteam(
    images: DataChoice,
    how: Condensing,
    attack: AttackChoice,
    *,
    out: str = "poisoned.cset",
    networks: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Condense under attack, to measure defences with; the set is always marked as poisoned.

    Args:
        images: the real images.
        how: method, network, recipe.
        attack: which one, and its trigger.
        out: the set to write: a folder NAME.cset, or one .safetensors file.
        networks: trained to measure it; none where 0.
        seed: of everything random.
        device: cpu, cuda.
    """
    return _condense(images, how, attack.make(), out, networks, seed, device)


def _condense(
    images: DataChoice, how: Condensing, attack: Attack | None, out: str, networks: int, seed: int, device: str
) -> dict[str, Any]:
    if Path(out).exists():
        raise UserError(f"{out} already exists; name another place with --out")
    recipe = how.training_recipe()
    found = read_data(images)
    made = condense_images(
        found.real,
        how.method,
        how.images_per_class,
        how.network,
        network_arguments=how.arguments,
        recipe=recipe,
        attack=attack,
        seed=seed,
        device=device,
        **(how.settings or {}),
    )
    answer: dict[str, Any] = {"set": out, "images": len(made), "method": how.method}
    if networks:
        accuracies = train_on(made, seeds=range(networks), device=device).accuracy(*found.test_images())
        made.results["accuracy"] = round(float(accuracies.mean()), 6)
        answer["accuracy"] = round(100 * float(accuracies.mean()), 2)
        answer["deviation"] = round(100 * float(accuracies.std()), 2) if networks > 1 else None
    answer["hash"] = save_set(out, made)
    if attack is not None:
        answer["poisoned"] = True
    return answer


def quality(
    set: str,
    *,
    data: str = "digits",
    root: str | None = None,
    validation: int = 300,
    networks: dict[str, Any] | None = None,
    seeds: int = 5,
    device: str = "cpu",
    allow_poisoned: bool = False,
) -> dict[str, Any]:
    """Accuracy of several networks trained from scratch on a set, with the set's recipe and preprocessing.

    Args:
        set: a condensed set.
        data: whose test images measure it.
        root: their folder; TENFOLD_DATA where not given.
        validation: images kept out of training and test.
        networks: by name with their arguments, such as '{"mlp": {}, "lenet": {}}'; the recipe's own where not given.
        seeds: networks of each kind.
        device: cpu, cuda.
        allow_poisoned: measure a set that is marked as poisoned, too.
    """
    found = load_set(set, allow_poisoned=allow_poisoned)
    side = found.preprocessing.image_shape[1]
    loaded = load_data(image_options(data, root, None if data == "digits" and side == 8 else side, validation))
    require_shape(loaded, list(found.preprocessing.image_shape), set)
    if len(loaded.real.classes) != len(found.classes):
        raise UserError(f"{set} has {len(found.classes)} classes, {data} has {len(loaded.real.classes)}")
    images = found.preprocessing.normalize(loaded.test.images)
    measured = evaluate_set(found, images, loaded.test.labels, networks=networks, seeds=range(seeds), device=device)
    return {
        name: {"accuracy": round(100 * sum(values) / len(values), 2), "all": [round(100 * v, 2) for v in values]}
        for name, values in measured.items()
    }
