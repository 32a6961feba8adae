"""A model on disk: weights as safetensors, and a manifest that says how to build the network that they belong to."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tenfold.errors import UserError
from tenfold.files import make_folder, printable, read_json, regular, sha256_of, write_atomically
from tenfold.models.checkpoints import load_strictly, read_safetensors

WEIGHTS, MANIFEST = "model.safetensors", "model.json"


class Manifest(BaseModel):
    """``model.json``: what is needed to rebuild a model, and a hash that ties it to its weights.

    Attributes:
        format: version of this layout.
        system: command-line id of the system that made the model.
        builder: name under which the system builds the network.
        arguments: arguments of the builder.
        extra: what the system needs beside the weights, such as thresholds and normalization.
        sha256: of ``model.safetensors``.
        tensors: number of tensors in it.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["tenfold-model-1"] = "tenfold-model-1"
    system: str
    builder: str
    arguments: dict[str, Any]
    extra: dict[str, Any] = {}
    sha256: str
    tensors: int


def save_model(
    folder: str | Path,
    module: nn.Module,
    *,
    system: str,
    builder: str,
    arguments: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write ``model.safetensors`` and ``model.json``; the manifest comes last, so that it never names missing weights.

    Args:
        folder: made if need be.
        module: its whole state dict is written; tensors that share memory are written once each.
        system: see ``Manifest``.
        builder: see ``Manifest``.
        arguments: see ``Manifest``; plain JSON values.
        extra: see ``Manifest``; plain JSON values.

    Raises:
        UserError: the folder cannot be written.
    """
    from safetensors.torch import save

    folder = make_folder(folder)
    state = {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
    weights = save(state)
    manifest = Manifest(
        system=system,
        builder=builder,
        arguments=dict(arguments),
        extra=dict(extra or {}),
        sha256=hashlib.sha256(weights).hexdigest(),
        tensors=len(state),
    )
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def load_manifest(folder: str | Path, system: str | None = None) -> Manifest:
    """Read a model's manifest.

    Args:
        folder: of a run or a model.
        system: the system that the model must belong to; any where ``None``.

    Raises:
        UserError: the folder holds none, it is not one, or belongs to another system.
    """
    path = Path(folder) / MANIFEST
    if Path(folder).is_dir():
        for entry in Path(folder).iterdir():  # whatever else of it is read: a link to a device would never end
            try:
                regular(entry)
            except OSError as error:
                raise UserError(f"{printable(entry)}: {error.strerror}") from error
    if not path.exists():
        raise UserError(
            f"{printable(folder)} holds no model ({MANIFEST}); name the folder of a finished run or a model"
        )
    try:
        manifest = Manifest.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{printable(path)} is not a model's manifest: {printable(where)}: {first['msg']}") from error
    if system is not None and manifest.system != system:
        raise UserError(
            f"{printable(folder)} holds a model of {printable(manifest.system)!r}, not of {system}; tenfold.load reads "
            "models of any system"
        )
    return manifest


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Load the weights of a model folder into a module, strictly, after checking their hash.

    Raises:
        UserError: the weights are missing, are not those of the manifest, or do not fit the module.
    """
    load_strictly(module, read_weights(folder), Path(folder) / WEIGHTS)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights of a model folder, after checking their hash.

    Raises:
        UserError: they are missing, damaged, or not those of the manifest.
    """
    path = Path(folder) / WEIGHTS
    if sha256_of(path) != load_manifest(folder).sha256:
        raise UserError(
            f"{printable(path)} is not the file that {MANIFEST} describes (its hash differs): it was changed or cut "
            "short; copy both files again"
        )
    return read_safetensors(path)


def refuse_code(manifest: Manifest, allowed: str | None) -> None:
    """Guard for networks that a function of the user's own makes: a manifest alone never runs code.

    Args:
        manifest: read from elsewhere.
        allowed: what the user allows by name (``--factory``): ``package.module:function``.

    Raises:
        UserError: the manifest names a factory that was not allowed by its very name. The message shows what would be
            called, arguments and all.
    """
    factory = manifest.arguments.get("factory")
    if manifest.builder != "factory" and factory is None:
        return
    if not isinstance(factory, str) or factory != allowed:
        others = {name: value for name, value in manifest.arguments.items() if name != "factory"}
        call = f"{printable(factory)}({printable(json.dumps(others, ensure_ascii=True), 600)})"
        raise UserError(
            f"the model is made by code that is not part of it: {call}; if you trust that function, allow it by name: "
            f"--factory {printable(factory)}"
        )


_MAKING = {
    getattr(owner, name)
    for owner, names in (
        (torch, "empty zeros ones full rand randn randint randperm arange linspace logspace eye empty_strided"),
        (Tensor, "new_empty new_zeros new_ones new_full"),
    )
    for name in names.split()
}
_COPYING = {
    Tensor.clone,
    *(getattr(torch, f"{name}_like") for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")),
    torch.clone,
}
_SLACK, _MOST_TENSORS, _LEAST_BOUND = 2**26, 10_000, 2**20


class _Bounded(TorchFunctionMode):
    """Adds up what tensors are made, before they are; too many values or too many tensors are refused."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values, self.tensors = values, _MOST_TENSORS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKING and kwargs.get("out") is None:
            plain = {name: value for name, value in kwargs.items() if name not in ("device", "generator", "pin_memory")}
            self._count(func(*args, **plain, device="meta").numel())
        elif func in _COPYING:  # layers that are copies of one
            self._count((args[0] if args else kwargs["input"]).numel())
        return func(*args, **kwargs)

    def _count(self, values: int) -> None:
        self.values -= values
        self.tensors -= 1
        if self.values < 0 or self.tensors < 0:
            raise UserError("the network is far larger than the files that it came in; its manifest is damaged")


@contextmanager
def no_larger_than_its_files(folder: str | Path, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, a network is built as a file describes it; a number in the file cannot ask for any size.

    Args:
        folder: holds the description, the weights, and what else the network is made of.
        arguments: the description's plain values. A function of the user's own (``factory``), which was allowed by its
            name, builds what it likes.

    Raises:
        UserError: one of its numbers, or the network that is being built, is far larger than these files.
    """
    if arguments.get("factory") is not None:
        yield
        return
    size = sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())
    for name, value in arguments.items():
        if (largest := largest_number(value)) > max(size, _LEAST_BOUND):
            raise UserError(
                f"{printable(folder)} describes a network by {printable(name, 60)} = {printable(largest, 30)}, which "
                f"{size:,} bytes of files cannot be of; it is damaged"
            )
    try:
        with _Bounded(4 * size + _SLACK):
            yield
    except (MemoryError, OverflowError) as error:
        raise UserError(f"{printable(folder)} describes a network that cannot be built; it is damaged") from error


def largest_number(value: Any) -> float:
    """The largest absolute value of all numbers that are somewhere in plain values; 0 where there is none."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return max(map(largest_number, value), default=0)
    return abs(value) if isinstance(value, int | float) and value == value else 0


_FETCHING = re.compile(
    r"^(pretrained|checkpoint|weights)|cfg|cache|hub|url|repo|file|_dir$|(^|[^p])_path$|^path$", re.IGNORECASE
)
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_ .,+-]{0,100}")


def plain_arguments(arguments: Any, source: str | Path) -> dict[str, Any]:
    """Arguments of a network as a file may give them: named numbers, truth values and plain words, and lists of them.

    Args:
        arguments: as read.
        source: where they come from, for the message.

    Raises:
        UserError: a name asks to fetch or open something, or a value is a path, an address or anything else.
    """

    def plain(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(plain(part) for part in value)
        if isinstance(value, str):
            return bool(_PLAIN_TEXT.fullmatch(value)) and ".." not in value
        return value is None or isinstance(value, bool | int | float)

    if not isinstance(arguments, Mapping):
        raise UserError(f"the arguments in {printable(source)} are no mapping of names to values")
    for name, value in arguments.items():
        if not isinstance(name, str) or not name.isidentifier() or _FETCHING.search(name) or not plain(value):
            raise UserError(
                f"{printable(source)} wants to build a network with {printable(name)}={printable(value, 80)}, which a "
                "file may not ask for: only plain numbers, words and lists; nothing was built"
            )
    return dict(arguments)
