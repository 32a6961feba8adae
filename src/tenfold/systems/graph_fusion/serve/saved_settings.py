"""How a student's encoder is built again: what a model folder may ask for, which is plain values only."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.models.folder import WEIGHTS, Manifest, plain_arguments

TEXT_MODEL = "text-model"
"""Folder of a text tower's architecture and tokenizer, inside the student's."""


def check_arguments(builder: str, arguments: dict[str, Any], source: str | Path) -> None:
    """Refuse arguments of an encoder that a model folder could not ask for again: it may name plain values only.

    Args:
        builder: name of the encoder; a factory takes any arguments, for it is allowed by name.
        arguments: of the encoder.
        source: where they come from, for the message.

    Raises:
        UserError: a name asks to fetch or open something, or a value is neither a number, a word, nor a list of them.
    """
    if builder == "factory":
        return
    # A text tower's folder is checked where it is read; whether its weights are loaded is a truth value.
    mine = {k: v for k, v in arguments.items() if k != "checkpoint" and not (k == "weights" and isinstance(v, bool))}
    nested = mine.pop("decoder_options", None)
    plain_arguments(mine, source)
    plain_arguments(nested or {}, source)


def saved_settings(manifest: Manifest, folder: Path) -> tuple[dict[str, Any], float, int]:
    """Arguments of the encoder, temperature, and number of edges."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}; copy the folder again")
    arguments = manifest.arguments.get("arguments")
    temperature, edges = manifest.extra.get("temperature"), manifest.extra.get("edges", 0)
    whole = isinstance(arguments, dict) and isinstance(temperature, int | float) and temperature > 0
    # The graph of a graph network is part of its weights: the file must be large enough to hold so many edges.
    if not whole or not isinstance(edges, int) or not 0 <= 8 * edges <= (folder / WEIGHTS).stat().st_size:
        raise UserError(f"{folder}/model.json does not say how its encoder is built and calibrated: it is damaged")
    assert isinstance(arguments, dict) and isinstance(temperature, int | float)
    check_arguments(manifest.builder, arguments, folder / "model.json")
    if manifest.builder != "factory" and arguments.get("checkpoint", TEXT_MODEL) != TEXT_MODEL:
        raise UserError(f"{folder}/model.json names a text model outside its folder; nothing was read")
    return arguments, float(temperature), edges
