"""Cross-modal detector: the experiment, read from top to bottom.

A world (or real frames), the image network's pre-task, the arms (masked-modal training and plain training), each
measured with all sensors and without some, comparison, delivery. Every function can be called on its own.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tenfold
from tenfold.cost import count_parameters
from tenfold.files import inside
from tenfold.models.folder import save_model
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.seeds import derived_seed
from tenfold.systems.cross_modal_detector.augmentation.balance import balanced_order
from tenfold.systems.cross_modal_detector.augmentation.images import ImageAugmentation
from tenfold.systems.cross_modal_detector.augmentation.masking import ModalMasking
from tenfold.systems.cross_modal_detector.augmentation.pasting import ObjectSampling, build_database, read_database
from tenfold.systems.cross_modal_detector.augmentation.pipeline import Pipeline, TrainingBatches
from tenfold.systems.cross_modal_detector.augmentation.scene import SceneAugmentation
from tenfold.systems.cross_modal_detector.delivery.models import (
    SYSTEM,
    ServedDetector,
    copy_weights,
    extra_of,
    load_detector,
)
from tenfold.systems.cross_modal_detector.experiment.comparison import (
    claims_of,
    plots_of,
    summarise,
    summary_of,
    tables_of,
)
from tenfold.systems.cross_modal_detector.experiment.pictures import pictures_of
from tenfold.systems.cross_modal_detector.experiment.settings import ARMS, PRESETS, Config, arms_of, start_of
from tenfold.systems.cross_modal_detector.matching.pretask import TokenLabeller, TokenObjective
from tenfold.systems.cross_modal_detector.method import DetectionLoss, DetectionObjective
from tenfold.systems.cross_modal_detector.networks.build import build_small
from tenfold.systems.cross_modal_detector.networks.detector import CrossModalDetector
from tenfold.systems.cross_modal_detector.networks.published import build_published
from tenfold.systems.cross_modal_detector.robustness.cases import (
    bootstrapped_ap,
    measure_case,
    numbers_of,
    precision_recall,
    sensor_cases,
)
from tenfold.systems.cross_modal_detector.scoring.results import truth_table
from tenfold.systems.cross_modal_detector.sets.load import DetectionSplits, LazySamples, load_frames
from tenfold.systems.cross_modal_detector.sets.world import WorldSettings, write_world
from tenfold.training import fit
from tenfold.training.parallel import rank
from tenfold.workers import Step, do_steps

__all__ = ["ARMS", "PRESETS", "Config", "deliver", "load_splits", "measure", "run", "train_arm"]

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"
"""A small detector that was trained on the world, plainly, by ``tenfold run`` with the settings its manifest holds."""
RESAMPLES = 200
_PRETASK, _ARM = 0, 1


def run(config: Config, run: Run) -> Results:
    """Train all arms over all seeds, measure them with and without sensors, compare, deliver the masked one.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    if start_of(config) not in ("scratch", "shipped"):
        load_detector(config.model.start)  # one that is missing or damaged is refused before anything is rendered
    if config.data.name == "world":
        run.step("world", partial(render, config))
    place = Place(config, run.folder)
    for note in place.splits.notes:
        run.say(note)
    arms = arms_of(config)
    seeds = range(config.seed, config.seed + config.seeds)
    pretask = [Step(f"pretask/seed{seed}", ("pretask", seed)) for seed in seeds] if place.has_pretask else []
    phases = [pretask, [Step(f"{arm}/seed{seed}", (arm, seed)) for seed in seeds for arm in arms]]
    alone = config.trainer.device.type != "cpu" or config.trainer.devices * config.trainer.num_nodes > 1
    opener = partial(Place, config, run.folder)
    found = do_steps(run, phases, opener, workers=1 if alone else config.workers, work=place)
    outcomes = {arm: [found[f"{arm}/seed{seed}"] for seed in seeds] for arm in arms}
    delivered = run.step("delivery", lambda _: deliver(config, place, run))
    return Results(
        system=SYSTEM,
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes),
        claims=claims_of(outcomes),
        metrics=summarise(outcomes),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["flops"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type,
            data=config.data.name,
            train_frames=len(place.splits.train),
            test_frames=len(place.splits.test),
        ),
        plots=plots_of(outcomes),
        tables=tables_of(outcomes),
        pictures=pictures_of(
            place.served(load_arm(config, place, run, "masked", config.seed)), place.splits, place.test
        ),
        notes=[*place.splits.notes, *notes_of(config)],
    )


