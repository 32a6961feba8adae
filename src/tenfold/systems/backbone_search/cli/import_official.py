"""``tenfold import backbone-search``."""

from pathlib import Path
from typing import Any

from tenfold.cost import count_parameters
from tenfold.errors import UserError
from tenfold.models.folder import save_model
from tenfold.systems.backbone_search.detector.official import load_official
from tenfold.systems.backbone_search.detector.postprocess import SCORE_RULE

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)  # fmt: skip


def import_official(
    checkpoint: str,
    *,
    out: str | None = None,
    classes: list[str] | None = None,
    height: int | None = None,
    width: int | None = None,
) -> dict[str, Any]:
    """Turn an official YOLOX Nano, Tiny or S checkpoint into a model folder.

    Args:
        checkpoint: the .pth file; nothing in it is executed.
        out: folder to write; the checkpoint's name without its suffix where not given.
        classes: names of the classes; COCO's 80 where not given.
        height: of the input; 416 (640 for S) where not given.
        width: of the input; as the height where not given.
    """
    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    model = load_official(checkpoint).eval()
    names = list(classes or (COCO_CLASSES if model.plan.num_classes == 80 else ()))
    if len(names) != model.plan.num_classes:
        raise UserError(
            f"{checkpoint} has {model.plan.num_classes} classes: name them with --classes (got {len(names)} names)"
        )
    side = 640 if model.plan.head == 128 else 416
    size = (height or side, width or height or side)
    if any(value % 32 or not 32 <= value <= 4096 for value in size):
        raise UserError(f"height and width must be multiples of 32; got {size[0]} x {size[1]}")
    save_model(
        folder, model, system="backbone-search", builder="yolox-lite", arguments={"plan": model.plan.to_dict()},
        extra={"classes": names, "category_ids": list(range(1, len(names) + 1)), "height": size[0], "width": size[1],
               "score": SCORE_RULE, "most_detections": 100},
    )  # fmt: skip
    return {"model": str(folder), "parameters": count_parameters(model), "classes": len(names), "size": list(size)}
