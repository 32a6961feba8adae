"""Programs of tests that need a process of their own, forked from one that has imported the heavy packages once.

A fresh interpreter imports torch and Lightning anew, which takes longer than most of these programs do.

    program = warm_process("lightning").start(TENFOLD, ["tenfold", "run", ...])
    program.kill()
    program.wait() -> returncode; program.out(), program.err(): what it has printed
"""

import atexit
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

TENFOLD = "import sys; from tenfold.cli import main; raise SystemExit(main(sys.argv[1:]))"
SCRIPT = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"

_KINDS = {
    "torch": ["torch"],
    "lightning": ["torchmetrics", "tenfold.training.lightning_task", "tenfold.report", "tenfold.cli"],
}


class Program:
    """A running program; see ``warm_process``."""

    def __init__(self, server, pid, folder):
        self._server, self.pid, self._folder, self.returncode = server, pid, folder, None

    def poll(self):
        """The exit code, negative for a signal; ``None`` while it runs."""
        return self._ask("poll")

    def wait(self):
        """Wait for the end; gives the exit code."""
        return self._ask("wait")

    def kill(self):
        """As kill -9 does."""
        os.kill(self.pid, signal.SIGKILL)

    def out(self):
        """What it has printed."""
        return (self._folder / "out").read_text()

    def err(self):
        """What it has printed on standard error."""
        return (self._folder / "err").read_text()

    def _ask(self, how):
        if self.returncode is None:
            self.returncode = self._server.ask({"do": how, "pid": self.pid})
        return self.returncode


class Server:
    """The process that programs are forked from."""

    def __init__(self, modules):
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        self._printed = tempfile.TemporaryDirectory()
        self._count = itertools.count()
        atexit.register(self._process.kill)

    def start(self, code, arguments, **environment):
        """Start a program.

        Args:
            code: Python source.
            arguments: ``sys.argv``.
            environment: variables beside those of the tests.
        """
        folder = Path(self._printed.name) / str(next(self._count))
        folder.mkdir()
        request = {
            "do": "start",
            "code": code,
            "argv": [str(argument) for argument in arguments],
            "cwd": str(Path.cwd()),
        }
        return Program(self, self.ask(request | {"env": environment, "folder": str(folder)}), folder)

    def ask(self, request):
        """One line of JSON there, one back."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def on_two_processes(code, arguments):
    """Start a program in two processes of one group, as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    group |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    programs = [
        warm_process("lightning").start(code, arguments, RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank in range(2)
    ]
    return Pair(programs)


class Pair:
    """Two programs of a group."""

    def __init__(self, programs):
        self._programs = programs

    def out(self):
        """Wait for both; what the first has printed."""
        assert [program.wait() for program in self._programs] == [0, 0], self._programs[0].err()
        return self._programs[0].out()


@cache
def warm_process(kind):
    """The server that has imported ``torch`` alone, or ``lightning`` and all that trains; one of each per process."""
    return Server(_KINDS[kind])


def _serve():
    for module in sys.argv[1:]:
        __import__(module)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                answers.close()
                _become(request)
            answer = pid
        else:
            done, status = os.waitpid(request["pid"], os.WNOHANG if request["do"] == "poll" else 0)
            answer = os.waitstatus_to_exitcode(status) if done else None
        print(json.dumps(answer), file=answers, flush=True)


def _become(request):
    """Run the program in this fork, and end."""
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(Path(request["folder"]) / name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        sys.argv = request["argv"]
        exec(compile(request["code"], "<program>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