def notes_of(config: Config) -> list[str]:
    """What a reader must know to judge the numbers."""
    start = {"scratch": "from scratch", "shipped": "from the detector that comes with the package, trained plainly"}
    return [
        f"All arms start {start.get(start_of(config), f'from {config.model.start}')}; the last epoch's weights are "
        "measured, nothing is chosen on test frames. FLOPs are multiply-adds of one frame.",
        "zero: a missing sensor's branch is fed with zeros, as in the paper; drop: its tokens are left out (not in the "
        "paper), which the arm masked has been shown in training as often as masking.drop says.",
        "AP is nuScenes' (matched by the distance of centres), its mean over the classes of the data.",
    ]


def render(config: Config, folder: Path) -> dict[str, Any]:
    """Write the world of the settings below a step's folder."""
    data = config.data
    settings = WorldSettings(
        {"train": data.train_scenes, "test": data.test_scenes},
        frames=data.frames,
        image_size=(data.image_size[0], data.image_size[1]),
        sweeps=data.sweeps,
        seed=derived_seed(config.seed) % 2**31 if start_of(config) == "scratch" else 2026,
    )
    write_world(folder, settings)
    return {"scenes": sum(settings.scenes.values())}


def load_splits(config: Config, folder: Path) -> DetectionSplits:
    """Frames of the settings' data; those of the world lie in the run's folder."""
    data = config.data
    return load_frames(
        data.name,
        folder / "steps" / "world" if data.name == "world" else data.root,
        version=data.version,
        train=data.train,
        test=data.test,
        sweeps=data.sweeps,
        classes=data.classes,
        farthest=data.farthest or (18.0 if data.name == "world" else None),
    )


class Place:
    """The samples that every step needs; calling it does a step.

    Args:
        config: the settings.
        folder: of the run.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.splits = load_splits(config, folder)
        data = config.data
        sensors = build(config, self.splits)
        options: dict[str, Any] = {
            "sweeps": data.sweeps,
            "missing": data.missing_files,
            "images": sensors.image is not None,
            "lidar": sensors.lidar is not None,
        }
        self.has_pretask = bool(config.optimizer.pretask_epochs) and start_of(config) == "scratch"
        train = LazySamples(self.splits.train, self.splits.classes, keep_empty=False, **options)
        test = LazySamples(self.splits.test, self.splits.classes, **options)
        self.train: Sequence = list(train) if data.in_memory else train
        self.test: Sequence = list(test) if data.in_memory else test
        self.paste = self._objects() if config.augmentation.paste else None

    def _objects(self) -> ObjectSampling:
        """What is pasted: of mmdet3d's file, or of the training frames."""
        name, classes = self.config.augmentation.objects, self.splits.classes
        if name is None:
            return ObjectSampling(build_database(self.train, len(classes)), classes)
        root = Path(self.config.data.root or ".")
        return ObjectSampling(read_database(inside(root, name), root, classes), classes)

    def __call__(self, step: Step, folder: Path, run: Run) -> dict[str, Any]:
        """Train the pre-task or an arm with a seed."""
        arm, seed = step.arguments
        if arm == "pretask":
            return train_pretask(self.config, self, seed, folder, run, step.name)
        return train_arm(arm_config(self.config, arm), self, arm, seed, folder, run, step.name)

    def served(self, detector: CrossModalDetector) -> ServedDetector:
        """A detector with the settings' way of preparing samples."""
        data = self.config.data
        size = (data.image_size[0], data.image_size[1])
        return ServedDetector(detector, self.splits.classes, size, data.sweeps)


def arm_config(config: Config, arm: str) -> Config:
    """The settings of an arm."""
    changed = copy.deepcopy(config)
    for part, values in ARMS.get(arm, {}).items():
        setattr(changed, part, replace(getattr(changed, part), **values))
    return changed


def build_arguments(config: Config, splits: DetectionSplits) -> tuple[str, dict[str, Any]]:
    """Builder and arguments of the settings' detector on these data."""
    model = asdict(config.model)
    shared = {name: model[name] for name in ("frequencies", "normalize_codes", "box_code")}
    shared["start"] = model["attention_start"]
    if config.model.network != "small":
        return "published", shared | {"configuration": config.model.network, "classes": len(splits.classes)}
    own = ("dim", "queries", "layers", "heads", "hidden", "depths", "image_width", "pillar_grid", "pillar_width")
    arguments = {name: model[name] for name in own}
    return "small", shared | arguments | {"area": list(config.data.area), "classes": len(splits.classes)}


