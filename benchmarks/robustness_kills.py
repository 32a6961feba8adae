"""Kills, full disks, interrupts and two programs in one folder, at random moments: is anything lost, is anything wrong?

    python benchmarks/robustness_kills.py [--kills 100] [--others 20] [--seed 0] [--out FILE]

A run of seconds of each system is killed with SIGKILL at random moments, and resumed until it is done: its results
must be those of a run that was left alone, to the bit. Disks are filled by a limit on the size of files; Ctrl-C is
SIGINT. Runs are forked from a process that has imported everything once, so that a kill falls into their work.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

from systems_for_tests import CASES, numbers

import tenfold.lightning_task
from tenfold.catalog import SYSTEMS
from tenfold.cli import main


def start(system, folder, *more, log, limit=None):
    """A run in a forked process; what it says goes to ``log``."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os._exit(main(["run", system, "--out", str(folder), "--quiet", "--workers", "1", *CASES[system].fast, *more]))


def ended(child, within=None):
    """The exit code of a process (negative: the signal), or ``None`` where it has not ended in time."""
    until = None if within is None else time.monotonic() + within
    while True:
        found, status = os.waitpid(child, 0 if until is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.01)


class Trials:
    """Runs of all systems that were left alone, and what is held against them."""

    def __init__(self, folder, seed):
        self.folder, self.rng = folder, random.Random(seed)
        self.whole, self.seconds, self.problems = {}, {}, []
        for system in (system.id for system in SYSTEMS):
            began = time.monotonic()
            code = ended(start(system, folder / f"whole-{system}", log=folder / "log"))
            if code != 0:
                raise SystemExit(f"{system} does not run at all: {(folder / 'log').read_text()[-500:]}")
            self.seconds[system] = time.monotonic() - began
            self.whole[system] = numbers(folder / f"whole-{system}")

    def place(self, name):
        """A new folder for a run, and the file of what it says."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder, self.folder / f"{name}.log"

    def hold(self, what, system, folder, log, *also):
        """The results must be those of the run that was left alone; nothing may have ended in a traceback."""
        wrong = [text for condition, text in also if condition]
        if not (folder / "results.json").exists():
            wrong.append("no results")
        elif numbers(folder) != self.whole[system]:
            wrong.append("other results")
        if "Traceback" in log.read_text():
            wrong.append("a traceback")
        if list(folder.rglob("*.tmp")):
            wrong.append("temporary files are left")
        if wrong:
            self.problems.append({"what": what, "system": system, "problems": wrong, "said": log.read_text()[-600:]})

    def kills(self, count):
        """Kill at random moments, again and again, each time resumed, until the run is done."""
        done, turn = 0, 0
        while done < count:
            system = SYSTEMS[turn % len(SYSTEMS)].id
            folder, log = self.place(f"killed-{turn}")
            turn, code, more = turn + 1, None, []
            for _ in range(6):
                child = start(system, folder, *more, log=log)
                code = ended(child, within=self.rng.uniform(0, 0.7 * self.seconds[system]))
                if code is not None:
                    break
                os.kill(child, signal.SIGKILL)
                ended(child)
                done, more = done + 1, ["--resume"]
            code = ended(start(system, folder, "--resume", log=log)) if code is None else code
            self.hold("kill", system, folder, log, (code != 0, f"exit code {code}"))
            print(f"{done} kills, {len(self.problems)} problems", flush=True)
        return done

    def disks(self, count):
        """A disk that takes no more than so much of a file: one line, and afterwards the run goes on."""
        for turn in range(count):
            system = SYSTEMS[turn % len(SYSTEMS)].id
            folder, log = self.place(f"disk-{turn}")
            code = ended(start(system, folder, log=log, limit=int(10 ** self.rng.uniform(2.5, 5.2))))
            said = log.read_text() if log.exists() else ""
            again = ended(start(system, folder, "--resume", log=log))
            self.hold("full disk", system, folder, log, (code not in (0, 1, 2), f"exit code {code}: {said[-300:]}"),
                      (again != 0, f"resumed with exit code {again}"))  # fmt: skip
        return count

    def interrupts(self, count):
        """Ctrl-C or SIGTERM: 130 or 143, a line that says how to continue, and that continues."""
        for turn in range(count):
            system = SYSTEMS[turn % len(SYSTEMS)].id
            folder, log = self.place(f"interrupted-{turn}")
            sign, expected = self.rng.choice([(signal.SIGINT, 130), (signal.SIGTERM, 143)])
            child = start(system, folder, log=log)
            time.sleep(self.rng.uniform(0.3, 0.7) * self.seconds[system])
            os.kill(child, sign)
            code = ended(child)
            said = log.read_text()
            again = ended(start(system, folder, "--resume", log=log))
            self.hold("interrupt", system, folder, log, (code not in (0, expected), f"{code}, not {expected}"),
                      (code == expected and "--resume" not in said, f"does not say how to continue: {said[-300:]}"),
                      (again != 0, f"resumed with exit code {again}"))  # fmt: skip
        return count

    def two_in_one_folder(self, count):
        """Two programs in one folder: one works, the other is refused in one line."""
        for turn in range(count):
            system = SYSTEMS[turn % len(SYSTEMS)].id
            folder, log = self.place(f"two-{turn}")
            first = start(system, folder, log=log)
            time.sleep(self.rng.uniform(0.05, 0.4) * self.seconds[system])
            second = ended(start(system, folder, "--resume", log=self.folder / "second.log"))
            code = ended(first)
            self.hold("two programs", system, folder, log, (second not in (0, 2), f"the second ended with {second}"),
                      (code != 0, f"the first ended with {code}"))  # fmt: skip
        return count


def run(kills, others, seed, out):
    """All trials, and the file of what was found."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        trials = Trials(Path(name), seed)
        counts = {
            "kills": trials.kills(kills),
            "full disks": trials.disks(others),
            "interrupts": trials.interrupts(others),
            "two programs in one folder": trials.two_in_one_folder(others),
        }
        found = counts | {"problems": trials.problems, "seed": seed, "systems": [system.id for system in SYSTEMS],
                          "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
    text = json.dumps(found, indent=1, ensure_ascii=True).replace(name, "FOLDER")
    Path(out).write_text(text + "\n")
    return int(bool(trials.problems))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "robustness-kills.json"))
    options = parser.parse_args()
    modules = [(known.recipe, known.commands) for known in SYSTEMS] + [tenfold.lightning_task]  # imported once
    sys.exit(run(options.kills, options.others, options.seed, options.out))
