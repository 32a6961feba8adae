"""Command lines, settings, configurations, data and model folders that nobody should give the program.

    python benchmarks/robustness_inputs.py [--cases 2000] [--seed 0] [--minutes 30] [--resume]

Each case must end with exit code 0 or 2, with one line where it is 2, in at most 15 seconds of the processor's time or
240 of the clock's, without a traceback and without asking for gigabytes, and what has no meaning must be refused.
Training itself is replaced by a mark, so that a case costs milliseconds. The cases run in forked processes, so that a
crash is seen; a case is made by its number and the seed alone, and ``--only NUMBER`` tries it again. What is found is
written as it is found.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

from forked_runs import finished_runs
from own_data import OWN
from systems_for_tests import CASES

from tenfold.catalog import SYSTEMS, find_system
from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.run import Run

SECONDS = 15
CLOCK_SECONDS = 240
MEMORY = 6 * 2**30
LIMITS = (0, 1, 2, 10, 11, 12, 13)
NUMBERS = ["-1", "0", "nan", "inf", "-inf", "1e400", str(2**64), "0.5", "-0.5", "1e-320", "1000000000000"]
WORDS = ["", " ", "null", "[]", "{}", "true", "maybe", "[1, 2", "{a:", "[[[]]]", "&a [*a]", "None", "1;2", "~", "é京",
         "!!python/object/apply:os.system [ls]", "%s%n", "--", "-", "=", "a\x1b[2Jb", "\u202e", "x" * 300]  # fmt: skip
PLACES = ["../..", "/", "/dev/null", "/dev/zero", "nowhere", "a\0b", "/proc/self/mem", "~root", "file:///etc/passwd"]
NASTY = [*NUMBERS, *WORDS, *PLACES]
MEANINGLESS = {int: ["-1", "nan", str(2**70), "0.5", "[]"], float: ["nan", "inf", "-inf", "1e400", "{}"],
               bool: ["maybe", "2", "[]"]}  # fmt: skip


class Reached(UserError):
    """The settings were accepted: training would begin now."""


class Slow(BaseException):
    """A case took too long."""


@dataclasses.dataclass
class Case:
    """A command line, and whether it has no meaning and must be refused."""

    arguments: list[str]
    must_refuse: bool = False


class Maker:
    """Makes a case in a folder.

    Args:
        rng: what it is drawn from.
        folder: empty; the case's files go there, and it is the working directory.
        runs: a finished run by system.
    """

    def __init__(self, rng, folder, runs):
        self.rng, self.folder, self.runs = rng, folder, runs
        self.system = find_system(rng.choice(sorted(runs)))

    def run(self, *more):
        """A command that trains."""
        return ["run", self.system.id, "--out", str(self.folder / "run"), *more]

    def command_line(self):
        """A command with options of the right names and values of the wrong kinds, or words in the wrong places."""
        rng, files = self.rng, self.files_of_own()
        places = [*map(str, self.runs.values()), *files, "--out", "--to", "onnx", "--help", str(self.folder / "new")]
        choice = rng.random()
        if choice < 0.5:
            names = [name for name, *_ in settings_of(self.system)]
            chosen = rng.sample(names, rng.randint(1, 2))
            return Case(self.run(*(f"--{name}={rng.choice(NASTY)}" for name in chosen)))
        if choice < 0.75:
            words = ["run", "evaluate", "predict", "export", "report", "import", "list", "completion", self.system.id]
            return Case([rng.choice(words), *rng.choices([*NASTY, *places], k=rng.randint(0, 4))])
        verb = rng.choice([*self.system.commands.VERBS, "--help"])
        return Case([self.system.id, verb, *rng.choices([*NASTY, *places], k=rng.randint(0, 4))])

    def files_of_own(self):
        """Paths of data of one's own, and of what lies in a run."""
        OWN[self.system.id](self.folder / "own") if self.system.id in OWN else []
        own = sorted(path for path in (self.folder / "own").rglob("*"))
        run = sorted(path for path in self.runs[self.system.id].iterdir() if path.is_file())
        return [str(path) for path in [*self.rng.sample(own, min(6, len(own))), *run]]

    def setting_without_meaning(self):
        """One setting with a value that has no meaning for its kind."""
        found = []
        for name, value, kind in settings_of(self.system):
            if get_origin(kind) is Literal:
                found.append((name, ["frobnicate", "[]", "-1"]))
            elif type(value) in MEANINGLESS:
                found.append((name, MEANINGLESS[type(value)]))
            elif value is None and kind in MEANINGLESS:
                found.append((name, MEANINGLESS[kind]))
        name, values = self.rng.choice(found)
        return Case(self.run(f"--{name}={self.rng.choice(values)}"), must_refuse=True)

    def configuration(self):
        """A configuration file: one of a run, damaged, or something else."""
        rng = self.rng
        text = (self.runs[self.system.id] / "config.yaml").read_bytes()
        choice = rng.randint(0, 4)
        if choice == 0:
            text = damaged(rng, text)
        elif choice in (1, 2):
            lines = text.decode().splitlines()
            place = rng.randrange(len(lines))
            lines[place] = lines[place].split(":")[0] + ": " + rng.choice(NASTY)
            text = "\n".join(lines).encode(errors="surrogateescape")
        elif choice == 3:
            others = [b"", b"- 1", b"3", b"a: " * 5000, b"\xff\xfe", b"a: &a [*a]", b"system: nope", b"data: null",
                      b"[" * 100_000, b"{a: " * 3000, b"seed: " + b"9" * 5000, b"? [a]\n: b", b"\0",
                      b"seed: 0\nseed: 1",
                      b"!!timestamp 2001-01-01", b"preset: [tiny]", b"system: {a: b}", b"<<: {seed: 1}"]  # fmt: skip
            text = rng.choice(others)
        path = self.folder / "config.yaml"
        path.write_bytes(text)
        if rng.random() < 0.3:  # as a run's own, on resuming
            (self.folder / "run").mkdir()
            path.rename(self.folder / "run" / "config.yaml")
            return Case([*self.run("--resume"), *CASES[self.system.id].fast])
        return Case(self.run("--config", str(path)))

    def data(self):
        """Data of one's own, one file of which is damaged, exchanged or missing."""
        rng = self.rng
        if self.system.id not in OWN:
            return self.configuration()
        settings = OWN[self.system.id](self.folder / "own")
        files = sorted(path for path in (self.folder / "own").rglob("*") if path.is_file())
        path = rng.choice(files)
        text = path.suffix in (".tsv", ".csv", ".json", ".jsonl", ".txt")
        choice, must_refuse = rng.randint(0, 6), False
        content = path.read_bytes()
        if choice == 0:
            path.write_bytes(b"")
            must_refuse = True
        elif choice == 1:
            path.write_bytes(content[: int(len(content) * rng.uniform(0.05, 0.7))])
            must_refuse = not text  # half a table is a table
        elif choice == 2:
            path.write_bytes(damaged(rng, content))
        elif choice == 3:
            path.unlink()
            rng.choice(
                [path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(path), lambda: None]
            )()
        elif choice == 4:
            path.write_bytes(rng.choice(OTHERS))
            must_refuse = not text
        elif text:
            lines = content.split(b"\n")
            place = rng.randrange(len(lines))
            lines[place] = changed_line(rng, lines[place])
            path.write_bytes(b"\n".join(lines))
        else:
            path.rename(
                path.with_name(rng.choice(["a\x1b[2Jb", "\udcff", " ", "x" * 200, "-rf", "\u202e"]) + path.suffix)
            )
        return Case(self.run(*settings), must_refuse)

    def model_folder(self):
        """A model or run whose files were damaged or changed by somebody."""
        rng, copy = self.rng, self.folder / "model"
        left_out = shutil.ignore_patterns("steps", "report.html", "*.ckpt", "export")
        shutil.copytree(self.runs[self.system.id], copy, ignore=left_out, symlinks=True)
        files = sorted(p for p in copy.rglob("*") if p.is_file() and p.suffix not in (".html", ".txt", ".png"))
        named = [path for path in files if path.name in ("model.json", "config.yaml", "results.json")]
        path = rng.choice(named if rng.random() < 0.6 else files)
        content, must_refuse = path.read_bytes(), False
        commands = [["evaluate"], ["predict", *self.inputs()], ["report", *self.out()],
                    ["export", "--to", "safetensors", *self.out()]]  # fmt: skip
        command, *rest = rng.choices(commands, weights=[1, 3, 1, 2])[0]
        choice = rng.randint(0, 5)
        if choice == 0:
            path.write_bytes(damaged(rng, content))
            must_refuse = path == copy / "model.safetensors" and command != "report" and path.read_bytes() != content
        elif choice == 1:
            path.unlink()
        elif choice == 2:
            path.unlink()
            rng.choice([path.mkdir, lambda: path.symlink_to("/etc/passwd"), lambda: path.symlink_to("/dev/zero")])()
        elif path.suffix == ".json":
            path.write_text(json.dumps(changed(rng, json.loads(content))))
        elif path.suffix == ".yaml":
            lines = content.decode().splitlines()
            place = rng.randrange(len(lines))
            lines[place] = lines[place].split(":")[0] + ": " + rng.choice(NASTY)
            path.write_text("\n".join(lines), errors="surrogateescape")
        return Case([command, str(copy), *rest], must_refuse)

    def inputs(self):
        """What ``predict`` takes."""
        return [str(value) for value in CASES[self.system.id].inputs(self.folder)]

    def out(self):
        """Options that name a new folder."""
        return ["--out", str(self.folder / "out")]

    def input_file(self):
        """A file for ``predict`` that is damaged, or is none of the kind."""
        rng = self.rng
        kinds = [".png", ".jpg", ".npy", ".npz", ".csv", ".tsv", ".parquet", ".txt", ".json", ".jsonl", ".onnx", ""]
        path = self.folder / f"input{rng.choice(kinds)}"
        path.write_bytes(rng.choice(OTHERS))
        (right,) = self.inputs()[:1]
        if Path(right).is_file() and rng.random() < 0.4:
            path = Path(right)
            path.write_bytes(damaged(rng, path.read_bytes()))
        given = rng.choice([str(path), str(path), str(self.folder), *PLACES, "x" * 300, "a, b", "?"])
        return Case(["predict", str(self.runs[self.system.id]), given])