def build(config: Config, splits: DetectionSplits) -> CrossModalDetector:
    """The settings' detector, its weights as they start.

    Raises:
        UserError: the weights to start from are of another network.
    """
    kind, arguments = build_arguments(config, splits)
    detector = build_published(**arguments) if kind == "published" else build_small(**arguments)
    start = start_of(config)
    if start != "scratch":
        source = str(SHIPPED) if start == "shipped" else start
        copy_weights(detector, load_detector(source)[0], source)
    return detector


def pipeline_of(config: Config, place: Place) -> Pipeline:
    """The changes of training."""
    options, masking, data = config.augmentation, config.masking, config.data
    size = (data.image_size[0], data.image_size[1])
    factors = None if options.image_factors is None else (options.image_factors[0], options.image_factors[1])
    scene = SceneAugmentation(
        options.rotation, (options.scale[0], options.scale[1]), options.translation, options.flip, options.flip
    )
    return Pipeline(
        tuple(data.area),
        ImageAugmentation(size, factors, options.image_flip),
        paste=place.paste,
        masking=ModalMasking(masking.images, masking.points, masking.camera, masking.drop),
        scene=scene,
        grid_mask=options.grid_mask,
    )


def one_cycle(total: int, peak: float, rise: float) -> Callable[[int], float]:
    """Factor of the learning rate: by cosines from 1 to ``peak``, then to 1/10000 (the official cyclic policy)."""
    top = max(1, round(rise * total))

    def at(step: int) -> float:
        if step < top:
            return 1 + (peak - 1) * (1 - math.cos(math.pi * step / top)) / 2
        done = (step - top) / max(total - top, 1)
        return 1e-4 + (peak - 1e-4) * (1 + math.cos(math.pi * done)) / 2

    return at


def optimizer_of(config: Config, detector: nn.Module) -> torch.optim.Optimizer:
    """AdamW; the image network's backbone (all of a small one) has a learning rate and weight decay of its own."""
    options = config.optimizer
    image: list[nn.Parameter] = []
    neck: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in detector.named_parameters():
        own = image if name.startswith("image.") else rest
        (neck if name.startswith("image.neck.") else own).append(parameter)
    decay = options.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {
            "params": image,
            "lr": options.learning_rate * options.image_factor,
            "weight_decay": decay * options.image_decay_factor,
        },
        {"params": neck, "lr": options.learning_rate * max(options.image_factor, 0.1)},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], options.learning_rate, betas=(0.9, 0.999), weight_decay=decay
    )


def train_pretask(config: Config, place: Place, seed: int, folder: Path, run: Run, step: str) -> dict[str, Any]:
    """Train the branches on what covers each token and where it lies; they start all arms of the seed."""
    torch.manual_seed(derived_seed(seed, _PRETASK))
    detector = build(config, place.splits)
    model = TokenLabeller(detector, len(place.splits.classes))
    options = config.optimizer
    batches = TrainingBatches(
        place.train,
        replace(pipeline_of(config, place), masking=None, paste=None, grid_mask=0.0),
        options.batch_size,
        seed=derived_seed(seed, _PRETASK),
    )
    rate = options.learning_rate * options.peak * 2
    fitted = fit(
        model,
        TokenObjective(len(place.splits.classes), detector.area.tolist(), detector.pad),
        batches,
        epochs=options.pretask_epochs,
        optimizer=torch.optim.AdamW(model.parameters(), rate, weight_decay=options.weight_decay),
        schedule=lambda at: 1 - at / (options.pretask_epochs * len(batches)),
        folder=folder,
        options=config.trainer,
        on_epoch=lambda epoch, row: run.progress(step, epoch, options.pretask_epochs, f"loss {row['train/loss']:.3f}"),
    )
    if rank() == 0:
        save_file(
            {name: value.contiguous() for name, value in model.branches().items()}, folder / "branches.safetensors"
        )
    return {"history": fitted.history, "train_seconds": fitted.seconds}


