"""One run: its folder, configuration, finished steps, log, results and report.


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

import contextlib
import dataclasses
import json
import logging
import os
import platform
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import tenfold
from tenfold.errors import TenfoldWarning, UserError
from tenfold.files import first_line, printable, read_json, read_yaml, write_atomically
from tenfold.results import Results, load_results
from tenfold.settings import check_settings
from tenfold.training.parallel import rank, wait_for_all_ranks

_FOLDER_OF_CHILDREN = "TENFOLD_RUN_FOLDER"
_NOT_PART_OF_THE_EXPERIMENT = ("trainer", "workers")
_LOCK = ".lock"

Reporter = Callable[[str, int, int, str], None]
"""Takes a step's name, how much is done, of how much, and a note."""

log = logging.getLogger("tenfold")


class Run:
    """The folder of one run. Open it with ``open_run``.

    Attributes:
        folder: where everything goes.
        quiet: whether progress is left out of the console.
    """

    def __init__(self, folder: Path, quiet: bool = False, *, lock: Any = None, report: Reporter | None = None) -> None:
        self.folder = folder
        self.quiet = quiet
        self._lock = lock
        self._started = time.monotonic()
        self._clock = folder / "steps" / "seconds.json"
        self._earlier_seconds = self._read_clock()
        self._report = report
        self._progress = _Progress(quiet or rank() != 0 or report is not None)

    def _read_clock(self) -> float:
        if not self._clock.exists():
            return 0.0
        value = read_json(self._clock)
        if not isinstance(value, int | float):
            raise UserError(f"{self._clock} is damaged; remove it and resume again: only the time so far is lost")
        return float(value)

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
            return self._finished_step(finished)
        folder.mkdir(parents=True, exist_ok=True)
        self._progress.start(name)
        outcome = work(folder)
        # Read back from its text, so that a resumed run computes with exactly what this one does.
        text = json.dumps(outcome)
        if rank() == 0:
            write_atomically(finished, text)
            if self._report is None:
                write_atomically(self._clock, json.dumps(self.seconds))
        wait_for_all_ranks()
        self._progress.finish(name, self.seconds)
        return json.loads(text)

    @staticmethod
    def _finished_step(path: Path) -> dict[str, Any]:
        try:
            outcome = read_json(path)
        except UserError as error:
            way_on = f"remove the folder {path.parent} and resume again: the step is then done anew"
            raise UserError(f"{error}; {way_on}") from error
        if not isinstance(outcome, dict):
            raise UserError(f"{path} is damaged; remove the folder {path.parent} and resume again")
        return outcome

    def is_done(self, name: str) -> bool:
        """Whether a step's result is there."""
        return (self.folder / "steps" / name / "result.json").exists()

    def progress(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show how far a step is."""
        if self._report is not None:
            self._report(name, done, total, note)
        else:
            self._progress.update(name, done, total, note)

    def expect(self, steps: int, workers: int = 1) -> None:
        """Say how many steps are to be done, and show from then on how many are and how long the rest may take."""
        if steps:
            noun = "step" if steps == 1 else "steps"
            shared = f" in {workers} worker processes" if workers > 1 else ""
            self.say(f"{steps} {noun} to do{shared}; --seeds 1 and fewer arms do less, --resume continues")
        self._progress.expect(steps)

    def started(self, name: str) -> None:
        """Show that a step has begun, in a worker process."""
        self._progress.start(name)

    def finished(self, name: str) -> None:
        """Show that a step is done, in a worker process; the time so far is kept."""
        if rank() == 0:
            write_atomically(self._clock, json.dumps(self.seconds))
        self._progress.finish(name, self.seconds)

    def say(self, line: str) -> None:
        """A line for console and log: what will be done, what was left out and how much of it."""
        self._progress.say(line)

    def close(self) -> None:
        """Give the console and the folder free; the run can be resumed."""
        self._progress.close()
        if self._lock is not None:
            self._lock.release()

    def discard_if_nothing_was_done(self) -> None:
        """Remove the folder if no step has begun: after wrong input nothing half-written is left."""
        if rank() == 0 and not any(entry.is_dir() for entry in (self.folder / "steps").iterdir()):
            _log_to(None)
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, results: Results) -> Results:
        """Write ``results.json``, then ``report.html``; after the first the run is complete.

        A page that cannot be made is a warning: the numbers are there, and ``tenfold report`` makes the page again.
        """
        if rank() == 0:
            write_atomically(self.folder / "results.json", results.to_json())
            self.write_page(results)
            log.info("finished after %.1f s: %s", self.seconds, self.folder)
        self.close()
        return results

    def write_page(self, results: Results) -> None:
        """Write ``report.html``, or warn."""
        from tenfold.report import write_report

        try:
            write_report(results, self.folder / "report.html")
        except Exception as error:  # whatever it is, it must not cost the run
            log.exception("the page could not be made")
            warnings.warn(
                f"the page could not be made ({first_line(error)}); the results are complete, and this makes it again: "
                f"tenfold report {self.folder}",
                TenfoldWarning,
                stacklevel=2,
            )


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
        UserError: a setting is out of its range, or the folder holds another run, another configuration, something
            else, is in use by another run, or cannot be written.
    """
    check_settings(config)
    lock = None
    try:
        folder = _choose_folder(system, config.preset, out, resume)
        os.environ[_FOLDER_OF_CHILDREN] = str(folder.absolute())  # read by the processes that Lightning starts
        if rank() == 0:
            lock = _prepare(folder, system, config, resume)
            _log_to(folder / "log.txt")
            log.info("tenfold %s, %s, preset %s, in %s", tenfold.__version__, system, config.preset, folder)
        return Run(folder, quiet, lock=lock)
    except OSError as error:
        raise UserError(f"cannot write {printable(out or 'runs')}: {error.strerror or error}") from error
    except BaseException:
        if lock is not None:
            lock.release()
        raise


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


_OWN_BEGINNINGS = {"steps", "log.txt", _LOCK}
"""What a run's folder may hold before its configuration is there: a kill can come between any two of them."""


def _prepare(folder: Path, system: str, config: Any, resume: bool) -> Any:
    """Make or check the folder; gives its lock, which the system takes back when this process ends, however it ends."""
    text = config_to_yaml(system, config)
    saved = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    if saved.exists() and not resume:
        raise UserError(f"{folder} already holds a run; continue it with --resume or name another with --out")
    begun = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    foreign = [name for name in begun if name not in _OWN_BEGINNINGS and not name.endswith("-config.yaml")]
    if not saved.exists() and foreign:
        raise UserError(f"{folder} is not empty and holds no run; name a new folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        if saved.exists():
            _refuse_other_settings(folder, text)
        (folder / "steps").mkdir(exist_ok=True)
        if not saved.exists():
            write_atomically(saved, text)
    except BaseException:
        lock.release()
        raise
    return lock


def _lock(folder: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another run is at work in {folder}; wait for it, stop it, or name another folder") from error
    return lock


def _refuse_other_settings(folder: Path, text: str) -> None:
    saved = read_config(folder)
    changed = _difference(saved, yaml.safe_load(text))
    if changed:
        raise UserError(
            f"{folder} holds a run with another {changed}; resume with the same settings (--config "
            f"{folder / 'config.yaml'}), or name another folder"
        )


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
    if not path.exists():
        raise UserError(f"{printable(folder)} holds no run (no config.yaml)")
    values = read_yaml(path)
    if not isinstance(values, dict) or not isinstance(values.get("system"), str):
        raise UserError(f"{printable(path)} is not the configuration of a run: it names no system; it may be damaged")
    return values


def system_of(folder: str | Path) -> str:
    """The system that a run, or a model folder without a run, belongs to.

    Raises:
        UserError: ``folder`` is neither.
    """
    from tenfold.models.folder import MANIFEST, load_manifest

    if (Path(folder) / MANIFEST).exists() and not (Path(folder) / "config.yaml").exists():
        return load_manifest(folder).system
    return str(read_config(folder)["system"])


def finished_results(folder: str | Path) -> Results:
    """Results of a complete run; a ``UserError`` where the run is not complete."""
    folder = Path(folder)
    if (folder / "config.yaml").exists() and not (folder / "results.json").exists():
        raise UserError(f"the run in {folder} is not finished; continue it with: tenfold run SYSTEM --out ... --resume")
    return load_results(folder / "results.json")


def environment(device: str, **more: str | int | float | None) -> dict[str, str | int | float | None]:
    """Versions, device and threads: what the numbers of a run depend on."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "numpy": version("numpy"),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        **more,
    }


def peak_process_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


class _LogFile(logging.FileHandler):
    """A log that cannot be written, as on a full disk, is no more than that: the run says itself what stops it."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _log_to(path: Path | None) -> None:
    """Write the log to a file, or to none."""
    for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # what was not written yet finds no room
            handler.close()
    log.propagate = False
    if path is None:
        return
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


class _Progress:
    """A bar on a terminal; plain lines elsewhere; the log file either way."""

    def __init__(self, silent: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, quiet=silent)
        self._bar: Any = None
        self._expected = self._done = 0
        self._began = time.monotonic()
        self._tasks: dict[str, Any] = {}

    def expect(self, steps: int) -> None:
        self._expected, self._done, self._began = steps, 0, time.monotonic()

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
        self._done += 1
        self._console.print(f"[dim]{seconds:7.1f} s[/dim]  {name}{self._outlook()}", highlight=False)

    def _outlook(self) -> str:
        """How many of the expected steps are done, and about how long the others take if they are like these."""
        if self._done >= self._expected:
            return ""
        left = (time.monotonic() - self._began) / self._done * (self._expected - self._done)
        rest = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
        return f"  [dim]({self._done} of {self._expected}, about {rest} left)[/dim]"

    def say(self, line: str) -> None:
        log.info("%s", line)
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()  # gives the terminal its cursor back
            self._bar = None
