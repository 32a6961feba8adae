"""The verbs that condense: ``condense``, ``redteam``, and ``quality``, which measures a set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.settings import Count, PositiveInt, Seed
from tenfold.systems.condensation_audit.attacks.poisoning import Attack
from tenfold.systems.condensation_audit.cli.options import (
    AttackChoice,
    CleanChoice,
    Condensing,
    DataChoice,
    usable_device,
)
from tenfold.systems.condensation_audit.condensers.condense import condense as condense_images
from tenfold.systems.condensation_audit.data.load import Data
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.sets.files import load_set, save_set
from tenfold.systems.condensation_audit.training.quality import evaluate_set, train_on


def condense(
    images: DataChoice,
    how: Condensing,
    *,
    out: str = "condensed.cset",
    networks: Count = 5,
    seed: Seed = 0,
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
    networks: Count = 5,
    seed: Seed = 0,
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
    how.check()
    usable_device(device)
    recipe = how.training_recipe()
    found = images.read()
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
    answer: dict[str, Any] = {"set": out, "images": len(made), "method": how.method, "notes": list(found.notes)}
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
    images: CleanChoice,
    *,
    networks: dict[str, Any] | None = None,
    seeds: PositiveInt = 5,
    device: str = "cpu",
    allow_poisoned: bool = False,
) -> dict[str, Any]:
    """Accuracy of several networks trained from scratch on a set, with the set's recipe and preprocessing.

    Args:
        set: a condensed set.
        images: the data whose test images measure it; those that the set names where not given.
        networks: by name with their arguments, such as '{"mlp": {}, "lenet": {}}'; the recipe's own where not given.
        seeds: networks of each kind.
        device: cpu, cuda.
        allow_poisoned: measure a set that is marked as poisoned, too.
    """
    usable_device(device)
    found = load_set(set, allow_poisoned=allow_poisoned)
    named = images.data or str(found.source.get("name"))
    loaded = replace(images, data=named).read(found.preprocessing.image_shape, found.source.get("reading"))
    if loaded.real.classes != found.classes:
        raise UserError(f"the classes of {set} and of {named} differ: {_first_difference(found, loaded)}")
    pixels = found.preprocessing.normalize(loaded.test.images)
    measured = evaluate_set(found, pixels, loaded.test.labels, networks=networks, seeds=range(seeds), device=device)
    return {
        name: {"accuracy": round(100 * sum(values) / len(values), 2), "all": [round(100 * v, 2) for v in values]}
        for name, values in measured.items()
    }


def _first_difference(found: CondensedSet, loaded: Data) -> str:
    if len(found.classes) != len(loaded.real.classes):
        return f"{len(found.classes)} and {len(loaded.real.classes)}"
    ours, theirs = next((a, b) for a, b in zip(found.classes, loaded.real.classes, strict=True) if a != b)
    return f"{printable(ours)} and {printable(theirs)}"
