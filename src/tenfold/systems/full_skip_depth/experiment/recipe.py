"""Full-skip depth: the experiment, read from top to bottom.

Data, networks, the arms (FSCN, the same encoder with other wirings, other decoders), measurement on the test frames,
comparison over seeds, delivery of FSCN. Every function can be called on its own.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tenfold
from tenfold.cost import count_flops, count_parameters
from tenfold.errors import UserError
from tenfold.models.folder import save_model
from tenfold.results import Cost, Picture, Plot, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.full_skip_depth.delivery.models import BUILDER, SYSTEM, load_network
from tenfold.systems.full_skip_depth.experiment.comparison import (
    claims_of,
    cpu_minutes,
    plots_of,
    summarise,
    summary_of,
    tables_of,
)
from tenfold.systems.full_skip_depth.experiment.measuring import (
    constant_error,
    images_per_second,
    measure,
    protocol_of,
    score_network,
)
from tenfold.systems.full_skip_depth.experiment.pictures import cloud_plot, compare_pictures, weights_picture
from tenfold.systems.full_skip_depth.experiment.settings import (
    ARMS,
    PRESETS,
    USUAL_MAX_DEPTH,
    Config,
    arms_of,
)
from tenfold.systems.full_skip_depth.method import DepthObjective, SiLogLoss
from tenfold.systems.full_skip_depth.networks.depth_network import FullSkipDepth, build_network
from tenfold.systems.full_skip_depth.sets.frames import FrameBatches, Frames
from tenfold.systems.full_skip_depth.sets.splits import DepthSplits, load_splits
from tenfold.systems.full_skip_depth.training.augmentation import Augmentation
from tenfold.systems.full_skip_depth.training.recipes import Recipe
from tenfold.training import fit
from tenfold.training.parallel import rank
from tenfold.workers import Step, do_steps

__all__ = ["ARMS", "PRESETS", "Config", "deliver", "network_arguments", "run", "train_arm"]


def run(config: Config, run: Run) -> Results:
    """Train all arms over all seeds on all data, compare them, deliver FSCN.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms = arms_of(config)
    place = Place(config)
    for name, splits in place.sets.items():
        for note in splits.notes:
            run.say(f"{name}: {note}")
    given = config.model.pretrained or config.model.encoder_weights is not None
    if given and config.optimizer.batch_size < 4 and not config.model.frozen_batch_norm:
        run.say(
            f"batches of {config.optimizer.batch_size} give the encoder's batch normalizations poor statistics; keep "
            "those that it was trained with by --model.frozen_batch_norm true"
        )
    seeds = range(config.seed, config.seed + config.seeds)
    steps = [
        Step(f"{name}/{arm}/seed{seed}", (name, arm, seed)) for name in place.sets for seed in seeds for arm in arms
    ]
    alone = config.trainer.device.type != "cpu" or config.trainer.devices * config.trainer.num_nodes > 1
    found = do_steps(
        run, [steps], partial(Place, config, look=False), workers=1 if alone else config.workers, work=place
    )
    outcomes = {
        name: {arm: [found[f"{name}/{arm}/seed{seed}"] for seed in seeds] for arm in arms} for name in place.sets
    }
    main = config.data.name
    first = place.sets[main]
    beside = run.step("beside", lambda _: measure_beside(config, place))
    delivered = run.step("delivery", lambda _: deliver(config, first, place.arguments[main]["fscn"], run))
    return Results(
        system=SYSTEM,
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes, beside),
        claims=claims_of(outcomes, {name: splits.dense for name, splits in place.sets.items()}),
        metrics=summarise(outcomes, beside),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["flops"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(config.trainer.device.type, data=", ".join(place.sets), train_images=len(first.train)),
        plots=plots_of(outcomes) + clouds_of(config, place, run),
        tables=tables_of(outcomes, beside),
        pictures=pictures_of(config, place, arms, run),
        notes=[
            *(f"{name}: {note}" for name, splits in place.sets.items() for note in splits.notes),
            f"Protocol: {delivered['protocol']}; {'with' if config.flip_test else 'without'} flip test; loss: SiLog "
            f"with lambda {config.optimizer.variance_focus:g}. Epochs are chosen by abs rel on validation frames, in "
            "every arm alike; test frames are only measured.",
            f"Training and measuring all arms took {cpu_minutes(outcomes):.1f} minutes of CPU time.",
            "The inside of the fusion and the set of sources are reconstructed: the paper could be read no further "
            "than its abstract, so none of its numbers stand here.",
        ],
    )