def train_arm(config: Config, place: Place, arm: str, seed: int, folder: Path, run: Run, step: str) -> dict[str, Any]:
    """Train one arm with one seed and measure it with and without sensors.

    The initial weights, the order of the frames and their changes depend on the seed only, so that arms are paired.

    Returns:
        ``cases``, by name the numbers of each; ``bootstrap``; ``distances``; ``curves``; ``params``; ``history``;
        ``train_seconds``.
    """
    torch.manual_seed(derived_seed(seed, _ARM))
    detector = build(config, place.splits)
    if place.has_pretask and start_of(config) == "scratch":
        state = load_file(run.folder / f"steps/pretask/seed{seed}/branches.safetensors")
        detector.load_state_dict(detector.state_dict() | state)
    options = config.optimizer
    order = None
    if config.augmentation.balance:
        order = balanced_order(place.splits.train, place.splits.classes, np.random.default_rng(derived_seed(seed, 2)))
    batches = TrainingBatches(
        place.train,
        pipeline_of(config, place),
        options.batch_size,
        seed=derived_seed(seed, _ARM),
        order=order,
        fading=config.augmentation.fading,
        epochs=options.epochs,
    )
    fitted = fit(
        detector,
        DetectionObjective(DetectionLoss(detector.tasks), groups=options.denoising_groups),
        batches,
        epochs=options.epochs,
        optimizer=optimizer_of(config, detector),
        schedule=one_cycle(options.epochs * len(batches), options.peak, options.rise),
        folder=folder,
        options=config.trainer,
        on_epoch=lambda epoch, row: run.progress(step, epoch, options.epochs, f"loss {row['train/loss']:.2f}"),
    )
    if rank() == 0:
        state = {name: value.contiguous() for name, value in detector.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
    return measure(place, detector, seed) | {
        "params": count_parameters(detector),
        "history": fitted.history,
        "train_seconds": fitted.seconds,
    }


def measure(place: Place, detector: CrossModalDetector, seed: int) -> dict[str, Any]:
    """Numbers of a trained detector on the test frames, with all sensors and without some."""
    served, splits = place.served(detector.eval()), place.splits
    names = [view.name for view in splits.test[0].cameras]
    cases = sensor_cases(names, image=detector.image is not None, lidar=detector.lidar is not None)
    truth = truth_table(splits.test, splits.protocol)
    farthest = max(splits.protocol.ranges.values())
    edges = tuple(farthest * share for share in (0, 1 / 3, 2 / 3, 1))
    found: dict[str, Any] = {"cases": {}, "bootstrap": {}}
    for case in cases:
        scores, _, table = measure_case(served, splits.test, place.test, case, splits.protocol, edges=edges)
        found["cases"][case.name] = numbers_of(scores)
        found["bootstrap"][case.name] = bootstrapped_ap(
            truth, table, splits.protocol, len(splits.test), RESAMPLES, seed=0
        ).tolist()
        if case is cases[0]:
            found["distances"] = scores.distances
            found["curves"] = {
                name: row.tolist() for name, row in precision_recall(truth, table, splits.protocol).items()
            }
    return found


def load_arm(config: Config, place: Place, run: Run, arm: str, seed: int) -> CrossModalDetector:
    """A trained arm's detector, in eval mode."""
    own = arm_config(config, arm)
    own.model.start = "scratch"
    detector = build(own, place.splits)
    detector.load_state_dict(load_file(run.folder / f"steps/{arm}/seed{seed}/weights.safetensors"))
    return detector.eval()


def deliver(config: Config, place: Place, run: Run) -> dict[str, Any]:
    """Write the masked detector of the first seed as the run's model, with how its samples are prepared."""
    detector = load_arm(config, place, run, "masked", config.seed)
    kind, arguments = build_arguments(arm_config(config, "masked"), place.splits)
    if rank() == 0:
        save_model(
            run.folder,
            detector,
            system=SYSTEM,
            builder=kind,
            arguments=arguments,
            extra=extra_of(
                place.splits.classes,
                config.data.image_size,
                config.data.sweeps,
                "drop" if config.masking.drop else "zero",
                data=config.data.name,
            ),
        )
    return {"params": count_parameters(detector), "flops": operations_of(place, detector)}


def operations_of(place: Place, detector: CrossModalDetector) -> float:
    """Multiply-adds of one frame."""
    from torch.utils.flop_counter import FlopCounterMode

    served = place.served(detector)
    with FlopCounterMode(display=False) as counter:
        served([place.test[0]])
    return counter.get_total_flops() / 2
