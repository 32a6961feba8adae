"""Official YOLOX weights in and out: the same names, less one prefix; Focus stems as convolutions on demand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_checkpoint
from tenfold.systems.backbone_search.detector.darknet import DarknetPlan, focus_to_convolution
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite, yolox

_FOCUS = "backbone.stem.conv.conv.weight"


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names (``backbone.backbone.dark2...``, ``backbone.C3_p4...``, ``head...``) as ours."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("backbone.backbone."):
            renamed[name.removeprefix("backbone.")] = value
        elif name.startswith("backbone."):
            renamed["neck." + name.removeprefix("backbone.")] = value
        else:
            renamed[name] = value
    return renamed


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names of a ``csp`` detector as the official ones; the inverse of ``from_official``.

    Args:
        state: of a detector of the family ``csp``.
    """
    renamed = {}
    for name, value in state.items():
        if name.startswith("backbone."):
            renamed["backbone." + name] = value
        elif name.startswith("neck."):
            renamed["backbone." + name.removeprefix("neck.")] = value
        else:
            renamed[name] = value
    return renamed


def unfocused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights for a ``conv`` stem: the Focus kernel becomes a 6 x 6 one."""
    changed = dict(state)
    if changed[_FOCUS].shape[1] == 12:
        changed[_FOCUS] = focus_to_convolution(changed[_FOCUS])
    return changed


def load_official(path: str | Path, stem: str = "focus") -> YOLOXLite:
    """Read an official YOLOX Nano, Tiny or S checkpoint; which one is told by its shapes.

    Args:
        path: the ``.pth`` file (``{model, ...}``) or a bare state dict; nothing in it is executed.
        stem: ``focus`` as published, or ``conv``.

    Raises:
        UserError: the file is damaged or holds no such network.
    """
    content: Any = read_checkpoint(path)
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict of YOLOX: expected tensors by name, under 'model'")
    state = from_official(state)
    plan = official_plan(state, path)
    if stem == "conv":
        backbone = plan.backbone
        assert isinstance(backbone, DarknetPlan)
        plan = DetectorPlan(**{**plan.__dict__, "backbone": DarknetPlan(**{**backbone.__dict__, "stem": "conv"})})
        state = unfocused(state)
    model = YOLOXLite(plan)
    own = model.state_dict()
    for name, value in own.items():  # older files lack these counters, which nothing reads
        if name.endswith("num_batches_tracked") and name not in state:
            state[name] = value
    load_strictly(model, state, path)
    return model


def official_plan(state: Mapping[str, Tensor], source: str | Path = "the state") -> DetectorPlan:
    """Which official YOLOX a state dict (in our names) is of.

    Raises:
        UserError: of none.
    """
    if _FOCUS not in state or "head.cls_preds.0.bias" not in state:
        raise UserError(f"{source} holds no YOLOX: it lacks {_FOCUS!r}")
    num_classes = len(state["head.cls_preds.0.bias"])
    light = "backbone.dark2.0.dconv.conv.weight" in state
    base = state[_FOCUS].shape[0]
    for name in ("nano", "tiny", "s"):
        plan = yolox(name, num_classes)
        backbone = plan.backbone
        assert isinstance(backbone, DarknetPlan)
        if backbone.widths[0] == base and backbone.depthwise == light:
            return plan
    raise UserError(f"{source} holds a YOLOX of {base} stem channels; Nano, Tiny and S are known here")
