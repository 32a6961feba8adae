"""Weights that every program can draw again: by name of the official state dict, in its order."""

import torch


def draw(state: dict[str, torch.Tensor], seed: int = 7) -> dict[str, torch.Tensor]:
    """Values for all floating-point tensors of a state dict, in sorted order of their names."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in sorted(state):
        value = state[name]
        if not value.is_floating_point():
            drawn[name] = value
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            drawn[name] = 0.6 + noise.abs()
        elif name.endswith("running_mean"):
            drawn[name] = 0.1 * noise
        elif value.ndim == 1 and name.endswith("weight"):
            drawn[name] = 1 + 0.1 * noise
        elif value.ndim == 1:
            drawn[name] = 0.1 * noise + (1.2 if "reg_preds" in name else -2.0 if "_preds" in name else 0.0)
        else:
            drawn[name] = noise / value[0].numel() ** 0.5
    return drawn
