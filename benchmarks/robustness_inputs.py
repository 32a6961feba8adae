"""Command lines, configurations, model folders and files that nobody should give the program: does it keep its promise?

    python benchmarks/robustness_inputs.py [--cases 2000] [--seed 0] [--out benchmarks/results/robustness-inputs.json]

Each case must end with exit code 0 or 2, with one line where it is 2, in at most 15 seconds, without a traceback, and a
setting without meaning must be refused. Training itself is replaced by a mark, so that a case costs milliseconds; the
cases run in forked processes, so that a crash is seen.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

from systems_for_tests import CASES

from tenfold.catalog import SYSTEMS, find_system
from tenfold.cli import main
from tenfold.errors import UserError

SECONDS = 15
NASTY = [
    *[
        "",
        " ",
        "null",
        "[]",
        "{}",
        "-1",
        "0",
        "nan",
        "inf",
        "-inf",
        "1e400",
        str(2**64),
        "true",
        "maybe",
        "[1, 2",
        "{a:",
    ],
    *["../..", "/", "/dev/null", "nowhere", "x" * 300, "a\x1b[2Jb", "\u202e", "é京", "0.5", "-0.5", "1e-320", "[[[]]]"],
    *["&a [*a]", "!!python/object/apply:os.system [ls]", "%s%n", "--", "-", "=", "None", "1;2", "~"],
]
MEANINGLESS = {"int": ["-1", "nan", str(2**70), "0.5"], "float": ["nan", "inf", "-inf", "1e400"]}


class Reached(UserError):
    """The settings were accepted: training would begin now."""


class Slow(Exception):
    """A case took too long."""


def settings_of(config, prefix=""):
    """Dotted names and values of all settings."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def command_line(rng, folder, runs):
    """A command with options of the right names and values of the wrong kinds."""
    system = find_system(rng.choice(sorted(runs)))
    choice = rng.random()
    if choice < 0.6:
        names = [name for name, _ in settings_of(system.settings.PRESETS["tiny"])]
        chosen = rng.sample(names, rng.randint(1, 2))
        arguments = ["run", system.id, "--out", str(folder / "run"), *(f"--{n}={rng.choice(NASTY)}" for n in chosen)]
    elif choice < 0.8:
        words = ["run", "evaluate", "predict", "export", "report", "import", "tour", "list", "completion", system.id]
        arguments = [
            rng.choice(words),
            *rng.sample([*NASTY, *map(str, runs.values()), "--to", "onnx"], rng.randint(0, 3)),
        ]
        if arguments[0] == "tour":
            arguments += ["--nope"]
    else:
        verb = rng.choice(list(system.commands.VERBS) or ["--help"])
        arguments = [system.id, verb, *rng.sample(NASTY, rng.randint(0, 3))]
    return arguments, False


def meaningless(rng, folder, runs):
    """One setting with a value that has no meaning for its kind; must be refused."""
    system = find_system(rng.choice(sorted(runs)))
    kinds = {bool: None, int: "int", float: "float"}
    found = [(n, kinds.get(type(v))) for n, v in settings_of(system.settings.PRESETS["tiny"]) if kinds.get(type(v))]
    name, kind = rng.choice(found)
    return ["run", system.id, "--out", str(folder / "run"), f"--{name}={rng.choice(MEANINGLESS[kind])}"], True


def configuration(rng, folder, runs):
    """A configuration file: one of a run, damaged, or something else."""
    system = find_system(rng.choice(sorted(runs)))
    text = bytearray((runs[system.id] / "config.yaml").read_bytes())
    choice = rng.randint(0, 5)
    if choice == 0:
        text = text[: rng.randint(0, len(text))]
    elif choice == 1:
        for _ in range(rng.randint(1, 5)):
            text[rng.randrange(len(text))] = rng.randrange(256)
    elif choice == 2:
        lines = text.decode().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = lines[place].split(":")[0] + ": " + rng.choice(NASTY)
        text = "\n".join(lines).encode()
    elif choice == 3:
        text = rng.choice(
            [b"", b"- 1", b"3", b"a: " * 5000, b"\xff\xfe", b"a: &a [*a]", b"system: nope", b"data: null"]
        )
    path = folder / "config.yaml"
    path.write_bytes(bytes(text))
    return ["run", system.id, "--config", str(path), "--out", str(folder / "run")], False


def model_folder(rng, folder, runs):
    """A model or run whose files were damaged or changed by somebody."""
    system = find_system(rng.choice(sorted(runs)))
    copy = folder / "model"
    shutil.copytree(runs[system.id], copy, ignore=shutil.ignore_patterns("steps", "report.html"))
    files = [
        path for path in copy.iterdir() if path.is_file() and path.suffix in (".json", ".safetensors", ".yaml", ".cset")
    ]
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    choice = rng.randint(0, 4)
    if choice == 0:
        content = content[: rng.randint(0, max(len(content) - 1, 0))]
    elif choice == 1 and content:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif choice == 2:
        path.unlink()
        content = None
    elif path.suffix == ".json":
        content = json.dumps(changed(rng, json.loads(content))).encode()
    if content is not None:
        path.write_bytes(bytes(content))
    inputs = [str(value) for value in CASES[system.id].inputs(folder)]
    out = ["--out", str(folder / "out")]
    commands = [["evaluate"], ["predict", *inputs], ["export", *out], ["export", "--to", "safetensors", *out]]
    command, *rest = rng.choice([*commands, ["report", *out]])
    return [command, str(copy), *rest], False


