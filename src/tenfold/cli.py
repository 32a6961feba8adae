"""The command line: parses, calls, and turns wrong input into one line and exit code 2.

``tenfold list | run | tour | evaluate | export | import | report | predict | completion``, and
``tenfold SYSTEM VERB`` for what one system alone has. torch is imported only by the commands that compute.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, Namespace

import tenfold
from tenfold.catalog import SYSTEMS, System, find_system
from tenfold.errors import RunStopped, UserError

_DESCRIPTION = "Makes deep networks smaller, faster and more trustworthy; every run measures the baseline, too."


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        raise UserError(_one_line(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 1 (stopped), 2 (wrong input), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except (UserError, ArgumentError) as error:
        print(f"tenfold: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except RunStopped as error:
        print(f"tenfold: stopped: {_one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tenfold: interrupted; a run continues with --resume", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)


def _one_line(message: str) -> str:
    """The message in one line, Python's types under the names that a user writes."""
    return re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split()))


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in _COMMANDS:
        return _COMMANDS[command](arguments[1:])
    if command in ("-h", "--help"):
        print(_overview())
        return 0
    if command == "--version":
        print(f"tenfold {tenfold.__version__}")
        return 0
    try:
        system = find_system(command)
    except UserError:
        known = ", ".join([*_COMMANDS, *(system.id for system in SYSTEMS)])
        raise UserError(f"there is no command {command!r}; there are: {known}") from None
    return _system_verb(system, arguments[1:])


def _overview() -> str:
    width = max(len(system.id) for system in SYSTEMS) + 2
    lines = [f"usage: tenfold COMMAND [...]      tenfold {tenfold.__version__}", "", _DESCRIPTION, "", "commands:"]
    lines += [f"  {name:<{width}}{(call.__doc__ or '').splitlines()[0]}" for name, call in _COMMANDS.items()]
    lines += ["", "systems, with verbs of their own (tenfold SYSTEM --help):"]
    lines += [f"  {system.id:<{width}}{system.summary}" for system in SYSTEMS]
    lines += ["", "Each command explains itself: tenfold COMMAND --help; settings: tenfold run SYSTEM --help"]
    return "\n".join(lines)


# --- commands ---------------------------------------------------------------------------------------------------


