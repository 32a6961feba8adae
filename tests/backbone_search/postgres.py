"""A PostgreSQL server of its own, where the server's programs are installed: in a folder, reached by a socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = [shutil.which(name) for name in ("initdb", "pg_ctl")]
AVAILABLE = all(PROGRAMS)


@contextmanager
def postgres_server():
    """Start a server, give the URL of an empty database, stop the server and remove its files.

    PostgreSQL does not run as root: there it runs as the user ``postgres``, whom its packages make.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a socket has at most 107 characters
    options = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    initdb, pg_ctl = PROGRAMS

    def call(*words):
        done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, **options)
        assert done.returncode == 0, done.stderr.decode()

    data = folder / "data"
    try:
        call(initdb, "-D", data, "-U", "tenfold", "-A", "trust", "--locale=C", "--encoding=UTF8", "--no-sync")
        settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c shared_buffers=16MB"
        call(pg_ctl, "-D", data, "-w", "-l", folder / "log", "-o", settings, "start")
        try:
            yield f"postgresql://tenfold@/postgres?host={folder}"
        finally:
            call(pg_ctl, "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