def changed(rng, value):
    """The value with one part of it replaced, taken away or renamed."""
    hostile = [None, -1, 1e308, "../../etc", "http://x", [], {}, "timm/x", "a\x1b[2Jb", True, 10**30, [[[[]]]]]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.1:
            return {(rng.choice(["pretrained", "factory", "x"]) if k == key else k): v for k, v in value.items()}
        return value | {key: changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return [*value[:place], changed(rng, value[place]), *value[place + 1 :]]
    return rng.choice(hostile)


def input_file(rng, folder, runs):
    """A file for ``predict`` that is damaged, or is none of the kind."""
    system = find_system(rng.choice(sorted(runs)))
    content = rng.choice(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", b"PK\x03\x04", os.urandom(200), b"a,b\n1"]
    )
    kinds = [".png", ".jpg", ".npy", ".npz", ".csv", ".tsv", ".parquet", ".txt", ".json", ".onnx", ""]
    path = folder / f"input{rng.choice(kinds)}"
    path.write_bytes(content)
    return [
        "predict",
        str(runs[system.id]),
        rng.choice([str(path), str(folder), "nowhere.png", "x" * 300, "a\0b"]),
    ], False


KINDS = {"command line": command_line, "setting without meaning": meaningless, "configuration": configuration,
         "model folder": model_folder, "input file": input_file}  # fmt: skip


def judge(arguments, must_refuse):
    """Run one case in this process; gives what is wrong with how it ended, or nothing."""
    out, err = io.StringIO(), io.StringIO()

    def late(signum, frame):
        raise Slow

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    except Slow:
        return "slow"
    except BaseException:
        return "traceback: " + traceback.format_exc(limit=-3)[-600:]
    finally:
        signal.alarm(0)
    said = err.getvalue()
    accepted = Reached.__name__ in said
    if accepted:
        return "accepted without meaning" if must_refuse else ""
    if code not in (0, 1, 2, 10, 11, 12):
        return f"exit code {code}"
    lines = [line for line in said.splitlines() if not line.startswith("tenfold: warning")]
    if code == 2 and len(lines) != 1 and "usage:" not in out.getvalue():
        return f"{len(lines)} lines: {said[:300]}"
    if any(ord(c) < 32 and c not in "\n\t" for c in said):
        return f"control characters: {said[:200]!r}"
    return ""


def finished_runs(folder):
    """A finished run of each system, of seconds."""
    runs = {}
    for system in SYSTEMS:
        runs[system.id] = folder / system.id
        assert main(["run", system.id, "--out", str(runs[system.id]), "--quiet", *CASES[system.id].fast]) == 0
    return runs


def reached(config, run):
    """Takes the place of a system's experiment: the settings were accepted, and nothing is trained."""
    raise Reached(Reached.__name__)


def examine(seed, cases, runs, report=lambda line: None):
    """Run the cases of a seed; gives counts by kind and what went wrong."""
    rng = random.Random(seed)
    counts, problems = Counter(), []
    started = Path.cwd()
    for number in range(cases):
        kind = rng.choice(list(KINDS))
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            try:
                arguments, must_refuse = KINDS[kind](rng, Path(name), runs)
                report({"number": number, "kind": kind, "arguments": arguments})
                problem = judge(arguments, must_refuse)
            finally:
                os.chdir(started)
        counts[kind] += 1
        if problem:
            problems.append(
                {"kind": kind, "arguments": [a.replace(name, "FOLDER")[:200] for a in arguments], "problem": problem}
            )
    return counts, problems


def examine_apart(seed, cases, runs, folder):
    """``examine`` in a forked process; a signal that ends it is a problem of the case that ran."""
    log, answer = folder / "log.json", folder / "answer.json"
    child = os.fork()
    if child == 0:
        counts, problems = examine(seed, cases, runs, lambda line: log.write_text(json.dumps(line)))
        answer.write_text(json.dumps([counts, problems]))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        counts, problems = json.loads(answer.read_text())
        return Counter(counts), problems
    case = json.loads(log.read_text())
    return Counter({case["kind"]: case["number"] + 1}), [case | {"problem": f"the process ended with status {status}"}]


def run(cases, seed, out):
    """All cases, and the file of what was found."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = finished_runs(folder)
        for system in SYSTEMS:
            system.recipe.run = reached
        counts, problems, chunk = Counter(), [], 50
        for number in range(0, cases, chunk):
            found, wrong = examine_apart(seed * 100_000 + number, min(chunk, cases - number), runs, folder)
            counts += found
            problems += wrong
            print(f"{sum(counts.values())} cases, {len(problems)} problems", flush=True)
    found = {"cases": sum(counts.values()), "by_kind": dict(counts), "problems": problems, "seed": seed,
             "seconds": round(time.monotonic() - began, 1), "systems": [system.id for system in SYSTEMS]}  # fmt: skip
    Path(out).write_text(json.dumps(found, indent=1, ensure_ascii=True) + "\n")
    return int(bool(problems))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "robustness-inputs.json"))
    options = parser.parse_args()
    sys.exit(run(options.cases, options.seed, options.out))
