"""The command line: parses, calls, and turns wrong input into one line and exit code 2.

``tenfold list | run | tour | evaluate | export | import | report | predict | completion``, and
``tenfold SYSTEM VERB`` for what one system alone has. torch is imported only by the commands that compute.
"""

import dataclasses
import errno
import json
import os
import re
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import tenfold
from tenfold.catalog import SYSTEMS, System, find_system
from tenfold.errors import RunStopped, TenfoldWarning, UserError
from tenfold.files import printable, read_yaml

_DESCRIPTION = "Makes deep networks smaller, faster and more trustworthy; every run measures the baseline, too."


INTERRUPTED = "what is done is kept"


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does: whatever holds a terminal or a folder lets go of it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1, stopped though the input was right; 2, wrong input; 130 and 143, interrupted by Ctrl-C
        and by SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _sigterm_as_interrupt(), _warnings_in_one_line():
            return _dispatch(arguments)
    except (UserError, ArgumentError) as error:
        return _say(str(error), 2)
    except RunStopped as error:
        return _say(f"stopped: {error}", 1)
    except KeyboardInterrupt as interrupt:
        how = str(interrupt) or INTERRUPTED
        return _say(f"interrupted; {how}", 143 if isinstance(interrupt, _Terminated) else 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what no part said better
        name = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _say(f"{name}{error.strerror or error}{'; make room and try again' if full else ''}", 1 if full else 2)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)


def _say(message: str, code: int) -> int:
    print(f"tenfold: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(message: str) -> str:
    """The message in one line without control characters, Python's types under the names that a user writes."""
    return printable(re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split())), longest=1000)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def end(signum: int, frame: Any) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Tenfold's own warnings are for the user; a warning shows once, as a line and not as a place in the code."""
    before = warnings.showwarning

    def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
        if issubclass(category, TenfoldWarning):
            _say(f"warning: {message}", 0)
        else:
            before(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


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
    import shutil
    import textwrap

    width = min(max(shutil.get_terminal_size().columns, 40), 100)
    for system in SYSTEMS:
        print(f"{system.id}  (or {system.alias})")
        for line in (system.summary, system.paper):
            print(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  "))
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

    run = open_run(config, system=system.id, out=out, resume=resume, quiet=quiet)
    complete = run.folder / "results.json"
    try:
        if complete.exists():
            results = load_results(complete)
            if rank() == 0 and not (run.folder / "report.html").exists():
                run.write_page(results)
        else:
            results = run.finish(system.recipe.run(config, run))
    except UserError:
        run.discard_if_nothing_was_done()
        raise
    except KeyboardInterrupt as interrupt:
        again = (
            f"continue with: tenfold run {system.id} --config {run.folder / 'config.yaml'} --out {run.folder} --resume"
        )
        raise type(interrupt)(again) from None
    finally:
        run.close()
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
    for system in _with_their_extras(SYSTEMS):
        config = system.settings.PRESETS["tiny"]
        try:
            results = run_system(system, config, out=folder / system.id, resume=options.resume, quiet=options.quiet)
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)(f"continue with: tenfold tour --out {folder} --resume") from None
        entries.append(IndexEntry(results=results, href=f"{system.id}/report.html", summary=system.summary))
    write_index(entries, folder / "index.html")
    print(f"the tour's page: {folder / 'index.html'}")
    return 0


def _with_their_extras(systems: Sequence[System]) -> list[System]:
    """Those whose packages are installed; the others are named, with the command that installs what they need."""
    ready = [system for system in systems if not system.missing_packages()]
    left_out = [system for system in systems if system.missing_packages()]
    if left_out:
        needs = "; ".join(f"{system.id} needs {', '.join(system.missing_packages())}" for system in left_out)
        extras = ",".join(dict.fromkeys(extra for system in left_out for extra in system.extras))
        print(f"left out: {needs}; with: pip install 'tenfold[{extras}]'", file=sys.stderr)
    if not ready:
        raise UserError("no system can run without its extras; see above")
    return ready


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

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: tenfold {command} RUN [...]\n\n{doc.__doc__}; the arguments depend on the run's system")
        return 0 if arguments else 2
    position = _position_of_run(arguments)
    folder = arguments[position]
    system = find_system(system_of(folder))
    rest = [*arguments[:position], *arguments[position + 1 :]]
    return _call(getattr(system.commands, command), f"tenfold {command}", [folder, *rest])


def _position_of_run(arguments: Sequence[str]) -> int:
    """Where the run stands: options may come before it, and their values look like one until the run is known."""
    places = [n for n, argument in enumerate(arguments) if not argument.startswith("-")]
    for n in places:
        if any((Path(arguments[n]) / name).is_file() for name in ("config.yaml", "model.json")):
            return n
    free = [n for n in places if n == 0 or not arguments[n - 1].startswith("--") or "=" in arguments[n - 1]]
    if not free and not places:
        raise UserError("name the folder of a run")
    return (free or places)[0]


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
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="the page; by default report.html of the run, or comparison.html beside the first",
    )
    options = parser.parse_args(arguments)
    from tenfold.report import write_comparison, write_report
    from tenfold.run import finished_results

    results = [(name, finished_results(name)) for name in options.runs]
    if len(results) == 1:
        page = Path(options.out or Path(options.runs[0]) / "report.html")
        write_report(results[0][1], page)
    else:
        page = Path(options.out) if options.out else Path(options.runs[0]).parent / "comparison.html"
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


