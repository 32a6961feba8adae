"""One run: its folder, configuration, finished steps, log, results and report.

::

    runs/<system>/<name>/
      config.yaml        complete: `tenfold run --config` on it reproduces the run
      steps/<step>/      one unit of work (an arm with a seed): checkpoints, loggers' files, result.json when done
      model.safetensors  the delivered model, with model.json to rebuild it
      results.json       the schema of tenfold.results; there only when the run is complete
      report.html        one self-contained page
      log.txt

Work is cut into steps whose results are files. A killed run that is resumed reads the finished ones and lets the
unfinished one continue from its own checkpoint.
"""

import dataclasses
import json
import logging
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

import tenfold
from tenfold.errors import UserError
from tenfold.parallel import rank, wait_for_all_ranks
from tenfold.results import Results, load_results

_FOLDER_OF_CHILDREN = "TENFOLD_RUN_FOLDER"
_NOT_PART_OF_THE_EXPERIMENT = ("trainer", "workers")

log = logging.getLogger("tenfold")


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed.

    Raises:
        UserError: the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file, or say in one line why not."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error


class Run:
    """The folder of one run. Open it with :func:`open_run`.

    Attributes:
        folder: where everything goes.
        quiet: whether progress is left out of the console.
    """

    def __init__(self, folder: Path, quiet: bool = False) -> None:
        self.folder = folder
        self.quiet = quiet
        self._started = time.monotonic()
        self._clock = folder / "steps" / "seconds.json"
        self._earlier_seconds = float(read_json(self._clock)) if self._clock.exists() else 0.0
        self._progress = _Progress(quiet or rank() != 0)

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run, over all its resumptions."""
        return self._earlier_seconds + time.monotonic() - self._started

    def step(self, name: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Do a unit of work once: its result is kept, and read back when the run is resumed.

        Args:
            name: unique within the run; may hold slashes.
            work: gets the step's own folder, which may already hold its checkpoints; gives a JSON-able result.
        """
        folder = self.folder / "steps" / name
        finished = folder / "result.json"
        if finished.exists():
            return read_json(finished)
        folder.mkdir(parents=True, exist_ok=True)
        self._progress.start(name)
        outcome = work(folder)
        # Read back from its text, so that a resumed run computes with exactly what this one does.
        text = json.dumps(outcome)
        if rank() == 0:
            write_atomically(finished, text)
            write_atomically(self._clock, json.dumps(self.seconds))
        wait_for_all_ranks()
        self._progress.finish(name, self.seconds)
        return json.loads(text)

    def progress(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show how far a step is."""
        self._progress.update(name, done, total, note)

    def say(self, line: str) -> None:
        """Tell something on the console and in the log, such as what was left out of the data."""
        self._progress.say(line)

    def discard_if_nothing_was_done(self) -> None:
        """Remove the folder if no step has begun: after wrong input nothing half-written is left."""
        if rank() == 0 and not any(entry.is_dir() for entry in (self.folder / "steps").iterdir()):
            _log_to(None)
            shutil.rmtree(self.folder)

    def finish(self, results: Results) -> Results:
        """Write ``results.json`` and ``report.html``; after this the run is complete."""
        from tenfold.report import write_report

        self._progress.close()
        if rank() == 0:
            write_report(results, self.folder / "report.html")
            write_atomically(self.folder / "results.json", results.to_json())
            log.info("finished after %.1f s: %s", self.seconds, self.folder)
        return results


def open_run(
    config: Any, *, system: str, out: str | Path | None = None, resume: bool = False, quiet: bool = False
) -> Run:
    """Open the folder of a new run, or of one to be resumed.

    Args:
        config: dataclass with at least ``preset``; written to ``config.yaml``, complete.
        system: command-line id of the system.
        out: the folder. By default ``runs/<system>/<preset>``, with a number where that is taken.
        resume: continue the run that the folder holds. A folder without one starts afresh.
        quiet: no progress on the console.

    Raises:
        UserError: the folder holds another run, another configuration, something else, or cannot be written.
    """
    folder = _choose_folder(system, config.preset, out, resume)
    os.environ[_FOLDER_OF_CHILDREN] = str(folder.absolute())  # read by the processes that Lightning starts
    if rank() == 0:
        _prepare(folder, system, config, resume, explicit=out is not None)
        _log_to(folder / "log.txt")
        log.info("tenfold %s, %s, preset %s, in %s", tenfold.__version__, system, config.preset, folder)
    return Run(folder, quiet)


def _choose_folder(system: str, preset: str, out: str | Path | None, resume: bool) -> Path:
    if out is not None:
        return Path(out)
    if rank() != 0:
        if _FOLDER_OF_CHILDREN not in os.environ:
            raise UserError("several processes need one folder for their run: name it with --out")
        return Path(os.environ[_FOLDER_OF_CHILDREN])
    base = Path("runs") / system
    number = 1
    while True:
        folder = base / (preset if number == 1 else f"{preset}-{number}")
        unfinished = (folder / "config.yaml").exists() and not (folder / "results.json").exists()
        if not folder.exists() or (resume and unfinished):
            return folder
        number += 1


def _prepare(folder: Path, system: str, config: Any, resume: bool, explicit: bool) -> None:
    text = config_to_yaml(system, config)
    saved = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    if saved.exists():
        if not resume:
            raise UserError(f"{folder} already holds a run; continue it with --resume or name another with --out")
        changed = _difference(yaml.safe_load(saved.read_text(encoding="utf-8")), yaml.safe_load(text))
        if changed:
            raise UserError(
                f"{folder} holds a run with another {changed}; resume with the same settings, or name another folder"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; name a new folder with --out")
    try:
        (folder / "steps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    write_atomically(saved, text)


def _difference(saved: Any, new: Any, prefix: str = "") -> str:
    """Dotted name of the first setting that changes the experiment and differs; empty if there is none."""
    if isinstance(saved, dict) and isinstance(new, dict):
        for key in {**saved, **new}:
            if prefix or key not in _NOT_PART_OF_THE_EXPERIMENT:
                found = _difference(saved.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
                if found:
                    return found
        return ""
    return "" if saved == new else prefix


def config_to_yaml(system: str, config: Any) -> str:
    """The text of ``config.yaml``: the system and every field of the configuration."""
    return yaml.safe_dump({"system": system, **dataclasses.asdict(config)}, sort_keys=False, allow_unicode=True)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a run's ``config.yaml`` as plain values; its ``system`` names the system.

    Raises:
        UserError: ``folder`` holds no run, or the file is not YAML.
    """
    path = Path(folder) / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no run (no config.yaml): {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or "system" not in values:
        raise UserError(f"{path} is not the configuration of a run: it names no system")
    return values


def system_of(folder: str | Path) -> str:
    """The system that a run, or a model folder without a run, belongs to.

    Raises:
        UserError: ``folder`` is neither.
    """
    from tenfold.export import MANIFEST, load_manifest

    if (Path(folder) / MANIFEST).exists() and not (Path(folder) / "config.yaml").exists():
        return load_manifest(folder).system
    return str(read_config(folder)["system"])


def finished_results(folder: str | Path) -> Results:
    """Results of a complete run; a :class:`UserError` where the run is not complete."""
    folder = Path(folder)
    if (folder / "config.yaml").exists() and not (folder / "results.json").exists():
        raise UserError(f"the run in {folder} is not finished; continue it with: tenfold run SYSTEM --out ... --resume")
    return load_results(folder / "results.json")


def environment(device: str, **more: str | int | float | None) -> dict[str, str | int | float | None]:
    """Versions, device and threads: what the numbers of a run depend on."""
    import lightning
    import numpy
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        **more,
    }


def peak_process_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


def _log_to(path: Path | None) -> None:
    """Write the log to a file, or to none."""
    for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    if path is None:
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


class _Progress:
    """A bar on a terminal; plain lines elsewhere; the log file either way."""

    def __init__(self, silent: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, quiet=silent)
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def start(self, name: str) -> None:
        log.info("%s: started", name)
        if self._console.is_terminal and not self._console.quiet:
            if self._bar is None:
                from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

                self._bar = Progress(
                    TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"),
                    TimeElapsedColumn(), console=self._console, transient=True,
                )  # fmt: skip
                self._bar.start()
            self._tasks[name] = self._bar.add_task(name, total=None, note="")

    def update(self, name: str, done: int, total: int, note: str) -> None:
        log.info("%s: %d/%d %s", name, done, total, note)
        if name in self._tasks:
            self._bar.update(self._tasks[name], completed=done, total=total, note=note)

    def finish(self, name: str, seconds: float) -> None:
        log.info("%s: done", name)
        if name in self._tasks:
            self._bar.remove_task(self._tasks.pop(name))
        self._console.print(f"[dim]{seconds:7.1f} s[/dim]  {name}", highlight=False)

    def say(self, line: str) -> None:
        log.info("%s", line)
        self._console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
