"""Arguments of the command line: typed functions and dataclasses of settings, read by jsonargparse."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_origin, get_type_hints

from tenfold.errors import UserError
from tenfold.files import read_yaml
from tenfold.settings import check_settings, problem_with


@cache
def _parser_class() -> Any:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
            raise UserError(_setting_error(message, {action.dest: action for action in self._actions}))

        def format_help(self, formatter: Any = None) -> str:
            """Types as words: ``int above 0`` for ``Annotated[int, above 0]``, which may be cut over two lines."""
            text = super().format_help(formatter)
            return re.sub(r"Annotated\[\s*(\w+),\s+Interval\([^)]*\),\s+([^\]]+)\]", r"\1 \2", text)

    return Parser


def _setting_error(message: str, actions: Mapping[str, Any]) -> str:
    """Jsonargparse's message as one sentence about a setting: ``optimizer.epochs must be greater than 0; got -1``."""
    key = re.findall(r'Parser key "([\w.]+)"', message)
    given = re.search(r"(?:Got|Given) value: (.*)\Z", message, re.DOTALL)
    kind = getattr(actions.get(key[-1]), "_typehint", None) if key else None
    if not key or given is None or kind is None:
        return message
    import yaml

    value: Any = given[1].strip()
    with contextlib.suppress(Exception):  # whatever is no YAML is text
        value = value if set(value) & set("&*!") else yaml.safe_load(value)
    if get_origin(kind) is list and "Expected a <class 'list'>" not in message:
        value = [value]  # what is wrong is one of its members
    return f"{key[-1]} {problem_with(value, kind) or f'does not take {value!r}'}"


def parser(command: str, doc: Callable) -> Any:
    """The parser of a command that its function's docstring describes."""
    return _parser_class()(prog=f"tenfold {command}", description=doc.__doc__)


def call(function: Callable, prog: str, arguments: list[str]) -> int:
    """Call a typed function with arguments from the command line; print what it returns."""
    parser = _parser_class()(prog=prog, description=(function.__doc__ or "").strip().splitlines()[0])
    # jsonargparse wants a list in brackets; file names are given one after the other.
    several = [name for name, kind in get_type_hints(function).items() if kind == list[str] and name == "inputs"]
    # The fields of a small dataclass that a verb takes are options of the verb itself.
    groups: dict[str, Any] = {
        name: kind for name, kind in get_type_hints(function).items() if dataclasses.is_dataclass(kind)
    }
    parser.add_function_arguments(function, as_positional=True, skip={*several, *groups})
    for kind in groups.values():
        parser.add_class_arguments(kind, None)
    for name in several:
        parser.add_argument(name, nargs="+", type=str, help="files")
    parsed = parser.parse_args(arguments)
    values = parser.instantiate(parsed).as_dict()
    for name, kind in groups.items():
        values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        check_settings(values[name])
    answer = function(**values)
    if answer is not None:
        print(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
    return 0


def run_parser(system: Any, preset: str) -> tuple[Any, Any]:
    """The parser of ``tenfold run`` for a system of the catalog, with a preset's values, and its ``Config``."""
    settings = system.settings
    if preset not in settings.PRESETS:
        raise UserError(f"{system.id} has no preset {preset!r}; it has: {', '.join(settings.PRESETS)}")
    defaults = settings.PRESETS[preset]
    parser = _parser_class()(prog=f"tenfold run {system.id}", description=f"{system.summary} ({system.paper})")
    parser.add_argument("--config", action="config", help="YAML file with settings, such as a run's config.yaml")
    parser.add_argument("--out", type=str | None, default=None, help="run folder (default: runs/SYSTEM/PRESET)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument("--quiet", action="store_true", help="no progress on the console")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--system", type=str, default=system.id, help="as in config.yaml; must be this system")
    parser.add_class_arguments(settings.Config, None)
    parser.set_defaults(_flatten(dataclasses.asdict(defaults), defaults))
    return parser, settings.Config


def parse_run(system: Any, arguments: list[str]) -> tuple[Any, Any]:
    """The options of ``tenfold run`` and the configuration that they make."""
    parser, config_class = run_parser(system, _asked_preset(system, arguments))
    parsed = parser.parse_args(arguments)
    if parsed.system != system.id:
        raise UserError(f"the configuration is of {parsed.system!r}, not of {system.id!r}")
    built = parser.instantiate(parsed)
    names = [field.name for field in dataclasses.fields(config_class)]
    return parsed, config_class(**{name: built[name] for name in names})


def _asked_preset(system: Any, arguments: Sequence[str]) -> str:
    """The preset decides the defaults, so it is read first: from the command line, else from the named file."""
    found = {"--preset": "", "--config": ""}
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in found:
            found[name] = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
    if found["--preset"] or not found["--config"]:
        return found["--preset"] or "tiny"
    values = read_yaml(found["--config"])
    if not isinstance(values, dict):
        raise UserError(f"the configuration {found['--config']} is no mapping of settings to values")
    empty = next((name for name, value in values.items() if value is None and name in _sections(system.settings)), None)
    if empty is not None:
        raise UserError(f"{found['--config']}: {empty} is null; leave it out, or give its settings")
    return str(values.get("preset", "tiny"))


def _sections(settings: Any) -> set[str]:
    """Names of the settings that hold settings of their own."""
    preset = settings.PRESETS["tiny"]
    names = [field.name for field in dataclasses.fields(settings.Config)]
    return {name for name in names if dataclasses.is_dataclass(getattr(preset, name))}


def _flatten(values: dict[str, Any], config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all settings; only nested dataclasses are descended into, dict-valued settings are not."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = getattr(config, name)
        if dataclasses.is_dataclass(nested):
            flat |= _flatten(value, nested, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
