"""Modules that tests share are found beside the tests; processes that share the machine take a thread each."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

from photos import photos  # noqa: F401 (a fixture, found by its name)