@cache
def _parser_class() -> Any:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
            raise UserError(_setting_error(message))

    return Parser


def _setting_error(message: str) -> str:
    """Jsonargparse's message as one sentence about a setting: ``optimizer.epochs must be greater than 0; got -1``."""
    from tenfold.settings import wording

    key = re.search(r'Parser key "([\w.]+)"', message)
    said = re.search(r"(Input should[^\[]*)\[type=\w+, input_value=(.*?), input_type", " ".join(message.split()))
    if key is None or said is None:
        return message
    return f"{key[1]} {wording(said[1])}; got {said[2].strip(chr(39))}"


def _parser(command: str, doc: Callable) -> Any:
    return _parser_class()(prog=f"tenfold {command}", description=doc.__doc__)


def _call(function: Callable, prog: str, arguments: list[str]) -> int:
    """Call a typed function with arguments from the command line; print what it returns."""
    parser = _parser_class()(prog=prog, description=(function.__doc__ or "").strip().splitlines()[0])
    # jsonargparse wants a list in brackets; file names are given one after the other.
    several = [name for name, kind in get_type_hints(function).items() if kind == list[str] and name == "inputs"]
    parser.add_function_arguments(function, as_positional=True, skip=set(several))
    for name in several:
        parser.add_argument(name, nargs="+", type=str, help="files")
    parsed = parser.parse_args(arguments)
    answer = function(**parser.instantiate(parsed).as_dict())
    if answer is not None:
        print(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
    return 0


def _run_parser(system: System, preset: str) -> tuple[Any, Any]:
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


def _parse_run(system: System, arguments: list[str]) -> tuple[Any, Any]:
    parser, config_class = _run_parser(system, _asked_preset(arguments))
    parsed = parser.parse_args(arguments)
    if parsed.system != system.id:
        raise UserError(f"the configuration is of {parsed.system!r}, not of {system.id!r}")
    built = parser.instantiate(parsed)
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
    values = read_yaml(found["--config"])
    if not isinstance(values, dict):
        raise UserError(f"the configuration {found['--config']} is no mapping of settings to values")
    empty = next((name for name, value in values.items() if value is None and name in _sections()), None)
    if empty is not None:
        raise UserError(f"{found['--config']}: {empty} is null; leave it out, or give its settings")
    return str(values.get("preset", "tiny"))


def _sections() -> set[str]:
    """Names of the settings that hold settings of their own, in any system."""
    return {
        field.name
        for system in SYSTEMS
        for field in dataclasses.fields(system.settings.Config)
        if dataclasses.is_dataclass(getattr(system.settings.PRESETS["tiny"], field.name))
    }


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
    """One line per claim (verdict, number, statement), wrapped at any width from 40 columns up."""
    from rich.console import Console
    from rich.text import Text

    from tenfold.results import count_verdicts

    colours = {"holds": "green", "not settled": "yellow", "does not hold": "red"}
    console = Console(stderr=True, highlight=False)
    if results.summary:
        console.print(results.summary, markup=False)
    for claim in results.claims:
        value = "not measured" if claim.value is None else f"{claim.value:.4g} {claim.unit}"
        interval = "" if claim.interval is None else f" ({claim.interval[0]:.3g} to {claim.interval[1]:.3g})"
        line = Text(f"{claim.verdict:<14}", style=colours[claim.verdict])
        line.append(f"{value}{interval}, target {claim.target}: {claim.statement}", style="default")
        console.print(line)
    console.print(f"{count_verdicts(results.claims)}; report: {folder / 'report.html'}", soft_wrap=True, markup=False)
