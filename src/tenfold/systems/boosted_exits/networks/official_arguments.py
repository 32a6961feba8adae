"""Settings of the official programs: read from what they leave behind, made into the network that they build."""

import ast
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ValidationError

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.msdnet import MSDNet
from tenfold.systems.boosted_exits.networks.official_files import read_lines, read_saved
from tenfold.systems.boosted_exits.networks.ranet import RANet

Backbone = MSDNet | RANet

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_PRINTED = "Namespace("
_NETWORK = frozenset(
    [
        *("arch", "data", "dataset", "nBlocks", "nChannels", "step", "stepmode", "base", "growthRate", "grFactor"),
        *("bnFactor", "reduction", "prune", "block-step", "scale-list", "compress-factor", "ensemble_reweight"),
    ]
)


def read_official_arguments(path: str | Path) -> dict[str, Any]:
    """The settings of an official training, by their official names; nothing in the file is executed.

    Args:
        path: ``args.pth``, which MSDNet-PyTorch saves; ``args.txt`` of RANet-pytorch or ``log.txt`` of BoostNet, which
            hold the printed arguments; or the script or command line that started the training.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt", ".tar"):
        content = read_saved(path)
        if not isinstance(content, Namespace):
            raise UserError(f"{path} holds no arguments of an official program")
        return vars(content)
    lines = read_lines(path)
    printed = [line[line.index(_PRINTED) :] for line in lines if _PRINTED in line]
    found = _printed_arguments(printed[-1]) if printed else _typed_arguments(lines, path)
    if not found:
        raise UserError(f"{path} holds no arguments of an official program, neither printed nor as --name value")
    return found


def _printed_arguments(text: str) -> dict[str, Any]:
    """Arguments that ``print(namespace)`` wrote; those that are no plain values are left to be missed."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for keyword in call.keywords if isinstance(call, ast.Call) else ():
        try:
            found[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            continue
    return found


def _typed_arguments(lines: list[str], path: Path) -> dict[str, Any]:
    """Arguments of a shell script: ``--name value``, ``--name=value``."""
    try:
        words = [word for line in lines for word in shlex.split(line.rstrip("\\ "), comments=True)]
    except ValueError as error:
        raise UserError(f"{path} is no script: {error}") from error
    found: dict[str, Any] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else (True if after.startswith("-") else after)
    set_elsewhere = [name for name, value in found.items() if name in _NETWORK and "$" in str(value)]
    if set_elsewhere:
        raise UserError(f"{path} sets {set_elsewhere[0]} through a variable: write its value in its place")
    return {name: value for name, value in found.items() if "$" not in str(value)}


def _split_at(separator: str) -> BeforeValidator:
    return BeforeValidator(lambda value: value.split(separator) if isinstance(value, str) else value)


class _OfficialArguments(BaseModel):
    """Arguments that shape the network; defaults are the official ones, where the projects agree on them."""

    arch: Annotated[Literal["msdnet", "msdnet_ge", "ranet"], BeforeValidator(lambda value: str(value).lower())]
    data: Annotated[Literal["cifar10", "cifar100", "imagenet"], BeforeValidator(lambda value: str(value).lower())]
    nBlocks: int
    nChannels: int
    step: int
    stepmode: Literal["even", "lin_grow", "lg"]
    base: int = 4
    growthRate: int = 6
    grFactor: Annotated[list[int], _split_at("-")]
    bnFactor: Annotated[list[int], _split_at("-")]
    reduction: float = 0.5
    prune: Literal["max", "min"] = "max"
    bottleneck: Literal[True] = True
    bnAfter: Literal[True] = True
    block_step: int = 2
    scale_list: Annotated[list[int], _split_at("-")] = []
    compress_factor: float = 0.25
    ensemble_reweight: Annotated[list[float], _split_at(",")] = [0.0]


def parse_official_arguments(arguments: Mapping[str, Any]) -> Backbone:
    """The network that the official programs build from their arguments.

    Args:
        arguments: by official names, with ``-`` or ``_``; lists as ``"1-2-4"`` or as lists. Needed are ``arch``
            (``msdnet``, ``msdnet_ge`` or ``ranet``), ``data`` or ``dataset`` (``cifar10``, ``cifar100`` or
            ``imagenet``), ``nBlocks``, ``nChannels``, ``step``, ``stepmode`` (``even``, ``lin_grow`` or ``lg``), and
            for RANet ``grFactor``, ``bnFactor`` and ``scale_list``. ``ensemble_reweight``, which only BoostNet has, is
            0 where it is missing. What concerns data and training only is ignored.

    Raises:
        UserError: an argument is missing or has a value that no network can be built from.
    """
    given = {key.replace("-", "_"): value for key, value in arguments.items() if value is not None}
    given["data"] = given.get("dataset", given.get("data"))
    if str(given.get("arch")).lower() != "ranet":
        given = {"grFactor": "1-2-4", "bnFactor": "1-2-4"} | given
    try:
        official = _OfficialArguments.model_validate(given)
        return _build(official)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"official argument {first['loc'][0]!r} of the network: {first['msg']}") from error
    except ValueError as error:
        raise UserError(f"no network can be built from these arguments: {error}") from error


def _build(official: _OfficialArguments) -> Backbone:
    common: dict[str, Any] = {
        "num_classes": _CLASSES[official.data],
        "num_blocks": official.nBlocks,
        "channels": official.nChannels,
        "growth_rate": official.growthRate,
        "growth_factors": official.grFactor,
        "bottleneck_factors": official.bnFactor,
        "step": official.step,
        "step_mode": "even" if official.stepmode == "even" else "lin_grow",
        "reduction": official.reduction,
        "stem": "imagenet" if official.data == "imagenet" else "cifar",
        "reweight": official.ensemble_reweight,
    }
    if official.arch == "ranet":
        return RANet(
            **common,
            block_step=official.block_step,
            scales=official.scale_list,
            compression=official.compress_factor,
        )
    return MSDNet(**common, base=official.base, prune=official.prune, rescale=official.arch == "msdnet_ge")