class Place:
    """The frames and networks that every step needs; calling it does a step.

    Args:
        config: the settings.
        look: see ``load_splits``; once is enough for all processes.
    """

    def __init__(self, config: Config, look: bool = True) -> None:
        self.config = config
        self.sets = {name: load_data(config, name, look) for name in (config.data.name, *config.data.also)}
        self.arguments = {name: arm_arguments(config, splits, arms_of(config)) for name, splits in self.sets.items()}

    def __call__(self, step: Step, folder: Path, run: Run) -> dict[str, Any]:
        """Train an arm on a data set with a seed, see ``train_arm``."""
        name, arm, seed = step.arguments
        epochs = epochs_on(self.config, self.sets, name)
        return train_arm(self.config, self.sets[name], self.arguments[name][arm], seed, epochs, folder, run, step.name)


def measure_beside(config: Config, place: Place) -> dict[str, Any]:
    """What stands beside the arms' errors, by data set: the constant depth's abs rel, images a second of each arm."""
    found = {}
    for name, splits in place.sets.items():
        arguments = place.arguments[name]
        networks = {
            arm: build_network(**given | {"pretrained": False}).to(config.trainer.device).eval()
            for arm, given in arguments.items()
        }
        found[name] = {
            "constant": constant_error(splits, arguments["fscn"]["max_depth"]),
            "images_per_second": images_per_second(networks, splits.test[0][0][None].float() / 255),
        }
    return found


def pictures_of(config: Config, place: Place, arms: Sequence[str], run: Run) -> list[Picture]:
    """Predictions and errors side by side, and what every level takes from where, of the first seed's networks."""
    pictures = []
    for name, splits in place.sets.items():
        shown = [arm for arm in ("unet", "fscn") if arm in arms]
        networks = {arm: load_trained(run, name, arm, config.seed, place.arguments[name][arm]) for arm in shown}
        pictures.append(compare_pictures(name, splits, networks, float(place.arguments[name]["fscn"]["max_depth"])))
        if config.model.decoder in ("full-skip", "unet3plus"):
            pictures.append(weights_picture(name, networks["fscn"], splits))
    return pictures


def clouds_of(config: Config, place: Place, run: Run) -> list[Plot]:
    """FSCN's prediction of a test image as points in space, where the camera is known."""
    clouds = []
    for name, splits in place.sets.items():
        arguments = place.arguments[name]["fscn"]
        network = load_trained(run, name, "fscn", config.seed, arguments)
        clouds.append(cloud_plot(name, splits, network, float(arguments["max_depth"])))
    return [cloud for cloud in clouds if cloud is not None]


def load_data(config: Config, name: str, look: bool = True) -> DepthSplits:
    """The frames of one of the run's data sets."""
    options = config.data
    own = name == options.name
    if not own and name not in ("rooms", "rooms-easy", "drive"):
        raise UserError(f"data.also takes rooms, rooms-easy and drive; got {name!r}")
    rendered = name in ("rooms", "rooms-easy")
    return load_splits(
        name,  # type: ignore[arg-type]
        None if rendered and not own else options.root,
        images=options.images,
        image_size=options.image_size if own else None,
        depth_scale=options.depth_scale,
        focal=options.focal,
        border=options.border,
        train_list=options.train_list,
        test_list=options.test_list,
        use_right=options.use_right,
        validation=options.validation,
        test=options.test,
        order=options.order,
        skip_unpaired=options.skip_unpaired,
        max_depth=config.model.max_depth or USUAL_MAX_DEPTH.get(name, math.inf),
        seed=config.seed,
        look=look,
        one_size=options.crop is None and config.optimizer.batch_size > 1,
    )


