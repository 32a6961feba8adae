"""Box codes: what the heads regress, ``(cx, cy, ln l, ln w, cz, ln h, sin, cos, vx, vy)``.

The official code concatenates its heads as ``(center, height, dim, rot, vel)`` and compares them with targets in the
order above. So in its weights (``cmt``) the head called *height* holds ln l, squashed into the range of z and anchored
on the reference's z, and the second number of *dim* holds z (issue 71 of the official repository). ``clean`` puts z
into *height* and the logarithms of the sizes into *dim*.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tenfold.systems.cross_modal_detector.networks.encodings import inverse_sigmoid

BoxCode = Literal["clean", "cmt"]
CODE_SIZE = 10


def encode_boxes(boxes: Tensor) -> Tensor:
    """Codes ``(..., 10)`` of boxes; a size of zero gives minus infinity.

    Args:
        boxes: ``(..., 9)``: centre, length, width, height (metres), yaw (radians), velocity (m/s).
    """
    x, y, z, length, width, height, yaw, vx, vy = boxes.unbind(-1)
    return torch.stack((x, y, length.log(), width.log(), z, height.log(), yaw.sin(), yaw.cos(), vx, vy), -1)


def decode_boxes(codes: Tensor) -> Tensor:
    """Boxes ``(..., 9)`` of codes; the inverse of ``encode_boxes``.

    Args:
        codes: ``(..., 10)``: x, y, logarithms of length and width, z, logarithm of height, sine and cosine of the yaw,
            velocity.
    """
    x, y, length, width, z, height, sin, cos, vx, vy = codes.unbind(-1)
    return torch.stack((x, y, z, length.exp(), width.exp(), height.exp(), torch.atan2(sin, cos), vx, vy), -1)


def predicted_codes(outputs: Mapping[str, Tensor], reference: Tensor, area: Tensor, box_code: BoxCode) -> Tensor:
    """Codes of predicted boxes from the heads' raw outputs.

    Args:
        outputs: raw outputs by name, ``(..., queries, n)``.
        reference: ``(..., queries, 3)`` in [0, 1] of the range.
        area: ``(6,)`` the range: three lower bounds, then three upper ones, metres.
        box_code: see the module.

    Returns:
        ``(..., queries, 10)``.
    """
    low, extent = area[:3], area[3:] - area[:3]
    anchor = inverse_sigmoid(reference)
    centre = (outputs["center"] + anchor[..., :2]).sigmoid() * extent[:2] + low[:2]
    height = (outputs["height"] + anchor[..., 2:]).sigmoid() * extent[2:] + low[2:]
    dim = outputs["dim"]
    middle = (height, dim) if box_code == "cmt" else (dim[..., :2], height, dim[..., 2:])
    return torch.cat((centre, *middle, outputs["rot"], outputs["vel"]), -1)
