"""The security half of the experiment: sets condensed under attack, and what every defence says about them."""

from functools import partial
from pathlib import Path
from typing import Any

from tenfold.run import Run
from tenfold.systems.condensation_audit.attacks.doorping import Doorping
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.poisoning import Attack
from tenfold.systems.condensation_audit.attacks.success import measure_attack
from tenfold.systems.condensation_audit.attacks.triggers import image_trigger, random_patch, read_trigger_description
from tenfold.systems.condensation_audit.data.load import Data
from tenfold.systems.condensation_audit.data.partition import spread_rows
from tenfold.systems.condensation_audit.defences.calibration import calibration_for
from tenfold.systems.condensation_audit.defences.detection import BLENDED, SCANNED, Suspect, run_defences
from tenfold.systems.condensation_audit.experiment.set_arms import make_set, measure_set, network_seeds, read_own_set
from tenfold.systems.condensation_audit.experiment.settings import ABLATIONS, AttackOptions, Config
from tenfold.systems.condensation_audit.networks.factories import Factory
from tenfold.systems.condensation_audit.sets.files import save_set
from tenfold.systems.condensation_audit.training.ensembles import Ensemble, load_ensemble, save_ensemble
from tenfold.systems.condensation_audit.training.quality import factory_for, train_on

ATTACKS = ("naive", "doorping", "doorping-valid")
"""The attacks of a run: the fixed trigger, the updated one as published, and the updated one kept a legal image."""


def check_attacks(config: Config, data: Data) -> None:
    """Poison once: what does not fit the data fails now, not after the condensations.

    Raises:
        UserError: the target is no class, the trigger does not fit the images, or too few would be poisoned.
    """
    for name in ATTACKS:
        make_attack(name, config.attack).poison(data.real, 0)


def make_attack(name: str, options: AttackOptions, **more: Any) -> Attack:
    """An attack of the run, by name; ``more`` overrides its arguments."""
    if name == "naive":
        return NaiveAttack(**{"portion": options.portion, "target": options.target, "size": options.size, **more})
    return Doorping(
        **{
            "portion": options.updated_portion,
            "target": options.target,
            "size": options.size,
            "clamp": "none" if name == "doorping" else "uint8",
            "steps": options.trigger_steps,
            "alpha": options.alpha,
            "ori": options.ori,
            **more,
        }
    )


def clean_networks(config: Config, data: Data, factory: Factory, seed: int, run: Run) -> Ensemble:
    """Networks of the clean set of the attacked method and size: the control of every attack."""
    options = config.attack
    name = f"sets/{options.method}-{options.images_per_class}/seed{seed}"
    run.step(
        name,
        partial(measure_set, config, data, factory, options.method, options.images_per_class, seed, run=run, step=name),
    )
    return load_ensemble(factory, run.folder / "steps" / name / "networks.safetensors", config.trainer.device)


