"""The command line: parses, calls, and turns wrong input into one line and exit code 2.

``tenfold list | run | tour | settle | evaluate | export | import | report | predict | completion``, and
``tenfold SYSTEM VERB`` for what one system alone has. torch is imported only by the commands that compute.
"""

import dataclasses
import errno
import json
import os
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tenfold
from tenfold.catalog import SYSTEMS, System, find_system
from tenfold.cli.arguments import call, parse_run, parser, run_parser
from tenfold.cli.console import (
    INTERRUPTED,
    Terminated,
    listed,
    paragraph,
    print_claims,
    say,
    sigterm_as_interrupt,
    warnings_in_one_line,
)
from tenfold.errors import RunStopped, UserError
from tenfold.files import printable, reason_of_writer
from tenfold.settings import PositiveFloat, PositiveInt

_NOT_WRITTEN = "stopped: a file could not be written: is the disk full? Make room and go on with --resume"
_DESCRIPTION = "Makes deep networks smaller, faster and more trustworthy; every run measures the baseline, too."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1, stopped though the input was right; 2, wrong input; 130 and 143, interrupted by Ctrl-C
        and by SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_devices(arguments)
        with sigterm_as_interrupt(), warnings_in_one_line():
            return _dispatch(arguments)
    except (UserError, ArgumentError) as error:
        return say(str(error), 2)
    except RunStopped as error:
        return say(f"stopped: {error}", 1)
    except KeyboardInterrupt as interrupt:
        how = str(interrupt) or INTERRUPTED
        return say(f"interrupted; {how}", 143 if isinstance(interrupt, Terminated) else 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what no part said better
        name = f"{printable(error.filename, 120)}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return say(f"{name}{error.strerror or error}{'; make room and try again' if full else ''}", 1 if full else 2)
    except (MemoryError, RuntimeError) as error:
        if reason_of_writer(error):
            return say(_NOT_WRITTEN, 1)
        if isinstance(error, RuntimeError) and "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        return say("there is not enough memory for this; take smaller batches, images, networks or data", 1)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    except Exception as error:  # safetensors' writer has a kind of its own
        if not reason_of_writer(error):
            raise
        return say(_NOT_WRITTEN, 1)


def _refuse_devices(arguments: Sequence[str]) -> None:
    """Refuse devices that are named where files are meant: reading them may never end."""
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        if value.startswith("/dev/") and value not in (os.devnull, "/dev/stdout", "/dev/stderr"):
            raise UserError(f"{printable(value)} is a device, not a file or a folder")


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
    parts = [
        f"usage: tenfold COMMAND [...]   ({tenfold.__version__})",
        paragraph(_DESCRIPTION),
        "commands:",
        listed({name: (known.__doc__ or "").splitlines()[0] for name, known in _COMMANDS.items()}),
        paragraph("systems, with verbs of their own (tenfold SYSTEM --help):"),
        listed({system.id: system.summary for system in SYSTEMS}),
        paragraph("Each command explains itself: tenfold COMMAND --help; settings: tenfold run SYSTEM --help"),
    ]
    return "{}\n\n{}\n\n{}\n{}\n\n{}\n{}\n\n{}".format(*parts)


# --- commands ---------------------------------------------------------------------------------------------------


def _list(arguments: list[str]) -> int:
    """The systems that there are"""
    arguments_of = parser("list", _list)
    arguments_of.add_argument("--json", action="store_true", help="print JSON")
    options = arguments_of.parse_args(arguments)
    if options.json:
        print(json.dumps([dataclasses.asdict(system) for system in SYSTEMS], indent=1))
        return 0
    for system in SYSTEMS:
        print(paragraph(f"{system.id} (or {system.alias})"))
        for line in (system.summary, system.paper):
            print(paragraph(line, "  "))
    return 0


def _run(arguments: list[str]) -> int:
    """Train a system and its baseline, measure both, write a run folder with its report"""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in ("-h", "--help"):
            raise UserError("name the system first: tenfold run SYSTEM [...]; tenfold list shows them")
        options = "[--preset NAME] [--config FILE] [--out DIR] [--resume] [SETTING ...]"
        print(paragraph(f"usage: tenfold run SYSTEM {options}"))
        print(paragraph(f"systems: {', '.join(system.id for system in SYSTEMS)}; settings: tenfold run SYSTEM --help"))
        return 0 if arguments else 2
    try:
        system = find_system(arguments[0])
        options, config = parse_run(system, arguments[1:])
        results = run_system(system, config, out=options.out, resume=options.resume, quiet=options.quiet)
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            raise
        again = arguments if "--resume" in arguments else [*arguments, "--resume"]  # of no run yet: starts afresh
        raise type(interrupt)(f"continue with: tenfold run {shlex.join(again)}") from None
    if options.json:
        print(results.to_json(), end="")
    return 0


def run_system(
    system: System,
    config: Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    claims: bool = True,
) -> Any:
    """Run a system's recipe in a run folder; a complete run that is resumed gives its results back.

    Args:
        system: of the catalog.
        config: its settings.
        out: the folder; see ``tenfold.run.open_run``.
        resume: continue what the folder holds.
        quiet: no progress on the console.
        claims: whether the console shows the claims at the end.

    Returns:
        The run's ``tenfold.results.Results``.
    """
    from tenfold.results import load_results
    from tenfold.run import open_run
    from tenfold.training.parallel import rank

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
    if rank() == 0 and claims and not quiet:
        print_claims(results, run.folder)
    return results


def _tour(arguments: list[str]) -> int:
    """Run every system at preset tiny and write one page about all of them"""
    arguments_of = parser("tour", _tour)
    arguments_of.add_argument("--out", type=str, default="runs/tour", help="folder of the tour; run folders go inside")
    arguments_of.add_argument("--resume", action="store_true", help="continue a tour that was stopped")
    arguments_of.add_argument("--quiet", action="store_true", help="no progress on the console")
    options = arguments_of.parse_args(arguments)
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


def _settle(arguments: list[str]) -> int:
    """Settle whether a system's main claims hold: a pilot fixes the number of seeds, then all of them are trained"""
    if not arguments or arguments[0].startswith("-"):
        print(paragraph("usage: tenfold settle SYSTEM [--trial NAME] [--budget MINUTES] [...]") + "\n")
        print(paragraph(_settle.__doc__ or ""))
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    system = find_system(arguments[0])
    trials = system.trials
    arguments_of = parser(f"settle {system.id}", _settle)
    arguments_of.add_argument("--trial", type=str, default=next(iter(trials)), help=f"one of: {', '.join(trials)}")
    arguments_of.add_argument("--budget", type=PositiveFloat | None, default=None, help="minutes for all of it")
    arguments_of.add_argument("--workers", type=PositiveInt | None, default=None, help="processes; one per free core")
    arguments_of.add_argument("--out", type=str | None, default=None, help="folder (default: runs/settle/TRIAL)")
    arguments_of.add_argument("--resume", action="store_true", help="continue in the folder")
    arguments_of.add_argument("--quiet", action="store_true", help="no progress on the console")
    options = arguments_of.parse_args(arguments[1:])
    if options.trial not in trials:
        raise UserError(f"{system.id} has no trial {options.trial!r}; it has: {', '.join(trials)}")
    from tenfold.settling import settle

    folder = Path(options.out or Path("runs") / "settle" / options.trial)
    if folder.exists() and any(folder.iterdir()) and not options.resume:
        raise UserError(f"{folder} is not empty; continue there with --resume, or name another folder with --out")
    budget = "" if options.budget is None else f" --budget {options.budget:g}"
    command = f"tenfold settle {system.id} --trial {options.trial}{budget}"
    trial = trials[options.trial]
    trial = dataclasses.replace(trial, config=dataclasses.replace(trial.config, workers=options.workers))

    def run(config: Any, place: Path) -> Any:
        return run_system(system, config, out=place, resume=place.exists(), quiet=options.quiet, claims=False)

    try:
        settled = settle(trial, folder, run, budget=options.budget, command=command, system=system.id)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(f"continue with: {command} --out {folder} --resume") from None
    print(f"{len(settled['seeds'])} seeds, chosen by {settled['seeds_chosen_by']}")
    for found in settled["claims"]:
        low, high = found["interval"]
        print(
            f"{found['verdict']}: {found['value']:+.3g} {found['unit']} ({low:+.3g} to {high:+.3g}, target "
            f"{found['target']}): {found['statement']}"
        )
    print(folder / "settled.json")
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
    exported = next((argument for argument in arguments if argument.endswith(".onnx")), None)
    if exported is not None and arguments[0] == exported:
        return _predict_onnx(exported, arguments)
    return _on_run("predict", _predict, arguments)


def _predict_onnx(path: str, arguments: list[str]) -> int:
    """Predict with an exported file, which says in its metadata by which system, and carries what it needs along."""
    from tenfold.models.onnx import onnx_metadata

    name = onnx_metadata(path).get("system", "")
    system = next((known for known in SYSTEMS if known.id == name), None)
    if system is None or not hasattr(system.commands, "predict_onnx"):
        raise UserError(
            f"{path} does not carry along what predictions need (system {printable(name)!r}); name the run instead, "
            "or export it again: tenfold export RUN --to onnx"
        )
    return call(system.commands.predict_onnx, "tenfold predict", arguments)


def _on_run(command: str, doc: Callable, arguments: list[str]) -> int:
    """A command on a finished run: the run names the system, whose function gives the arguments and does the work."""
    from tenfold.run import system_of

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: tenfold {command} RUN [...]\n")
        print(paragraph(f"{doc.__doc__}; the arguments depend on the run's system"))
        return 0 if arguments else 2
    position = _position_of_run(arguments)
    folder = arguments[position]
    system = find_system(system_of(folder))
    rest = [*arguments[:position], *arguments[position + 1 :]]
    return call(getattr(system.commands, command), f"tenfold {command}", [folder, *rest])


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
        print(paragraph("usage: tenfold import SYSTEM CHECKPOINT [...]") + "\n")
        print(paragraph(_import.__doc__ or ""))
        return 0 if arguments else 2
    system = find_system(arguments[0])
    return call(system.commands.import_official, f"tenfold import {system.id}", arguments[1:])


def _report(arguments: list[str]) -> int:
    """Write a run's page again, or one page that compares several runs"""
    arguments_of = parser("report", _report)
    arguments_of.add_argument("runs", nargs="+", type=str, help="folders of finished runs")
    arguments_of.add_argument(
        "--out",
        type=str,
        default=None,
        help="the page; by default report.html of the run, or comparison.html beside the first",
    )
    options = arguments_of.parse_args(arguments)
    from tenfold.report import differences, write_comparison, write_report
    from tenfold.run import finished_results

    results = [(name, finished_results(name)) for name in options.runs]
    if len(results) == 1:
        page = Path(options.out or Path(options.runs[0]) / "report.html")
        write_report(results[0][1], page)
    else:
        page = Path(options.out) if options.out else Path(options.runs[0]).parent / "comparison.html"
        write_comparison(results, page)
        if differences(results):
            say(f"warning: {differences(results)}", 0)
    print(page)
    return 0


def _completion(arguments: list[str]) -> int:
    """Print a completion script: tenfold completion bash > FILE, then source it"""
    arguments_of = parser("completion", _completion)
    arguments_of.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="which shell")
    shell = arguments_of.parse_args(arguments).shell
    import shtab

    print(shtab.complete(_completion_parser(), shell=shell))
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "run": _run,
    "tour": _tour,
    "settle": _settle,
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
        print(paragraph(f"usage: tenfold {system.id} VERB [...]") + "\n")
        print(paragraph(f"{system.summary} ({system.paper})") + "\n\nverbs:")
        print(listed({name: (verb.__doc__ or "").splitlines()[0] for name, verb in verbs.items()}))
        return 0 if arguments else 2
    if arguments[0] not in verbs:
        raise UserError(f"{system.id} has no verb {arguments[0]!r}; it has: {', '.join(verbs)}")
    return call(verbs[arguments[0]], f"tenfold {system.id} {arguments[0]}", arguments[1:])


# --- parsing ----------------------------------------------------------------------------------------------------


def _completion_parser() -> Any:
    import argparse

    parser = argparse.ArgumentParser(prog="tenfold", description=_DESCRIPTION)
    commands = parser.add_subparsers()
    for name, known in _COMMANDS.items():
        command = commands.add_parser(name, help=known.__doc__)
        if name == "run":
            rooms = command.add_subparsers()
            for system in SYSTEMS:
                full, _ = run_parser(system, "tiny")
                room = rooms.add_parser(system.id, help=system.summary)
                for action in full._actions:
                    if action.option_strings and action.option_strings[0] not in ("-h", "--help"):
                        room.add_argument(*action.option_strings, help=(action.help or "").replace("%", "%%"))
    for system in SYSTEMS:
        room = commands.add_parser(system.id, help=system.summary)
        verbs = room.add_subparsers()
        for verb, function in system.commands.VERBS.items():
            verbs.add_parser(verb, help=(function.__doc__ or "").splitlines()[0])
    return parser