def _list(arguments: list[str]) -> int:
    """The systems that there are"""
    parser = _parser("list", _list)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.json:
        print(json.dumps([dataclasses.asdict(system) for system in SYSTEMS], indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("system", "also", "what it does", "published in", box=None, header_style="bold")
    for system in SYSTEMS:
        table.add_row(system.id, system.alias, system.summary, system.paper)
    Console().print(table)
    return 0


def _run(arguments: list[str]) -> int:
    """Train a system and its baseline, measure both, write a run folder with its report"""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in ("-h", "--help"):
            raise UserError("name the system first: tenfold run SYSTEM [...]; tenfold list shows them")
        print("usage: tenfold run SYSTEM [--preset NAME] [--config FILE] [--out DIR] [--resume] [SETTING ...]")
        print(f"systems: {', '.join(system.id for system in SYSTEMS)}; settings: tenfold run SYSTEM --help")
        return 0 if arguments else 2
    system = find_system(arguments[0])
    options, config = _parse_run(system, arguments[1:])
    results = run_system(system, config, out=options.out, resume=options.resume, quiet=options.quiet)
    if options.json:
        print(results.to_json(), end="")
    return 0


def run_system(
    system: System, config: Any, *, out: str | Path | None = None, resume: bool = False, quiet: bool = False
) -> Any:
    """Run a system's recipe in a run folder; a complete run that is resumed gives its results back.

    Returns:
        The run's :class:`tenfold.results.Results`.
    """
    from tenfold.parallel import rank
    from tenfold.results import load_results
    from tenfold.run import open_run

    recipe = system.recipe
    run = open_run(config, system=system.id, out=out, resume=resume, quiet=quiet)
    complete = run.folder / "results.json"
    try:
        results = load_results(complete) if complete.exists() else run.finish(recipe.run(config, run))
    except UserError:
        run.discard_if_nothing_was_done()
        raise
    if rank() == 0 and not quiet:
        _print_claims(results, run.folder)
    return results


def _tour(arguments: list[str]) -> int:
    """Run every system at preset tiny and write one page about all of them"""
    parser = _parser("tour", _tour)
    parser.add_argument("--out", type=str, default="runs/tour", help="folder of the tour; run folders go inside")
    parser.add_argument("--resume", action="store_true", help="continue a tour that was stopped")
    parser.add_argument("--quiet", action="store_true", help="no progress on the console")
    options = parser.parse_args(arguments)
    from tenfold.report import IndexEntry, write_index

    folder = Path(options.out)
    if folder.exists() and any(folder.iterdir()) and not options.resume:
        raise UserError(f"{folder} is not empty; continue that tour with --resume, or name another folder with --out")
    entries = []
    for system in SYSTEMS:
        config = system.recipe.PRESETS["tiny"]
        results = run_system(system, config, out=folder / system.id, resume=options.resume, quiet=options.quiet)
        entries.append(IndexEntry(results=results, href=f"{system.id}/report.html", summary=system.summary))
    write_index(entries, folder / "index.html")
    print(f"the tour's page: {folder / 'index.html'}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    """Measure a run's model again, on its own data or on others"""
    return _on_run("evaluate", _evaluate, arguments)


def _export(arguments: list[str]) -> int:
    """Write a run's model as safetensors or ONNX, checked against PyTorch"""
    return _on_run("export", _export, arguments)


def _predict(arguments: list[str]) -> int:
    """Predict with a run's model: one JSON line per input"""
    return _on_run("predict", _predict, arguments)


def _on_run(command: str, doc: Callable, arguments: list[str]) -> int:
    """A command on a finished run: the run names the system, whose function gives the arguments and does the work."""
    from tenfold.run import system_of

    folder = next((argument for argument in arguments if not argument.startswith("-")), None)
    if folder is None:
        print(f"usage: tenfold {command} RUN [...]\n\n{doc.__doc__}; the arguments depend on the run's system")
        return 0 if arguments else 2
    system = find_system(system_of(folder))
    return _call(getattr(system.commands, command), f"tenfold {command}", arguments)


def _import(arguments: list[str]) -> int:
    """Turn an official checkpoint of a system into a model folder"""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: tenfold import SYSTEM CHECKPOINT [...]\n\n{_import.__doc__}")
        return 0 if arguments else 2
    system = find_system(arguments[0])
    return _call(system.commands.import_official, f"tenfold import {system.id}", arguments[1:])


def _report(arguments: list[str]) -> int:
    """Write a run's page again, or one page that compares several runs"""
    parser = _parser("report", _report)
    parser.add_argument("runs", nargs="+", type=str, help="folders of finished runs")
    parser.add_argument("--out", type=str, default=None, help="the page; by default report.html of the run")
    options = parser.parse_args(arguments)
    from tenfold.report import write_comparison, write_report
    from tenfold.run import finished_results

    results = [(name, finished_results(name)) for name in options.runs]
    if len(results) == 1:
        page = Path(options.out or Path(options.runs[0]) / "report.html")
        write_report(results[0][1], page)
    else:
        page = Path(options.out or "comparison.html")
        write_comparison(results, page)
    print(page)
    return 0


def _completion(arguments: list[str]) -> int:
    """Print a completion script: tenfold completion bash > FILE, then source it"""
    parser = _parser("completion", _completion)
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="which shell")
    shell = parser.parse_args(arguments).shell
    import shtab

    print(shtab.complete(_completion_parser(), shell=shell))
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "run": _run,
    "tour": _tour,
    "evaluate": _evaluate,
    "export": _export,
    "import": _import,
    "report": _report,
    "predict": _predict,
    "completion": _completion,
}


def _system_verb(system: System, arguments: list[str]) -> int:
    verbs: dict[str, Callable] = system.commands.VERBS
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, verbs)) + 2
        print(f"usage: tenfold {system.id} VERB [...]\n\n{system.summary} ({system.paper})\n\nverbs:")
        print("\n".join(f"  {name:<{width}}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in verbs.items()))
        return 0 if arguments else 2
    if arguments[0] not in verbs:
        raise UserError(f"{system.id} has no verb {arguments[0]!r}; it has: {', '.join(verbs)}")
    return _call(verbs[arguments[0]], f"tenfold {system.id} {arguments[0]}", arguments[1:])


# --- parsing ----------------------------------------------------------------------------------------------------


def _parser(command: str, doc: Callable) -> _Parser:
    return _Parser(prog=f"tenfold {command}", description=doc.__doc__)


def _call(function: Callable, prog: str, arguments: list[str]) -> int:
    """Call a typed function with arguments from the command line; print what it returns."""
    parser = _Parser(prog=prog, description=(function.__doc__ or "").strip().splitlines()[0])
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
    values = parser.instantiate_classes(parsed).as_dict()
    for name, kind in groups.items():
        values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
    answer = function(**values)
    if answer is not None:
        print(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
    return 0


def _run_parser(system: System, preset: str) -> tuple[_Parser, Any]:
    recipe = system.recipe
    if preset not in recipe.PRESETS:
        raise UserError(f"{system.id} has no preset {preset!r}; it has: {', '.join(recipe.PRESETS)}")
    defaults = recipe.PRESETS[preset]
    parser = _Parser(prog=f"tenfold run {system.id}", description=f"{system.summary} ({system.paper})")
    parser.add_argument("--config", action="config", help="YAML file with settings, such as a run's config.yaml")
    parser.add_argument("--out", type=str | None, default=None, help="run folder (default: runs/SYSTEM/PRESET)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument("--quiet", action="store_true", help="no progress on the console")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--system", type=str, default=system.id, help="as in config.yaml; must be this system")
    parser.add_class_arguments(recipe.Config, None)
    parser.set_defaults(_flatten(dataclasses.asdict(defaults), defaults))
    return parser, recipe.Config


def _parse_run(system: System, arguments: list[str]) -> tuple[Namespace, Any]:
    parser, config_class = _run_parser(system, _asked_preset(arguments))
    parsed = parser.parse_args(arguments)
    if parsed.system != system.id:
        raise UserError(f"the configuration is of {parsed.system!r}, not of {system.id!r}")
    built = parser.instantiate_classes(parsed)
    names = [field.name for field in dataclasses.fields(config_class)]
    return parsed, config_class(**{name: built[name] for name in names})


def _asked_preset(arguments: Sequence[str]) -> str:
    """The preset decides the defaults, so it is read first: from the command line, else from the named file."""
    found = {"--preset": "", "--config": ""}
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in found:
            found[name] = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
    if found["--preset"] or not found["--config"]:
        return found["--preset"] or "tiny"
    import yaml

    try:
        values = yaml.safe_load(Path(found["--config"]).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {found['--config']}: {error}") from error
    return str(values.get("preset", "tiny")) if isinstance(values, dict) else "tiny"


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


def _completion_parser() -> Any:
    import argparse

    parser = argparse.ArgumentParser(prog="tenfold", description=_DESCRIPTION)
    commands = parser.add_subparsers()
    for name, call in _COMMANDS.items():
        command = commands.add_parser(name, help=call.__doc__)
        if name == "run":
            rooms = command.add_subparsers()
            for system in SYSTEMS:
                full, _ = _run_parser(system, "tiny")
                room = rooms.add_parser(system.id, help=system.summary)
                for action in full._actions:
                    if action.option_strings and action.option_strings[0] not in ("-h", "--help"):
                        room.add_argument(*action.option_strings, help=(action.help or "").replace("%", "%%"))
    for system in SYSTEMS:
        room = commands.add_parser(system.id, help=system.summary)
        verbs = room.add_subparsers()
        for verb, call in system.commands.VERBS.items():
            verbs.add_parser(verb, help=(call.__doc__ or "").splitlines()[0])
    return parser


def _print_claims(results: Any, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    table = Table("claim", "measured", "95 % interval", "target", "", box=None, header_style="bold")
    for claim in results.claims:
        value = "-" if claim.value is None else f"{claim.value:.4g} {claim.unit}"
        interval = "" if claim.interval is None else f"{claim.interval[0]:.3g} .. {claim.interval[1]:.3g}"
        verdict = "[green]holds[/green]" if claim.holds else "[yellow]does not hold[/yellow]"
        table.add_row(claim.statement, value, interval, claim.target, verdict)
    console.print(table)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