def attack_set(
    config: Config,
    data: Data,
    factory: Factory,
    name: str,
    seed: int,
    folder: Path,
    run: Run,
    step: str,
    *,
    method: str | None = None,
    images_per_class: int | None = None,
    settings: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Condense under attack, keep the marked set, and measure what the trigger does to networks trained on it.

    Args:
        config: the settings.
        data: the data, which are not touched.
        factory: makes the network.
        name: of the attack.
        seed: of everything random; as in the clean arm, so that the two are paired.
        folder: of the step.
        run: for progress and for the control.
        step: its name.
        method: condenser, where not the run's.
        images_per_class: where not the run's.
        settings: of the condenser, where they differ.
        arguments: of the attack, where they differ.
    """
    options = config.attack
    attack = make_attack(name, options, **(arguments or {}))
    found = make_set(
        config,
        data,
        factory,
        method or options.method,
        images_per_class or options.images_per_class,
        seed,
        attack=attack,
        folder=folder,
        on_step=lambda done, total, loss: run.progress(step, done, total, f"loss {loss:.4g}"),
        **(settings or {}),
    )
    save_set(folder / "set.cset", found, overwrite=True)
    ensemble = train_on(found, seeds=network_seeds(config, seed), factory=factory, device=config.trainer.device)
    save_ensemble(ensemble, folder / "networks.safetensors")
    control = clean_networks(config, data, factory, seed, run)
    poisoned = found.poisoned or {}
    outcome = measure_attack(
        ensemble,
        control,
        data.test.images,
        data.test.labels,
        attack.trigger,
        poisoned["target"],
        data.real.preprocessing,
        poisoned["mapping"],
    )
    return {**outcome.to_dict(), "updates": poisoned.get("updates"), "idle": poisoned.get("updates_without_step")}


def defend(config: Config, data: Data, factory: Factory, arm: str, seed: int, run: Run, folder: Path) -> dict[str, Any]:
    """Run every defence on a set and the networks trained on it, with the held-out clean images."""
    options = config.attack
    base = f"sets/{options.method}-{options.images_per_class}" if arm == "clean" else f"attacks/{arm}"
    step = run.folder / "steps" / base / f"seed{seed}"
    if arm == "clean":
        clean_networks(config, data, factory, seed, run)
    found = read_own_set(config, step / "set.cset")
    ensemble = load_ensemble(factory, step / "networks.safetensors", config.trainer.device)
    # What an attacker would send as an image; the published trigger as the floating-point input that it has to be.
    inputs = None
    if found.poisoned is not None:
        trigger = read_trigger_description(found.poisoned["trigger"], found.preprocessing.image_shape)
        rows = spread_rows(data.held_out.labels, min(SCANNED, len(data.held_out)))[:BLENDED]
        inputs = trigger.stamp(data.held_out.images[rows])
    suspect = Suspect(
        ensemble,
        found.preprocessing,
        data.held_out,
        found.images,
        found.hard_labels,
        inputs,
        calibration_for(found, len(ensemble), min(SCANNED, len(data.held_out))),
        seed,
    )
    target = (found.poisoned or {}).get("target")
    return {
        row.name: {
            "flagged": row.flagged,
            "score": row.score,
            "classes": row.classes,
            "seconds": row.seconds,
            "right": None if target is None else target in row.classes,
        }
        for row in run_defences(suspect, options.defences)
    }


def attack_transfer(config: Config, data: Data, run: Run) -> dict[str, dict[str, dict[str, Any]]]:
    """What the first seed's attacks do to other networks, trained on the poisoned sets and, for control, the clean one.

    Returns:
        For each attack and each network of ``config.transfer``, its outcome.
    """
    options = config.attack
    clean = run.folder / f"steps/sets/{options.method}-{options.images_per_class}/seed{config.seed}/set.cset"
    poisoned = {name: run.folder / f"steps/attacks/{name}/seed{config.seed}/set.cset" for name in ATTACKS}
    seeds = network_seeds(config, config.seed)[:2]
    outcomes: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in ATTACKS}
    for network, arguments in config.transfer.items():
        sets = {name: read_own_set(config, path) for name, path in {"clean": clean, **poisoned}.items()}
        trained = {
            name: train_on(
                found, seeds=seeds, factory=factory_for(found, network, **arguments), device=config.trainer.device
            )
            for name, found in sets.items()
        }
        for name in ATTACKS:
            mark = sets[name].poisoned or {}
            trigger = read_trigger_description(mark["trigger"], sets[name].preprocessing.image_shape)
            outcomes[name][network] = measure_attack(
                trained[name],
                trained["clean"],
                data.test.images,
                data.test.labels,
                trigger,
                mark["target"],
                data.real.preprocessing,
                mark["mapping"],
            ).to_dict()
    return outcomes


# --- ablations ------------------------------------------------------------------------------------------------------

_ATTACKS_OF_AXIS = {
    "start": ("naive",),
    "trigger": ("naive",),
    "alpha": ("doorping",),
    "topk": ("doorping",),
    "ori": ("doorping",),
}


def ablations_of(config: Config) -> list[tuple[str, Any, str]]:
    """Axis, value and attack of every ablation of the run: one thing is varied, one seed."""
    return [
        (axis, value, attack)
        for axis, values in config.attack.ablations.items()
        for value in values or ABLATIONS[axis]
        for attack in _ATTACKS_OF_AXIS.get(axis, ("naive", "doorping"))
    ]


def ablate_one(
    config: Config, data: Data, factory: Factory, axis: str, value: Any, attack: str, folder: Path, run: Run, step: str
) -> dict[str, Any]:
    """The outcome of an attack with one thing varied, see `attack_set`."""
    changes = _changes(axis, value, data, config)
    return attack_set(config, data, factory, attack, config.seed, folder, run, step, **changes)


def _changes(axis: str, value: Any, data: Data, config: Config) -> dict[str, Any]:
    """What `attack_set` is called with for a value of an axis."""
    if axis == "images_per_class" or axis == "method":
        return {axis: value}
    if axis == "start":
        return {"settings": {"start": value}}
    if axis != "trigger":
        return {"arguments": {axis: value}}
    shape = data.real.preprocessing.image_shape
    if value == "white":
        return {}
    if value == "random":
        return {"arguments": {"trigger": random_patch(shape, config.attack.size, seed=config.seed)}}
    # Blended: an image of the target class, laid over the others.
    image = data.real.pixels[data.real.rows[config.attack.target][0]]
    return {"arguments": {"trigger": image_trigger(image, "blend", 0.3)}}