KINDS = {"command line": Maker.command_line, "setting without meaning": Maker.setting_without_meaning,
         "configuration": Maker.configuration, "data": Maker.data, "model folder": Maker.model_folder,
         "input file": Maker.input_file}  # fmt: skip
OTHERS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"GIF89a", b"a,b\n1", b"\0" * 64,
          b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 99999), }",
          b"PAR1", b"%PDF-1.4", b"\x1f\x8b\x08", bytes(range(256)), b"P6 99999 99999 255\n", b"\x80\x04."]  # fmt: skip


def settings_of(system):
    """Dotted name, value in preset tiny and type of every setting; of an annotated or optional type, the plain one."""

    def of(config, prefix):
        hints = get_type_hints(type(config))
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                yield from of(value, f"{prefix}{field.name}.")
            else:
                plain = [kind for kind in get_args(hints[field.name]) if kind is not type(None)]
                optional = type(None) in get_args(hints[field.name]) and len(plain) == 1
                yield prefix + field.name, value, plain[0] if optional else hints[field.name]

    return list(of(system.settings.PRESETS["tiny"], ""))


def damaged(rng, content):
    """The bytes cut short, with some exchanged, or with a piece taken out."""
    content = bytearray(content)
    choice = rng.randint(0, 2)
    if choice == 0 or not content:
        return bytes(content[: rng.randint(0, max(len(content) - 1, 0))])
    if choice == 1:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    else:
        place = rng.randrange(len(content))
        del content[place : place + rng.randint(1, 200)]
    return bytes(content)