def network_arguments(config: Config, splits: DepthSplits) -> dict[str, Any]:
    """Arguments of ``build_network`` for the settings' own network on these data."""
    model = asdict(config.model)
    del model["encoder_weights"]
    if model["max_depth"] is None:
        model["max_depth"] = USUAL_MAX_DEPTH.get(splits.name) or _largest_depth(splits.train)
    return model | {"auxiliary": len(config.optimizer.auxiliary)}


def arm_arguments(config: Config, splits: DepthSplits, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arguments of ``build_network`` for every arm; what cannot be built fails here, not after hours."""
    own = network_arguments(config, splits)
    found = {}
    for arm in arms:
        arguments = own | ARMS.get(arm, {})
        if arguments["decoder"] != "full-skip":
            arguments["auxiliary"] = 0
        if arguments["decoder"] == "dpt":
            arguments["width"] = max(16, own["width"] // 2)
        found[arm] = arguments
    if "fscn-equal" in found:
        limit = count_parameters(build_network(**own | ARMS["unet"] | {"pretrained": False}))
        found["fscn-equal"] = _narrowed(found["fscn-equal"], limit)
    images = splits.train[0][0][None].float() / 255
    for arguments in found.values():
        network = build_network(**arguments | {"pretrained": False}).eval()
        with torch.no_grad():
            network(images, torch.tensor([500.0]))
    height, width = config.data.crop or images.shape[-2:]
    with torch.no_grad():
        deepest = network.encoder(torch.zeros(1, 3, height, width))[-1].shape[-2:]
    if config.optimizer.batch_size * deepest.numel() == 1 and not config.model.frozen_batch_norm:
        raise UserError(
            f"optimizer.batch_size 1 of {height} x {width} pixels leaves one value per channel at the deepest level, "
            "which batch normalization cannot train on: take more or larger ones, or --model.frozen_batch_norm true"
        )
    if config.model.encoder_weights is not None:
        wanted = {name: value.shape for name, value in network.encoder.state_dict().items()}
        given = load_network(config.model.encoder_weights)[0].encoder.state_dict()
        if wanted != {name: value.shape for name, value in given.items()}:
            raise UserError(f"model.encoder_weights: {config.model.encoder_weights} holds another encoder")
    return found


def epochs_on(config: Config, sets: dict[str, DepthSplits], name: str) -> int:
    """Epochs on one of the data sets: as many steps as on the first, or the share of them that is set."""
    per_epoch = {key: max(1, len(splits.train) // config.optimizer.batch_size) for key, splits in sets.items()}
    share = 1.0 if name == config.data.name else config.data.also_steps
    return max(1, round(share * config.optimizer.epochs * per_epoch[config.data.name] / per_epoch[name]))


def train_arm(
    config: Config,
    splits: DepthSplits,
    arguments: dict[str, Any],
    seed: int,
    epochs: int,
    folder: Path,
    run: Run,
    step: str,
) -> dict[str, Any]:
    """Train one network with one seed and measure it on the test frames.

    The encoder's initial weights and the order of the frames depend on the seed only, so that arms are paired.

    Returns:
        ``metrics``, ``rows`` (per image), ``distances``, ``params``, ``history``, ``best_epoch``, ``train_seconds``,
        ``cpu_seconds`` (of this process, since the last start: others on the machine lengthen it little).
    """
    started = time.process_time()
    torch.manual_seed(seed)
    # Convolutions of few channels take a sixth less time so on a CPU, and tensor cores want it, too.
    network = build_network(**arguments).to(memory_format=torch.channels_last)
    if config.model.encoder_weights is not None:
        network.encoder.load_state_dict(load_network(config.model.encoder_weights)[0].encoder.state_dict())
    options, data = config.optimizer, config.data
    batches = FrameBatches(
        splits.train,
        options.batch_size,
        seed=seed,
        augmentation=Augmentation(
            data.degrees,
            tuple(data.crop) if data.crop else None,  # type: ignore[arg-type]
            data.flip,
            data.colour,
            data.brightness,
        ),
        workers=data.workers,
    )
    recipe = Recipe(options.recipe, options.learning_rate, options.weight_decay, options.encoder_factor)
    loss = SiLogLoss(options.variance_focus, minimum=options.least_depth, maximum=arguments["max_depth"])
    protocol = protocol_of(splits, arguments["max_depth"])

    def validate(model: nn.Module) -> dict[str, float]:
        score = score_network(model, splits.validation, protocol)  # every rank alike: there are few frames
        return {"abs_rel": score.metrics["abs_rel"], "closeness": -score.metrics["abs_rel"]}

    fitted = fit(
        network,
        DepthObjective(loss, auxiliary=tuple(options.auxiliary), bins=options.bins),
        batches,
        epochs=epochs,
        optimizer=recipe.optimizer(network, fused=config.trainer.precision != "16-mixed"),
        schedule=recipe.schedule(epochs * len(batches)),
        folder=folder,
        options=config.trainer,
        validate=validate,
        select="closeness",
        on_epoch=lambda epoch, row: run.progress(
            step, epoch, epochs, f"loss {row['train/loss']:.3f}, abs rel {row['validation/abs_rel']:.3f}"
        ),
    )
    outcome = measure(network, splits, arguments["max_depth"], flip=config.flip_test)
    if rank() == 0:
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
    return outcome | {
        "params": count_parameters(network),
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "train_seconds": fitted.seconds,
        "cpu_seconds": time.process_time() - started,
    }


def load_trained(run: Run, name: str, arm: str, seed: int, arguments: dict[str, Any]) -> FullSkipDepth:
    """A trained arm's network, in eval mode."""
    network = build_network(**arguments | {"pretrained": False})
    network.load_state_dict(load_file(run.folder / f"steps/{name}/{arm}/seed{seed}/weights.safetensors"))
    return network.eval()


def deliver(config: Config, splits: DepthSplits, arguments: dict[str, Any], run: Run) -> dict[str, Any]:
    """Write FSCN of the first seed as the run's model, with what serving needs to know."""
    network = load_trained(run, config.data.name, "fscn", config.seed, arguments)
    image, _, focal = splits.test[0]
    height, width = image.shape[1:]
    with torch.no_grad():
        operations = count_flops(network, image[None].float() / 255, torch.tensor([500.0]), convention="multiply-adds")
    if rank() == 0:
        save_model(
            run.folder,
            network,
            system=SYSTEM,
            builder=BUILDER,
            arguments={name: value for name, value in arguments.items() if name != "pretrained"},
            extra={
                "data": splits.name,
                "image_size": [height, width],
                "focal": None if math.isnan(focal) else focal,
                "max_depth": arguments["max_depth"],
                "calibration": None,
            },
        )
    return {
        "params": count_parameters(network),
        "flops": operations,
        "image_size": [height, width],
        "protocol": protocol_of(splits, arguments["max_depth"]).text,
    }


def _narrowed(arguments: dict[str, Any], limit: int) -> dict[str, Any]:
    """The widest network of these arguments with no more than ``limit`` parameters."""
    for width in range(arguments["width"], 0, -1):
        narrower = arguments | {"width": width}
        if count_parameters(build_network(**narrower | {"pretrained": False})) <= limit:
            return narrower
    raise UserError(f"no width of FSCN has at most {limit:,} parameters: leave out the arm fscn-equal")


def _largest_depth(frames: Frames) -> float:
    largest = max(float(frames[n][1].max()) for n in range(len(frames)))
    if largest <= 0:
        raise UserError("no training frame has a valid pixel; look at the pairs with tenfold full-skip-depth doctor")
    return math.ceil(largest * 1.05 * 10) / 10
