"""Kills, full disks, interrupts and two programs in one folder, at random moments: is anything lost, is anything wrong?

    python benchmarks/robustness_kills.py [--kills 100] [--others 20] [--seed 0] [--minutes 60] [--resume]

A run of seconds of each system is killed with SIGKILL at moments spread over all of it, and resumed, until it is done:
its results must be those of a run that was left alone, to the bit. Every fourth run works in two worker processes.
Full disks are a small file system of its own where this may be mounted, else a limit on the size of files; Ctrl-C is
SIGINT, and SIGTERM is tried as often. Runs are forked from one process that has imported everything, so that a kill
falls into their work. What is found is written as it is found.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

from forked_runs import ended, finished_runs
from systems_for_tests import CASES, numbers

from tenfold.catalog import SYSTEMS
from tenfold.cli import main

PATIENCE = 20  # times what a run takes when left alone: longer is a hang


class Trials:
    """Runs of all systems that were left alone, and what is held against them.

    Args:
        folder: where runs go.
        seed: of what is random.
        systems: their ids.
        spent: seconds that trials have taken so far, by kind and system.
        whole: folder of the runs that were left alone; made where they are not there.
    """

    def __init__(self, folder, seed, systems, spent, whole):
        self.folder, self.seed, self.systems, self.spent = folder, seed, systems, spent
        self.found, self.problems = Counter(), []
        runs, self.seconds = finished_runs(whole or folder, systems)
        self.whole = {system: numbers(runs[system]) for system in systems}

    def start(self, system, folder, *more, log, limit=None, workers=1):
        """A run in a forked process; what it says goes to ``log``."""
        child = os.fork()
        if child:
            return child
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Path(log).open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        fast = ["--quiet", "--workers", str(workers), *CASES[system].fast]
        code = 1
        try:
            code = main(["run", system, "--out", str(folder), *fast, *more])
        except BaseException:  # it must not go on into the trials themselves
            traceback.print_exc()
        finally:
            os._exit(code)

    def finish(self, system, folder, log, workers=1):
        """A run that is left alone until it ends; gives what is wrong with its exit code and its results."""
        code = ended(
            self.start(system, folder, "--resume", log=log, workers=workers), PATIENCE * self.seconds[system] + 60
        )
        wrong = [] if code == 0 else [f"resumed with exit code {code}" if code is not None else "resuming hangs"]
        if code == 0 and numbers(folder) != self.whole[system]:
            wrong.append("other results")
        return wrong

    def trial(self, kind, system=None):
        """One trial, of the system that has had the least time: every one has its turn, quick ones have more."""
        spent = self.spent.setdefault(kind, {})
        system = system or min(self.systems, key=lambda known: spent.get(known, 0))
        number, began = sum(self.found.values()), time.monotonic()
        self.rng = random.Random(f"{self.seed}/{kind}/{number}/{system}")
        folder, log = self.folder / "run", self.folder / "run.log"
        shutil.rmtree(folder, ignore_errors=True)
        log.write_text("")
        wrong = getattr(self, kind)(system, folder, log)
        spent[system] = spent.get(system, 0) + time.monotonic() - began
        said = log.read_text()
        # A worker that was being started when its run was killed ends in Python's own forkserver, which says so.
        own = [part for part in said.split("Traceback")[1:] if "SemLock._rebuild" not in part]
        wrong += ["a traceback"] * bool(own)
        if wrong:
            row = {"what": kind, "number": number, "system": system, "problems": wrong, "said": said[-1500:]}
            self.problems.append(json.loads(json.dumps(row).replace(str(self.folder), "FOLDER")))

    def kills(self, system, folder, log):
        """Killed again and again, each time resumed, until it is done."""
        more, workers = [], 2 if self.rng.random() < 0.25 else 1
        killed = log.with_name("killed.log")  # workers that have lost their run end as they can
        for _ in range(5):
            child = self.start(system, folder, *more, log=killed, workers=workers)
            code = ended(child, self.rng.uniform(0.02, 0.9) * self.seconds[system])
            if code is not None:  # faster than the first run, which imports what it needs
                self.seconds[system] *= 0.8
                break
            os.kill(child, signal.SIGKILL)
            ended(child)
            self.found["kills"] += 1
            more = ["--resume"]
        return self.finish(system, folder, log, workers=workers)

    def full_disks(self, system, folder, log):
        """A disk that takes no more: one line, and with room again the run goes on."""
        self.found["full_disks"] += 1
        size = int(10 ** self.rng.uniform(3.5, 6))
        with small_disk(folder, size) as grow:
            limit = None if grow else int(10 ** self.rng.uniform(2.5, 5.2))
            code = ended(self.start(system, folder / "run", log=log, limit=limit), PATIENCE * self.seconds[system] + 60)
            said = log.read_text()
            self.found["full_disks_by_mount"] += bool(grow)
            self.found["full_disks_that_stopped_a_run"] += code != 0
            if grow:
                grow()
            wrong = [] if code in (0, 1, 2) else [f"exit code {code}: {said[-300:]}"]
            if code and len([line for line in said.splitlines() if line.startswith("tenfold: ")]) != 1:
                wrong.append("not one line")
            return wrong + self.finish(system, folder / "run", log)

    def interrupts(self, system, folder, log):
        """Ctrl-C or SIGTERM: 130 or 143, a line that says how to continue, and that continues."""
        self.found["interrupts"] += 1
        sign, expected = self.rng.choice([(signal.SIGINT, 130), (signal.SIGTERM, 143)])
        child = self.start(system, folder, log=log, workers=2 if self.rng.random() < 0.25 else 1)
        code = ended(child, self.rng.uniform(0.05, 0.9) * self.seconds[system])
        if code is None:
            os.kill(child, sign)
            code = ended(child, 60)
        if code is None:
            os.kill(child, signal.SIGKILL)
            ended(child)
            return ["an interrupt is not heard"]
        said = log.read_text()
        wrong = [] if code in (0, expected) else [f"{code}, not {expected}"]
        begun = (folder / "config.yaml").exists()  # else there is nothing to continue
        wrong += ["does not say how to continue"] * (code == expected and begun and "--resume" not in said)
        return wrong + self.finish(system, folder, log)

    def two_programs(self, system, folder, log):
        """Two programs in one folder, at once or one after the other: one works, the other is refused in one line."""
        self.found["two_programs"] += 1
        wait = self.rng.choice([0.0, self.rng.uniform(0.0, 0.5) * self.seconds[system]])
        first = self.start(system, folder, log=log)
        time.sleep(wait)
        second = self.start(system, folder, *self.rng.choice([["--resume"], []]), log=log)
        codes = sorted(str(ended(child, PATIENCE * self.seconds[system] + 60)) for child in (first, second))
        wrong = [] if codes in (["0", "0"], ["0", "2"]) else [f"they ended with {' and '.join(codes)}"]
        if len([line for line in log.read_text().splitlines() if line.startswith("tenfold: ")]) > 1:
            wrong.append("not one line")
        return wrong + self.finish(system, folder, log)


@contextmanager
def small_disk(folder, size):
    """A file system of so many bytes; gives what makes it large, or ``None`` where none may be mounted."""
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0

    mounted = mount(f"size={size}")
    try:
        yield (lambda: mount("remount,size=2g")) if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def run(kills, others, seed, minutes, systems, whole, out, resume):
    """All trials, kinds in turn, and the file of what was found."""
    began = time.monotonic()
    out = Path(out)
    before = json.loads(out.read_text()) if resume and out.exists() else {}
    earlier, mended = before.get("problems", []), before.get("mended", [])

    def report(trials):
        counts = dict(Counter(before.get("counts", {})) + trials.found)
        problems = earlier + trials.problems
        found = {"counts": counts, "problems": problems, "mended": mended, "seed": seed, "systems": trials.systems,
                 "seconds": round(before.get("seconds", 0) + time.monotonic() - began, 1),
                 "seconds_spent": trials.spent}  # fmt: skip
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(counts, f"{len(problems)} problems, {time.monotonic() - began:.0f} s", flush=True)
        return counts

    with tempfile.TemporaryDirectory() as name:
        trials = Trials(Path(name), seed, systems, before.get("seconds_spent", {}), whole)
        asked = {"kills": kills, "full_disks": others, "interrupts": others, "two_programs": others}
        for row in list(earlier):  # tried three times more, whether it is mended
            before_it = len(trials.problems)
            for _ in range(3):
                trials.trial(row["what"], row["system"])
            earlier.remove(row)
            mended += [{name: row[name] for name in ("what", "system", "problems")}] * (
                len(trials.problems) == before_it
            )
            report(trials)
        while any(report(trials).get(kind, 0) < count for kind, count in asked.items()):
            for kind, count in asked.items():
                if time.monotonic() - began > 60 * minutes:
                    return 1
                if report(trials).get(kind, 0) < count:
                    trials.trial(kind)
        return int(bool(json.loads(out.read_text())["problems"]))


if __name__ == "__main__":
    known = [system.id for system in SYSTEMS]
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--resume", action="store_true", help="go on where the file of what was found ends")
    parser.add_argument("--runs", help="folder with finished runs by system, made where it is empty")
    parser.add_argument("--systems", nargs="+", default=known, choices=known)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "robustness-kills.json"))
    options = parser.parse_args()
    asked = (options.kills, options.others, options.seed, options.minutes, options.systems, options.runs)
    sys.exit(run(*asked, options.out, options.resume))
