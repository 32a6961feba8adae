"""Condensation and its audit: the experiment, read from top to bottom.

Data; every method at every size against random and herding, under one training recipe (``set_arms``); both published
attacks, in the published and in the physically valid form, with their clean controls; every defence on clean and
poisoned sets; ablations (``attack_arms``); delivery of a clean condensed set and of a network trained on it. Every
function can be called on its own.
"""

from functools import partial
from typing import Any

import torch

import tenfold
from tenfold.cost import count_flops, count_parameters
from tenfold.models.folder import save_model
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.condensation_audit.condensers.condense import settings_of_method
from tenfold.systems.condensation_audit.data.load import Data, load_data
from tenfold.systems.condensation_audit.experiment.attack_arms import (
    ATTACKS,
    ablations_of,
    attack_transfer,
    check_attacks,
)
from tenfold.systems.condensation_audit.experiment.claims import claims_of, summary_of
from tenfold.systems.condensation_audit.experiment.comparison import metrics_of, plots_of, tables_of
from tenfold.systems.condensation_audit.experiment.outcomes import Outcomes
from tenfold.systems.condensation_audit.experiment.pictures import pictures_of
from tenfold.systems.condensation_audit.experiment.set_arms import (
    make_set,
    measure_set,
    network_of,
    network_seeds,
    read_own_set,
)
from tenfold.systems.condensation_audit.experiment.settings import PRESETS, Config, settings_of
from tenfold.systems.condensation_audit.experiment.steps import (
    ablation_step,
    attack_step,
    defence_step,
    full_step,
    open_place,
    phases_of,
    set_step,
)
from tenfold.systems.condensation_audit.networks.factories import Factory
from tenfold.systems.condensation_audit.sets.files import save_set
from tenfold.systems.condensation_audit.training.ensembles import load_ensemble
from tenfold.systems.condensation_audit.training.quality import evaluate_set
from tenfold.systems.condensation_audit.training.siamese_augmentation import operations_of
from tenfold.workers import do_steps

__all__ = ["PRESETS", "Config", "deliver", "make_set", "measure_set", "run", "transfer"]


def run(config: Config, run: Run) -> Results:
    """Condense with every method, attack, defend, compare, deliver.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    data = load_data(config.images, zca_eps=config.zca_eps, held_out=config.held_out)
    factory = network_of(config, data)
    check_attacks(config, data)
    methods = list(dict.fromkeys(["random", *config.methods]))
    operations_of(config.training.augmentation)
    for method in (*methods, config.attack.method):
        for size in (*config.images_per_class, config.attack.images_per_class):
            settings_of_method(method, settings_of(config, method, size))
    phases = phases_of(config, methods)
    run.say(
        f"{sum(map(len, phases))} steps on {len(data.real):,} images of {data.name}: {len(phases[0])} condense or "
        f"select and train {config.training.networks} networks on each set, {len(phases[1])} do so under attack, "
        f"{len(phases[2])} run the defences; fewer with --seeds, --methods, --attack.ablations, --attack.defences"
    )
    for note in data.notes:
        run.say(note)
    on_cpu = config.trainer.device.type == "cpu"
    found = do_steps(
        run,
        phases,
        partial(open_place, config),
        workers=config.workers if on_cpu else 1,
        threads=config.trainer.threads or 1,
    )
    seeds = range(config.seed, config.seed + config.seeds)
    outcomes = Outcomes(
        methods={
            (method, size): [found[set_step(method, size, seed).name] for seed in seeds]
            for size in config.images_per_class
            for method in methods
        },
        attacks={attack: [found[attack_step(attack, seed).name] for seed in seeds] for attack in ATTACKS},
        detections={
            arm: [found[defence_step(arm, seed).name] for seed in seeds]
            for arm in (("clean", *ATTACKS) if config.attack.defences else ())
        },
        full=[found[full_step(seed).name] for seed in seeds] if config.training.full_epochs else [],
        ablations={},
        transfer={},
        attack_transfer={},
    )
    for axis, value, attack in ablations_of(config):
        outcome = found[ablation_step(axis, value, attack, config.seed).name]
        outcomes.ablations.setdefault(axis, {}).setdefault(str(value), {})[attack] = outcome
    if config.transfer:
        outcomes.transfer = run.step("transfer", lambda _: transfer(config, data, run))
        outcomes.attack_transfer = run.step("attack-transfer", lambda _: attack_transfer(config, data, run))
    delivered = run.step("delivery", lambda _: deliver(config, data, factory, run))
    return Results(
        system="condensation-audit",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes, config.attack, len(data.real)),
        claims=claims_of(outcomes, config.attack),
        metrics=metrics_of(outcomes),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["flops"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(config.trainer.device.type, data=data.name, train_images=len(data.real)),
        plots=plots_of(outcomes),
        tables=tables_of(outcomes),
        pictures=pictures_of(run.folder, config, methods),
        notes=[
            *data.notes,
            f"Every set is judged by {config.training.networks} networks per seed, trained from scratch under one "
            "recipe; the settings of the condensers are not tuned on the test split, which is only measured.",
            "The success of an attack is counted over test images of other classes than the target (the published "
            "code counts all), beside the same trigger on networks of the clean set (control), and with the trigger "
            "as an 8-bit image can hold it (valid).",
            "Not tested by the audit: triggers that are no local patch (blended, warped), clean-label poison, and "
            "triggers for some source classes only.",
            "The cost is in multiply-adds of one image.",
        ],
    )


# --- transfer and delivery ------------------------------------------------------------------------------------------


def transfer(config: Config, data: Data, run: Run) -> dict[str, dict[str, list[float]]]:
    """Accuracy of other networks trained on the first seed's sets of the attacked method's size.

    Returns:
        For each method, and each network of ``config.transfer``, its accuracies.
    """
    size = config.attack.images_per_class
    images, labels = data.test_images()
    seeds = network_seeds(config, config.seed)[:2]
    found: dict[str, dict[str, list[float]]] = {}
    for method in dict.fromkeys(["random", *config.methods]):
        path = run.folder / f"steps/sets/{method}-{size}/seed{config.seed}/set.cset"
        if path.exists():
            found[method] = evaluate_set(
                read_own_set(config, path),
                images,
                labels,
                networks=config.transfer,
                seeds=seeds,
                device=config.trainer.device,
            )
    return found


def deliver(config: Config, data: Data, factory: Factory, run: Run) -> dict[str, Any]:
    """Write the clean set of the attacked method as ``set.cset``, and a network trained on it as the run's model."""
    options = config.attack
    step = run.folder / f"steps/sets/{options.method}-{options.images_per_class}/seed{config.seed}"
    found = read_own_set(config, step / "set.cset")
    save_set(run.folder / "set.cset", found, overwrite=True)
    network = load_ensemble(factory, step / "networks.safetensors").networks[0]
    preprocessing = found.preprocessing
    save_model(
        run.folder,
        network,
        system="condensation-audit",
        builder=config.network.name,
        arguments={
            "image_shape": list(preprocessing.image_shape),
            "num_classes": len(found.classes),
            **config.network.arguments,
        },
        extra={
            "classes": list(found.classes),
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "set": "set.cset",
            "zca": preprocessing.zca is not None,
            "preprocessing": data.reading.to_dict(),
        },
    )
    image = torch.zeros(1, *preprocessing.image_shape)
    return {"params": count_parameters(network), "flops": count_flops(network, image, convention="multiply-adds")}
