"""Tables of backbone search."""

import json

from tables.markdown import RESULTS, claims_of, named_table, table
from tenfold.results import load_results


def _read(name: str) -> dict:
    return json.loads((RESULTS / f"backbone-search-{name}.json").read_text(encoding="utf-8"))


def _preset(preset: str) -> str:
    results = load_results(RESULTS / f"backbone-search-{preset}.json")
    facts, cost = results.environment, results.cost
    searches = {name.removeprefix("search: "): own for name, own in results.metrics.items() if "search: " in name}
    rows = [
        [name, f"{own['candidates']:.0f}", f"{own['hypervolume']:.4f}", f"{own['front']:.1f}", f"{own['seconds']:.0f}"]
        for name, own in searches.items()
    ]
    seeds = results.metrics["found"]["test_map_by_seed"]
    pairs = "seeds" if len(seeds) > 1 else "the images of one search"
    seed, short = results.metrics["seed"], results.metrics["short scores"]
    return "\n\n".join(
        [
            f"`tenfold run backbone-search --preset {preset}`: {facts['data']}, {facts['train_images']} training "
            f"images, {cost.seconds / 60:.1f} minutes on {facts['threads']} thread(s) a worker. {results.summary}",
            named_table(results, "arms"),
            f"Searches, means over seeds. The seed detector reaches {100 * seed['search_map']:.1f} mAP on the search "
            f"split after {seed['train_seconds']:.0f} s. Kendall's tau of a candidate's score before and after tuning: "
            f"{short['kendall_tau_untuned_tuned']:.2f}; standard deviation of one genome's short score over three "
            f"seeds: {100 * short['sd_of_one_genome_over_seeds']:.1f} points.",
            table(["search", "candidates", "hypervolume", "front", "candidates' seconds"], rows),
            f"Claims, paired over {pairs} with 95 % intervals (not settled: the interval includes the target):",
            claims_of(results),
        ]
    )


def small() -> str:
    """BCCD."""
    return _preset("small")


def nuclei() -> str:
    """Nuclei."""
    return _preset("small-nuclei")


def assignment() -> str:
    """SimOTA over a batch against the published loop."""
    results = _read("assignment")
    rows = [
        [f"{r['side']} x {r['side']}", r["classes"], r["boxes_at_most"], f"{r['loop_ms']:.1f} ms",
         f"{r['batch_ms']:.1f} ms", f"{r['times_faster']:.2f}", "yes" if r["same_cells"] else "**no**"]
        for r in results["rows"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"`python benchmarks/backbone_search_assignment.py`: {results['batch_size']} images, one thread, "
            f"{results['clock']}.",
            table(
                ["input", "classes", "boxes at most", "published loop", "tenfold", "times faster", "same cells"], rows
            ),
        ]
    )


def speed() -> str:
    """A training step, exported networks, the look-up table."""
    results, parts = _read("speed"), []
    if "step" in results:
        step = results["step"]
        parts.append(
            f"`python benchmarks/backbone_search_speed.py` (one thread; {results['clock']}). A training step on 16 "
            f"images of 128 x 96: {step['tenfold']:.0f} ms against {step['plain']:.0f} ms of the plain form (images "
            f"one by one, the published loop of assignment), {step['times_faster']:.2f} times faster, the same loss."
        )
    if "latency" in results:
        rows = [
            [name, f"{r['multiply_adds'] / 1e6:.0f}", f"{r['parameters'] / 1e3:.0f}", f"{r['float_ms']:.2f}",
             f"{r['int8_ms']:.2f}" if "int8_ms" in r else r.get("int8_refused", "")]
            for name, r in results["latency"]["networks"].items()
        ]  # fmt: skip
        side = results["latency"]["side"]
        parts += [
            f"Exported networks at {side} x {side}, onnxruntime, suppression included:",
            table(["network", "multiply-adds (M)", "parameters (k)", "float (ms)", "INT8 (ms)"], rows),
        ]
    if "table" in results:
        found = results["table"]
        verdict = (
            f"rank correlation {found['rank_correlation']:.3f}: taken"
            if found["rank_correlation"] is not None
            else f"refused: {found['refused']}"
        )
        parts.append(
            f"Look-up table of latency on {found['networks']} random networks: {found['entries']} blocks measured in "
            f"{found['seconds_table']:.0f} s, whole networks in {found['seconds_whole']:.0f} s; {verdict}. "
            f"Multiply-adds alone order them with {found['rank_correlation_of_multiply_adds']:.3f}."
        )
    return "\n\n".join(parts)


def faults() -> str:
    """Workers that were killed."""
    results = _read("faults")
    rows = [
        [r["storage"], r["mode"], r["killed"], r["candidates"], r["lost"], r["finished_twice"] + r["genomes_twice"],
         {True: "yes", False: "**no**", None: "-"}[r["same_archive"]], "yes" if r["other_seed_refused"] else "**no**"]
        for r in results["rows"]
    ]  # fmt: skip
    head = ["storage", "mode", "killed", "candidates", "lost", "twice", "same archive", "another seed refused"]
    return "\n\n".join(
        [
            f"`python benchmarks/backbone_search_faults.py`: {results['workers']} workers on one study, one of them "
            "killed with SIGKILL at random and begun anew.",
            table(head, rows),
        ]
    )


def ablations() -> str:
    """What each part gives."""
    results, parts = _read("ablations"), []
    parts.append(
        f"`python benchmarks/backbone_search_ablations.py`: {results['data']}, one seed detector, scores on the search "
        "split; one seed, so that only large differences mean something."
    )
    if "mapping" in results:
        rows = results["mapping"]["rows"]
        columns = [name for name in rows[0] if name not in ("change", "rule")]
        cells = [[row["change"], row["rule"], *(f"{row[column]:.3f}" for column in columns)] for row in rows]
        parts += [
            f"How candidates inherit (mAP; the seed has {results['mapping']['seed']:.3f}):",
            table(["change", "rule", *columns], cells),
        ]
    if "fidelity" in results:
        tau = ", ".join(f"{name} {value:.2f}" for name, value in results["fidelity"]["tau"].items())
        parts.append(
            f"Kendall's tau of cheap scores with the score after a long tuning, {results['fidelity']['genomes']} "
            f"random genomes: {tau}."
        )
    for part, title in (("searches", "Searches with as many candidates"), ("genes", "Searches over fewer genes")):
        if part in results:
            rows = [
                [name, *((r["best"], r["hypervolume"], r["front"]) if "best" in r else (r["none"], "", ""))]
                for name, r in results[part].items()
            ]
            parts += [f"{title}:", table(["search", "best mAP", "hypervolume", "front"], rows)]
    if "seed" in results:
        rows = [[name, *(f"{value:.3f}" for value in r.values())] for name, r in results["seed"].items()]
        head = list(next(iter(results["seed"].values())))
        parts += ["One network reached from two seeds:", table(["from", *head], rows)]
    return "\n\n".join(parts)


PARTS = {
    "small": small,
    "nuclei": nuclei,
    "assignment": assignment,
    "speed": speed,
    "faults": faults,
    "ablations": ablations,
}
"""Parts of the room's README, by the name in the comment before them."""