def changed_line(rng, line):
    """A line of a table or of JSON with something else in it."""
    choice = rng.randint(0, 5)
    if choice == 0:
        return b""
    if choice == 1:
        return line + rng.choice([b"\t1", b",1", b"\t", b"}", b"\0", b"\xff"])
    if choice == 2:
        return rng.choice([b"nan\tnan\tnan", b"\t\t", b"{}", b"[]", b"null", b"1", b'{"query": null}', b"#", b"\xe9"])
    cells = line.split(b"\t")
    cells[rng.randrange(len(cells))] = rng.choice([b"", b" ", b"null", b"NaN", b"9" * 400, b"\x1b[2J", b"a" * 70_000])
    return b"\t".join(cells)


def changed(rng, value):
    """The value with one part of it replaced, taken away or renamed."""
    hostile = [None, -1, 1e308, float("nan"), "../../etc", "http://x", [], {}, "timm/x", "a\x1b[2Jb", True, 10**30,
               [[[[]]]], 2**31, 10**9, [10**9], 0, "", "x" * 10_000]  # fmt: skip
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.1:
            return {(rng.choice(["pretrained", "factory", "x"]) if k == key else k): v for k, v in value.items()}
        return value | {key: changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return [*value[:place], changed(rng, value[place]), *value[place + 1 :]]
    return rng.choice(hostile)


def judge(case):
    """Run one case in this process; gives what is wrong with how it ended, or nothing."""
    out, err = io.StringIO(), io.StringIO()

    def late(signum, frame):
        raise Slow

    for sign, clock, seconds in ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
                                 (signal.SIGALRM, signal.ITIMER_REAL, CLOCK_SECONDS)):  # fmt: skip
        signal.signal(sign, late)
        signal.setitimer(clock, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(case.arguments)
    except Slow:
        return "slow: " + traceback.format_exc(limit=-4)[-800:]
    except BaseException:
        return "traceback: " + traceback.format_exc(limit=-4)[-800:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    said = err.getvalue()
    if Reached.__name__ in said:
        return "accepted without meaning" if case.must_refuse else ""
    if code not in LIMITS:
        return f"exit code {code}"
    if case.must_refuse and code == 0:
        return "accepted without meaning"
    lines = [line for line in said.splitlines() if line.startswith("tenfold: ") and "warning" not in line[:20]]
    if code == 2 and (len(lines) != 1 or said.splitlines()[-1:] != lines) and "usage:" not in out.getvalue():
        return f"{len(lines)} lines: {said[:400]}"
    if "Traceback" in said:
        return f"traceback: {said[-600:]}"
    if any(ord(c) < 32 and c not in "\n\t" for c in said):
        return f"control characters: {said[:200]!r}"
    return ""


def reached(*arguments, **named):
    """Takes the place of training: the settings and the data were accepted."""
    raise Reached(Reached.__name__)


def examine(seed, numbers, runs, report=lambda line: None):
    """Make and judge the cases of these numbers; gives a row for each."""
    rows, started = [], Path.cwd()
    expect, step, Run.expect, Run.step = Run.expect, Run.step, reached, reached
    try:
        for number in numbers:
            rng = random.Random(f"{seed}/{number}")
            kind = rng.choice(list(KINDS))
            with tempfile.TemporaryDirectory() as name:
                os.chdir(name)
                try:
                    case = KINDS[kind](Maker(rng, Path(name), runs))
                    arguments = [argument.replace(name, "FOLDER")[:200] for argument in case.arguments]
                    row = {"number": number, "kind": kind, "must_refuse": case.must_refuse, "arguments": arguments}
                    report(row)
                    row["problem"] = judge(case).replace(name, "FOLDER")
                finally:
                    os.chdir(started)
            rows.append(row)
            report(row)
    finally:
        Run.expect, Run.step = expect, step
    return rows


def examine_apart(seed, numbers, runs, log):
    """``examine`` in a forked process; one that is ended by a signal, or hangs, is a problem of the case that ran."""
    log.write_text("")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("a") as file, Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            examine(seed, numbers, runs, lambda row: print(json.dumps(row), file=file, flush=True))
        os._exit(0)
    last, since = "", time.monotonic()
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if (size := log.stat().st_size) != last:
            last, since = size, time.monotonic()
        if time.monotonic() - since > 2 * CLOCK_SECONDS:  # where no Python runs, the alarm is not heard
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rows = {row["number"]: row for row in lines}
    for row in rows.values():
        row.setdefault("problem", f"the process ended with status {status}")
    return list(rows.values())


def run(cases, seed, minutes, folder, out, resume):
    """All cases, and the file of what was found."""
    began = time.monotonic()
    out = Path(out)
    before = json.loads(out.read_text()) if resume and out.exists() else {}
    counts, refused = Counter(before.get("by_kind", {})), before.get("without_meaning", 0)
    problems, number = before.get("problems", []), before.get("cases", 0)
    with tempfile.TemporaryDirectory() as name:
        runs, _ = finished_runs(Path(folder or name), [system.id for system in SYSTEMS])

        def write():
            seconds = before.get("seconds", 0) + time.monotonic() - began
            found = {"cases": sum(counts.values()), "by_kind": dict(counts), "without_meaning": refused,
                     "problems": problems, "seed": seed, "seconds": round(seconds, 1),
                     "systems": [system.id for system in SYSTEMS]}  # fmt: skip
            out.write_text(json.dumps(found, indent=1).replace(str(folder or name), "RUNS") + "\n")
            print(f"{found['cases']} cases, {len(problems)} problems, {seconds:.0f} s", flush=True)

        for row in list(problems):  # whether they are mended
            (again,) = examine_apart(seed, [row["number"]], runs, Path(name) / "log")[:1]
            problems = [other for other in problems if other is not row] + [again] * bool(again["problem"])
            write()
        while number < cases and time.monotonic() - began < 60 * minutes:
            rows = examine_apart(seed, range(number, min(number + 50, cases)), runs, Path(name) / "log")
            number = max(row["number"] for row in rows) + 1
            counts.update(row["kind"] for row in rows)
            refused += sum(row["must_refuse"] for row in rows)
            problems += [row for row in rows if row["problem"]]
            write()
    return int(bool(problems) or number < cases)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--resume", action="store_true", help="go on where the file of what was found ends")
    parser.add_argument("--runs", help="folder with finished runs by system, made where it is empty")
    parser.add_argument("--only", type=int, nargs="*", help="try these cases alone, and print what was found")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "robustness-inputs.json"))
    options = parser.parse_args()
    if options.only:
        found, _ = finished_runs(Path(options.runs), [system.id for system in SYSTEMS])
        for row in examine(options.seed, options.only, found):
            print(json.dumps(row, indent=1))
        sys.exit()
    sys.exit(run(options.cases, options.seed, options.minutes, options.runs, options.out, options.resume))
