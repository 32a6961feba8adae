"""The ranges of the settings, checked before any work."""

from typing import Any

from tenfold.errors import UserError
from tenfold.systems.relation_distillation.experiment.settings import Config

_WHOLE = float("inf")
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "seeds": (1, 10_000),
    "data.validation": (1, _WHOLE),
    "data.limit": (1, _WHOLE),
    "data.image_size": (1, 16384),
    "data.crop_scale": (1e-6, 1),
    "data.jitter": (0, _WHOLE),
    "data.workers": (0, 1024),
    "teacher.width": (1, 65536),
    "teacher.depth": (1, 1024),
    "teacher.heads": (1, 65536),
    "teacher.patch": (1, 4096),
    "teacher.std": (1e-12, _WHOLE),
    "teacher.epochs": (1, _WHOLE),
    "teacher.batch_size": (1, _WHOLE),
    "teacher.learning_rate": (1e-12, _WHOLE),
    "teacher.warmup_epochs": (0, _WHOLE),
    "teacher.mask_ratio": (1e-6, 0.999),
    "teacher.decoder_width": (4, 65536),
    "teacher.decoder_depth": (1, 1024),
    "teacher.decoder_heads": (1, 65536),
    "student.width": (1, 65536),
    "student.depth": (1, 1024),
    "student.heads": (1, 65536),
    "distil.epochs": (1, _WHOLE),
    "distil.batch_size": (1, _WHOLE),
    "distil.learning_rate": (1e-12, _WHOLE),
    "distil.weight_decay": (0, _WHOLE),
    "distil.warmup_epochs": (0, _WHOLE),
    "distil.drop_path": (0, 0.99),
    "distil.views": (1, _WHOLE),
    "distil.cache_mb": (1, _WHOLE),
    "distil.teacher_layer": (1, 1024),
    "distil.heads": (1, 65536),
    "distil.mask_ratio": (1e-6, 0.999),
    "distil.chain": (1, 65536),
    "finetune.labels": (1, _WHOLE),
    "finetune.epochs": (1, _WHOLE),
    "finetune.few_labels": (0, _WHOLE),
    "finetune.few_epochs": (1, _WHOLE),
    "finetune.longer": (0, 1000),
    "finetune.batch_size": (1, _WHOLE),
    "finetune.learning_rate": (1e-12, _WHOLE),
    "finetune.weight_decay": (0, _WHOLE),
    "finetune.layer_decay": (1e-6, 1),
    "finetune.warmup_epochs": (0, _WHOLE),
    "finetune.drop_path": (0, 0.99),
    "finetune.crop_scale": (1e-6, 1),
    "finetune.mixup": (0, _WHOLE),
    "finetune.cutmix": (0, _WHOLE),
    "finetune.smoothing": (0, 0.99),
    "finetune.erase": (0, 1),
}
"""Smallest and largest value of each number among the settings; lists are checked entry by entry."""


def check_settings(config: Config) -> None:
    """Refuse settings out of their ranges, settings that contradict each other, and settings without effect.

    Raises:
        UserError: names the setting and what it may be.
    """
    for name, (low, high) in RANGES.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int | float) and not low <= one <= high:  # false for NaN, too
                raise UserError(f"{name} must be {_span(low, high)}; got {one}")
    _check_networks(config)
    data = config.data
    if data.name == "digits" and data.root is not None:
        raise UserError(
            f"data.root {data.root!r} has no effect on the embedded digits: name the data, as with --data.name folder"
        )
    if data.image_size is not None and data.name not in ("clothing64", "folder", "imagenet"):
        raise UserError(f"data.image_size has no effect on {data.name!r}, whose images have a size of their own")
    if data.unreadable != "refuse" and data.name != "folder":
        raise UserError(f"data.unreadable is for data.name folder, not for {data.name!r}")
    for pair in config.distil.pairs:
        if len(pair) != 2 or not set(pair) <= set("qkv"):
            raise UserError(f"distil.pairs holds pairs of the letters q, k, v, such as qk; got {pair!r}")
    if not config.distil.pairs:
        raise UserError("distil.pairs must name at least one relation, such as [qk, vv]")


def _span(low: float, high: float) -> str:
    if high == _WHOLE:
        return f"at least {low:g}" if low > 1e-6 or low == 0 else "above 0"
    return f"from {low:g} to {high:g}" if low > 1e-6 or low == 0 else f"above 0 and at most {high:g}"


def _check_networks(config: Config) -> None:
    teacher, student = config.teacher, config.student
    if len(teacher.heads) not in (1, teacher.depth):
        raise UserError(f"teacher.heads is one number, or one per block ({teacher.depth}); got {teacher.heads}")
    if teacher.decoder_width % teacher.decoder_heads:
        raise UserError(
            f"teacher.decoder_width {teacher.decoder_width} is not a multiple of teacher.decoder_heads "
            f"{teacher.decoder_heads}"
        )
    if teacher.name == "vit":
        wrong = [count for count in teacher.heads if teacher.width % count]
        if wrong:
            raise UserError(f"teacher.width {teacher.width} is not a multiple of its {wrong[0]} heads")
    if student.name == "vit":
        for setting, width in (("student.width", student.width), *(("distil.chain", w) for w in config.distil.chain)):
            if width % student.heads or width % 4:
                raise UserError(f"{setting} must be a multiple of student.heads {student.heads} and of 4; got {width}")
    for name, options in (("teacher", teacher), ("student", student)):
        if options.arguments and not options.name.startswith("timm/"):
            raise UserError(f"{name}.arguments are for timm/NAME, not for {options.name!r}")
    if (teacher.mean is None) != (teacher.std is None) or len(teacher.mean or []) != len(teacher.std or []):
        raise UserError("teacher.mean and teacher.std go together, one number per channel")
