"""Condensed sets, triggers, networks and expert buffers in the files of the published programs.

Most of them are pickles. Only tensors and plain values are taken out of them; a file that names anything else is
refused before it could build it, and nothing is ever executed.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import read_torch_file
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.zca import ZCA
from tenfold.systems.condensation_audit.official.conventions import Origin, find_origin, network_name
from tenfold.systems.condensation_audit.official.layouts import (
    NUMPY_NUMBERS,
    distilled_steps,
    experiment_of,
    kip_arrays,
    labels_beside,
    read_arrays,
)
from tenfold.systems.condensation_audit.official.weights import initial_weights, read_trigger
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe

Program = Literal["dc", "baadd", "dd", "mtt", "kip", "dd-ranking"]

# res_DM_CIFAR10_ConvNet_10ipc.pt; vis_DC_CIFAR10_ConvNet_10ipc_exp0_iter1000.pth
_NAME = re.compile(r"(?:res|vis)_(?P<method>[^_]+)_(?P<data>[^_]+)_(?P<model>[^_]+)_(?P<ipc>\d+)ipc")
_ATTACK = re.compile(
    r"_(?P<attack>poisoned|doorping|invisible)_portion_(?P<portion>[\d.]+)_size_(?P<size>\d+)_ori_(?P<ori>[\d.]+)"
)


def read_official(
    path: str | Path,
    *,
    program: Program | None = None,
    data: str | None = None,
    experiment: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | int | None = None,
    zca: ZCA | Literal["none"] | None = None,
    soft_labels: bool = False,
    initial: str | Path | None = None,
    network: str | None = None,
) -> CondensedSet:
    """A condensed set from a file of a published program.

    Args:
        path: ``res_*.pt`` (DC, DSA, DM, baadd), ``vis_*.pth`` (baadd), ``results.pth`` (DD), ``images_*.pt`` with
            ``labels_*.pt`` beside it (MTT), ``.npz`` (KIP), or the folder of ``images.pt`` (DD-Ranking).
        program: which of them wrote it; found by name and content where ``None``. ``res_*.pt`` of baadd looks like
            one of DC, but its networks are others.
        data: name of the data set; from the file's name where ``None``.
        experiment: which of the file's experiments, from the end where negative; the last where ``None``.
        mean: per channel, of pixels in [0, 1], instead of the program's own for the data set.
        std: per channel, likewise.
        classes: names or number of the classes, of a data set that is not known.
        zca: the whitening of MTT's images, or ``"none"`` where they were made without; the files do not tell.
        soft_labels: keep KIP's labels as they are; the largest of each otherwise.
        initial: for DD, the file of the weights that the set was made for.
        network: our name of the network that is trained on the set; the program's where ``None``.

    Raises:
        UserError: the file is damaged, holds other objects or is in no known format; or its normalization, classes
            or whitening are not known: the message says what to pass.
    """
    path = Path(path)
    program, path, content = _identify(path, program)
    named = _NAME.search(path.name)
    data = data or (named["data"] if named else None)
    method = named["method"] if named else ""
    model = named["model"] if named else "ConvNet"
    results: dict[str, float] = {}
    rates, steps = None, None
    if program == "kip":
        images, labels = kip_arrays(path, content, soft_labels)
    elif program == "dd":
        images, labels, rates, steps = distilled_steps(path, content)
    elif program in ("mtt", "dd-ranking"):
        images, (labels, rates) = content, labels_beside(path)
    elif isinstance(content, Tensor):  # ordered by class, without labels
        images, labels = content, None
    else:
        images, labels, results = experiment_of(path, content, experiment, model)
    whitening = _whitening_of(path, program, zca)
    origin = find_origin(program, data, mean=mean, std=std, classes=classes, whitened=_is_whitened(path, whitening))
    images, shape = _checked_images(path, images, origin)
    preprocessing = Preprocessing(origin.mean, origin.std, shape, whitening)
    if images.dtype == torch.uint8:
        images = preprocessing.normalize(images)
    recipe = _recipe(program, method, network or network_name(program, model), origin.data)
    try:
        return CondensedSet(
            images=images.float().contiguous(),
            labels=_checked_labels(path, labels, len(images), origin, as_they_are=program == "kip"),
            classes=origin.classes,
            preprocessing=preprocessing,
            recipe=recipe,
            method="imported",
            settings={
                "program": program,
                "published_method": method or program,
                "file": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            },
            source={"name": origin.data} if origin.data else {},
            results=results,
            learning_rates=rates,
            steps=steps,
            initial=None if initial is None else initial_weights(initial, recipe, shape, len(origin.classes)),
            poisoned=_poisoned_mark(path, preprocessing),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _identify(path: Path, program: Program | None) -> tuple[Program, Path, Any]:
    """Which program wrote it, the file itself where a folder was named, and what it holds."""
    if program is not None and program not in get_args(Program):
        raise UserError(f"there is no program {program!r}; there are: {', '.join(get_args(Program))}")
    if path.is_dir():
        inside = {"results.pth": "dd", "images.pt": "dd-ranking", "images_best.pt": "mtt"}
        found = next((name for name in inside if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"the folder {path} holds none of {', '.join(inside)}; name the file itself")
        path, program = path / found, program or inside[found]  # type: ignore[assignment]
    if path.suffix == ".npz" or program == "kip":
        return "kip", path, read_arrays(path)
    if path.name.endswith("_trigger.pth") or path.name == "trigger.pth":
        raise UserError(f"{path} is a trigger, not a set: name the file of the images beside it")
    content = read_torch_file(path, allow=NUMPY_NUMBERS)
    looks: Program | None = None
    if isinstance(content, dict) and "data" in content:
        looks = "dc"
    elif isinstance(content, list) and content and isinstance(content[0], tuple | list) and len(content[0]) == 3:
        looks = "dd"
    elif isinstance(content, Tensor) and content.ndim == 4:
        looks = "mtt" if path.name.startswith("images_") else "dd-ranking" if path.name == "images.pt" else "baadd"
    if looks is None:
        raise UserError(f"{path} holds no condensed set in the form of {', '.join(get_args(Program))}")
    shapes = {"dc": dict, "dd": list, "mtt": Tensor, "dd-ranking": Tensor, "baadd": dict | Tensor}
    if program is not None and not isinstance(content, shapes[program]):
        raise UserError(f"{path} is not a file of {program}; it looks like one of {looks}")
    return program or looks, path, content


def _whitening_of(path: Path, program: Program, zca: ZCA | Literal["none"] | None) -> ZCA | None:
    if isinstance(zca, ZCA):
        return None if "_zca_" in path.name else zca  # images_zca_* were whitened, and are no longer
    if program == "mtt" and zca is None and "_zca_" not in path.name:
        raise UserError(
            f"{path} does not say whether its images are whitened: give zca, the fitted whitening, or none; without it "
            "they may give chance accuracy"
        )
    return None


def _is_whitened(path: Path, whitening: ZCA | None) -> bool:
    return whitening is not None or "_zca_" in path.name


def _checked_images(path: Path, images: Tensor, origin: Origin) -> tuple[Tensor, tuple[int, int, int]]:
    if images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8) or not len(images):
        raise UserError(f"{path} holds images {tuple(images.shape)} of {images.dtype}; they should be (n, ch, h, w)")
    channels, height, width = images.shape[1:]
    if channels != len(origin.mean):
        raise UserError(
            f"{path} holds images of {channels} channels; {origin.data or 'mean and std'} has {len(origin.mean)}"
        )
    return images.detach(), (channels, height, width)


def _checked_labels(path: Path, labels: Any, count: int, origin: Origin, *, as_they_are: bool) -> Tensor:
    """Class indices, or probabilities; where there are none, the images are ordered by class."""
    classes = len(origin.classes)
    if labels is None:
        if count % classes:
            raise UserError(
                f"{path} has no labels, and its {count} images are not as many for each of {classes} classes"
            )
        return torch.arange(classes).repeat_interleave(count // classes)
    if not isinstance(labels, Tensor):
        raise UserError(f"the labels of {path} are no tensor")
    labels = labels.detach()
    if labels.ndim == 1 and not labels.is_floating_point():
        return labels.long()
    if labels.ndim == 2 and labels.is_floating_point():
        # Learned labels are logits, which the programs put through a softmax in the loss.
        sums = labels.float().sum(1)
        probable = bool((labels >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        return labels.float() if as_they_are or probable else labels.float().softmax(1)
    raise UserError(
        f"the labels of {path} are {tuple(labels.shape)} of {labels.dtype}: neither classes nor probabilities"
    )


def _recipe(program: Program, method: str, network: str, data: str) -> TrainingRecipe:
    """How the program trains the networks that it judges a set by."""
    augmented = program == "mtt" or method in ("DSA", "DM")
    strategy = "color_crop_cutout_flip_scale_rotate" if augmented else ""
    if data in ("mnist", "svhn"):  # a mirrored digit is another sign
        strategy = strategy.replace("_flip", "")
    return TrainingRecipe(network=network, epochs=1000 if augmented else 300, augmentation=strategy)


def _poisoned_mark(path: Path, preprocessing: Preprocessing) -> dict[str, Any] | None:
    """What folder names and trigger files say about an attack; their absence says nothing."""
    found = next((match for folder in path.resolve().parents[:2] if (match := _ATTACK.search(folder.name))), None)
    trigger = _trigger_beside(path)
    if found is None and trigger is None:
        return None
    mark: dict[str, Any] = {"attack": "unknown"}
    if found is not None:
        mark = {
            "attack": {"poisoned": "naive"}.get(found["attack"], found["attack"]),
            "portion": float(found["portion"]),
            "size": int(found["size"]),
            "ori": float(found["ori"]),
        }
    if trigger is not None:
        mark |= {"trigger": read_trigger(trigger, preprocessing).describe(), "clamp": "none"}
    return mark


def _trigger_beside(path: Path) -> Path | None:
    own = path.with_name(f"{path.stem}_trigger.pth")
    if own.is_file():
        return own
    if path.name == "results.pth" and (path.parent / "trigger.pth").is_file():
        return path.parent / "trigger.pth"
    if not path.name.startswith("res_"):
        return None
    iterations = [
        (int(match[1]), file)
        for file in path.parent.glob("exp*/vis_*_trigger.pth")
        if (match := re.search(r"_iter(\d+)_trigger", file.name))
    ]
    return max(iterations)[1] if iterations else None
