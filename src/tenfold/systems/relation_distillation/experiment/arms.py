"""The arms of the experiment: ways to pre-train the student, and the axes of the paper's ablations."""

from dataclasses import dataclass, replace

from tenfold.errors import UserError
from tenfold.settings import check_settings
from tenfold.systems.relation_distillation.experiment.settings import Config
from tenfold.systems.relation_distillation.training.feature_targets import TARGETS


@dataclass(frozen=True)
class Arm:
    """One way to pre-train the student; what is ``None`` is taken from `DistilOptions`.

    Attributes:
        target: ``none``, ``mae``, ``relations``, or a name of `TARGETS`.
        pairs: relations.
        softmax: compare relations after a softmax.
        heads: alignment of the heads.
        masked: give both networks the same few patches only.
        reconstruct: add the masked autoencoder's loss on the student.
        drop_path: of the student.
        teacher_drop_path: of the teacher.
        teacher_layer: the teacher's block.
        chained: through networks between teacher and student.
        uniform_heads: fine-tune with the student's own number of heads in all blocks.
    """

    target: str = "relations"
    pairs: tuple[str, ...] | None = None
    softmax: bool = True
    heads: str | int | None = None
    masked: bool = False
    reconstruct: bool = False
    drop_path: float | None = None
    teacher_drop_path: float = 0.0
    teacher_layer: int | None = None
    chained: bool = False
    uniform_heads: bool | None = None


ARMS: dict[str, Arm] = {
    "scratch": Arm("none"),
    "mae": Arm("mae"),
    "cls": Arm("cls"),
    "cls-reconstruct": Arm("cls", reconstruct=True),
    **{f"feature-{target}": Arm(target) for target in TARGETS if target != "cls"},
    "qk": Arm(pairs=("qk",)),
    "vv": Arm(pairs=("vv",)),
    "qq-kk-vv": Arm(pairs=("qq", "kk", "vv")),
    "qk-kk-vv": Arm(pairs=("qk", "kk", "vv")),
    "no-softmax": Arm(softmax=False),
    "qq-kk-vv-no-softmax": Arm(pairs=("qq", "kk", "vv"), softmax=False),
    "mean-heads": Arm(heads="mean"),
    "relation-heads": Arm(heads=8),
    "masked": Arm(masked=True),
    "masked-reconstruct": Arm(masked=True, reconstruct=True),
    "drop-path-0": Arm(drop_path=0.0),
    "drop-path-0.2": Arm(drop_path=0.2),
    "drop-path-0.3": Arm(drop_path=0.3),
    "teacher-drop-path": Arm(teacher_drop_path=0.1),
    "chain": Arm(chained=True),
    "uniform-heads": Arm(uniform_heads=True),
}
"""Baselines and ablations by name; ``relations`` itself is `DistilOptions`."""


AXES: dict[str, tuple[str, ...]] = {
    "target": ("scratch", "mae", "cls", "cls-reconstruct", *(f"feature-{t}" for t in TARGETS if t != "cls")),
    "pairs": ("qk", "vv", "qq-kk-vv", "qk-kk-vv", "no-softmax", "qq-kk-vv-no-softmax"),
    "heads": ("mean-heads", "relation-heads", "uniform-heads"),
    "input": ("masked", "masked-reconstruct"),
    "droppath": ("drop-path-0", "drop-path-0.2", "drop-path-0.3", "teacher-drop-path"),
    "chain": ("chain",),
}
"""Arms of each axis of the paper's ablations; the axis ``layer`` has a ``block-N`` for each block."""


def arms_of(config: Config) -> dict[str, Arm]:
    """The arms of a run by name, ``relations`` last.

    Raises:
        UserError: a name that is no arm, or settings out of range.
    """
    arms: dict[str, Arm] = {}
    for name in config.arms:
        if name.startswith("block-") and name.removeprefix("block-").isdecimal():
            arms[name] = Arm(teacher_layer=int(name.removeprefix("block-")))
        elif name in ARMS:
            arms[name] = ARMS[name]
        else:
            raise UserError(f"arms: there is no arm {name!r}; there are: {', '.join(ARMS)}, block-N")
    check_settings(config)
    return arms | {"relations": Arm()}


def sweep_config(config: Config, axis: str) -> Config:
    """The settings with the arms of one axis of the ablations.

    Raises:
        UserError: there is no such axis.
    """
    if axis == "layer":
        return replace(config, arms=[f"block-{n}" for n in range(1, config.teacher.depth + 1)])
    if axis not in AXES:
        raise UserError(f"there is no axis {axis!r}; there are: layer, {', '.join(AXES)}")
    return replace(config, arms=list(AXES[axis]))
