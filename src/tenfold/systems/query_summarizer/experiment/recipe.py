"""Query summarizer: the experiment, read from top to bottom.

Sets; sentence vectors and oracle labels; stage 1 on the large set; for each arm the learning rate, on held-back topics;
stage 2 on the target's few topics, dense and sparse; ROUGE on the test topics; comparison over seeds; delivery. Every
function can be called on its own.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

import tenfold
from tenfold.cost import count_parameters
from tenfold.files import write_atomically
from tenfold.models.folder import save_model
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.sparse import apply_diff
from tenfold.systems.query_summarizer.experiment.comparison import (
    claims_of,
    metrics_of,
    notes_of,
    plots_of,
    summary_of,
    tables_of,
)
from tenfold.systems.query_summarizer.experiment.scores import summary_with
from tenfold.systems.query_summarizer.experiment.settings import BASELINES, PRESETS, Config, arms_of, sets_arguments
from tenfold.systems.query_summarizer.experiment.steps import (
    VECTOR_STEPS,
    Place,
    best_rate,
    open_place,
    start_of,
)
from tenfold.systems.query_summarizer.extractor.build_extractor import (
    chosen_vectors,
    description_of,
)
from tenfold.systems.query_summarizer.rouge.stemming import find_exceptions
from tenfold.systems.query_summarizer.selection.summary import marked_html
from tenfold.systems.query_summarizer.sets.load_sets import Sets, load_sets
from tenfold.training.parallel import rank
from tenfold.workers import Step, do_steps

__all__ = ["PRESETS", "Config", "run"]


def run(config: Config, run: Run) -> Results:
    """Train all arms over all seeds, compare them, deliver the extractor that saw both stages.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms = arms_of(config)
    sets = load_sets(**sets_arguments(config.preset, asdict(config.data)))
    seeds = range(config.seed, config.seed + config.seeds)
    stages = dict.fromkeys(start_of(arm) for arm in arms.values() if arm.stage1)
    tuned = [name for name, arm in arms.items() if arm.stage2]
    baselines = [name for name in BASELINES if name != "cosine" or config.model.kind == "fast"]
    rates = config.sparse.rates
    vectors = [Step(f"vectors/{share}", ("vectors", share)) for share in range(VECTOR_STEPS)]
    phases = [
        [*(vectors if config.model.kind == "fast" else []), Step("labels", ("labels",))],
        [Step(f"{stage}/seed{seed}", ("stage1", stage, seed)) for stage in stages for seed in seeds]
        + [Step(f"baselines/{name}/seed{seed}", ("baseline", name, seed)) for name in baselines for seed in seeds],
        [Step(f"rates/{name}/{rate:g}", ("rate", name, rate)) for name in tuned for rate in rates if len(rates) > 1],
        [Step(f"arms/{name}/seed{seed}", ("arm", name, seed)) for name in arms for seed in seeds],
    ]
    for note in sets.notes:
        run.say(note)
    found = do_steps(run, phases, partial(open_place, config, run.folder), workers=config.workers)
    outcomes = {name: [found[f"baselines/{name}/seed{seed}"] for seed in seeds] for name in baselines}
    outcomes |= {name: [found[f"arms/{name}/seed{seed}"] for seed in seeds] for name in arms}
    chosen = {
        name: best_rate({rate: found[f"rates/{name}/{rate:g}"] for rate in rates})
        if len(rates) > 1
        else {"rate": rates[0], "scores": []}
        for name in tuned
    }
    delivered = run.step("delivery", lambda _: deliver(config, sets, run.folder))
    return Results(
        system="query-summarizer",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        claims=claims_of(outcomes, delivered),
        metrics=metrics_of(outcomes, delivered),
        cost=Cost(
            params=delivered["params"],
            flops=0.0,
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type,
            data=sets.name,
            encoder=delivered["encoder"],
            stage1_topics=len(sets.stage1),
            train_topics=len(sets.train),
            held_back_topics=len(sets.held_back),
            test_topics=len(sets.test),
            stemmer=delivered["stemmer"],
        ),
        plots=plots_of(outcomes),
        tables=tables_of(outcomes, chosen, delivered),
        notes=[*sets.notes, *notes_of(config, delivered)],
        summary=summary_of(outcomes),
    )


def deliver(config: Config, sets: Sets, folder: Path) -> dict[str, Any]:
    """Write the model folder and the page with marked documents; check that sparse diffs revert exactly.

    The delivered extractor saw both stages (stage 2 alone where there is no large set), first seed.
    """
    place = Place(config, sets, folder)
    name = "both" if "both" in place.arms else "stage2"
    model = place.new_model(config.seed)
    model.load_state_dict(load_file(folder / f"steps/arms/{name}/seed{config.seed}/weights.safetensors"))
    model.eval()
    vectors = chosen_vectors(config.model.encoder) if config.model.kind == "fast" else ""
    builder, arguments, extra = description_of(model, vectors)
    if rank() == 0:
        save_model(
            folder,
            model,
            system="query-summarizer",
            builder=builder,
            arguments=arguments,
            extra=extra | {"words": config.selection.words, "block": config.selection.block},
        )
    topic = sets.test[0]
    scores, masked = (place.score(model, topic, query) for query in (True, False))
    summary = summary_with(config, topic, scores, masked)
    pages = [f"<h2>{title}</h2>{body}" for title, body in _pages(place, model)]
    write_atomically(folder / "documents.html", _DOCUMENTS.format("\n".join(pages)))
    human = None
    if all(len(t.references) > 1 for t in sets.test):
        own = [place.rouge.score(t.references[0], t.references[1:])["ROUGE-2"].recall for t in sets.test]
        others = [place.rouge.score(t.references[0], t.references[1:])["ROUGE-1"].recall for t in sets.test]
        human = {"r1": 100 * sum(others) / len(others), "r2": 100 * sum(own) / len(own)}
    changed, checked = _reverted(place, folder, config.seed)
    return {
        "arm": name,
        "params": count_parameters(model),
        "encoder": vectors or config.model.encoder,
        "stemmer": "wordnet" if find_exceptions() else "porter",
        "query": topic.query,
        "quotes": [asdict(quote) for quote in summary.quotes],
        "human": human,
        "diffs_reverted": checked,
        "entries_changed_by_revert": changed,
        "words": config.selection.words,
    }


def _pages(place: Place, model: nn.Module) -> list[tuple[str, str]]:
    import html

    pages = []
    for topic in place.sets.test[:5]:
        made = summary_with(place.config, topic, place.score(model, topic, True), place.score(model, topic, False))
        pages.append((html.escape(topic.query), marked_html(topic.documents, made, around=None)))
    return pages


_DOCUMENTS = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Chosen sentences in their documents</title>
<style>body{{font:16px/1.5 sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;white-space:pre-wrap}}
mark{{background:#ffe28a}}</style>
<h1>Chosen sentences in their documents</h1>
<p>Behind each mark: its rank, and its score minus the score that it has with the query masked.</p>
{}
</html>
"""


def _reverted(place: Place, folder: Path, seed: int) -> tuple[int, int]:
    """Apply and revert every sparse diff of the first seed on its base: entries that differ afterwards, and diffs."""
    changed = checked = 0
    for name, arm in place.arms.items():
        if arm.criterion:
            model = place.new_model(seed)
            base = load_file(folder / f"steps/stage1/seed{seed}/weights.safetensors")
            model.load_state_dict(base)
            with apply_diff(model, folder / f"steps/arms/{name}/seed{seed}/diff.sft.safetensors"):
                pass
            changed += sum(int((value != base[n]).sum()) for n, value in model.state_dict().items())
            checked += 1
    return changed, checked
