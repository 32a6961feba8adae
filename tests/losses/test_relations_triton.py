"""The Triton form: its arithmetic in Triton's interpreter, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from tenfold.losses import relation_kl

pytest.importorskip("triton")

_CHECK = """
import torch
from tenfold.losses import relation_kl
from tenfold.losses.relations_triton import triton_kl
torch.manual_seed(0)
device = {device!r}
for tokens, width_s, width_t, kind, tolerance in {cases}:
    for same in (False, True):
        u, w = (torch.randn(2, 2, tokens, width_t, device=device).to(kind) for _ in range(2))
        found = []
        for form in ("triton", "direct"):
            torch.manual_seed(1)
            a, b = (torch.randn(2, 2, tokens, width_s, device=device).to(kind).requires_grad_() for _ in range(2))
            pair = (a, a, u, u) if same else (a, b, u, w)
            scales = width_s**-0.5, width_t**-0.5
            loss = triton_kl(*pair, *scales) if form == "triton" else relation_kl(*pair, kernel="direct")
            (3 * loss).backward()
            found.append([loss.detach(), a.grad.float()] + ([] if same else [b.grad.float()]))
        for ours, direct in zip(*found):
            error = (ours - direct).norm() / direct.norm()
            assert error < tolerance, (tokens, width_s, width_t, kind, same, error)
print("equal")
"""


def test_arithmetic_in_the_interpreter():
    cases = "[(5, 3, 4, torch.float32, 1e-5), (70, 20, 16, torch.float32, 1e-5)]"
    code = _CHECK.format(device="cpu", cases=cases)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "equal", ran.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equal_to_the_direct_form_on_a_gpu():
    cases = [
        (197, 48, 64, torch.float32, 1e-4),
        (197, 48, 64, torch.bfloat16, 1e-2),
        (1025, 16, 64, torch.bfloat16, 1e-2),
    ]
    code = _CHECK.format(device="cuda", cases=str(cases))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "equal", ran.stderr[-2000:]


def test_the_automatic_choice_on_cpu_is_not_triton(monkeypatch):
    import tenfold.losses.relations_triton as module

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(module, "triton_kl", refuse)
    q = torch.randn(1, 1, 4, 8)
    assert relation_kl(q, q, q, q) < 1e-6
