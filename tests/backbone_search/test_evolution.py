import itertools

import numpy as np
import optuna
import postgres
import pytest
from faults import BEAT, SPACE, costs, disturb, evaluate, options, task
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from tenfold.errors import RunStopped, UserError
from tenfold.systems.backbone_search.evolution.archive import (
    archive_lines,
    front_of,
    front_table,
    hypervolumes,
    pick,
    read_archive,
)
from tenfold.systems.backbone_search.evolution.candidates import SearchTask
from tenfold.systems.backbone_search.evolution.ranking import (
    crowding_distances,
    dominates,
    front,
    hypervolume,
    knee,
    non_dominated_ranks,
    survivors,
)
from tenfold.systems.backbone_search.evolution.sampler import SLOT
from tenfold.systems.backbone_search.evolution.storage import open_storage
from tenfold.systems.backbone_search.evolution.variation import initial_population
from tenfold.systems.backbone_search.evolution.worker import work
from tenfold.systems.backbone_search.space.search_space import SearchSpace


def brute_ranks(values, violations):
    def beats(i, j):
        if violations[i] or violations[j]:
            return violations[i] < violations[j]
        return all(values[i] <= values[j]) and any(values[i] < values[j])

    left, ranks, rank = set(range(len(values))), {}, 0
    while left:
        now = {i for i in left if not any(beats(j, i) for j in left)}
        ranks |= dict.fromkeys(now, rank)
        left, rank = left - now, rank + 1
    return [ranks[i] for i in range(len(values))]


def test_ranks_are_those_of_the_definition_and_of_pymoo():
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    random = np.random.default_rng(0)
    for n, m in itertools.product((1, 7, 40), (2, 3)):
        values = random.integers(0, 6, (n, m)).astype(float)  # with duplicates
        ranks = non_dominated_ranks(values)
        assert ranks.tolist() == brute_ranks(values, np.zeros(n))
        fronts = NonDominatedSorting().do(values)
        assert all(set(ranks[front]) == {rank} for rank, front in enumerate(fronts))
        violations = random.integers(0, 3, n).astype(float)
        assert non_dominated_ranks(values, violations).tolist() == brute_ranks(values, violations)


def test_values_that_are_not_numbers_rank_last():
    values = np.array([[1.0, 1.0], [np.nan, 0.0], [2.0, 2.0]])
    assert non_dominated_ranks(values).tolist() == [0, 2, 1]
    assert front(values, np.zeros(3)).tolist() == [0]


def test_crowding_survival_and_what_a_weighted_sum_misses():
    assert crowding_distances(np.array([[1, 5], [2, 3], [4, 2], [5, 1.0]])).tolist() == [np.inf, 1.5, 1.25, np.inf]
    assert crowding_distances(np.array([[1.0, 2.0], [1.0, 2.0]])).tolist() == [0, 0]
    concave = np.array([[0, 1.0], [0.6, 0.6], [1.0, 0]])
    assert survivors(concave, np.zeros(3), 3).tolist() == [0, 1, 2] and (non_dominated_ranks(concave) == 0).all()
    assert all(np.argmin(concave @ [w, 1 - w]) != 1 for w in np.linspace(0, 1, 101))
    assert not dominates(concave, np.zeros(3)).any()
    # infeasible ones lose to feasible ones, and among themselves by violation: the generation moves to feasibility
    assert survivors(concave, np.array([3.0, 2.0, 1.0]), 2).tolist() == [1, 2]
    assert survivors(concave, np.array([0.0, 2.0, 1.0]), 1).tolist() == [0]
    assert knee(np.array([[0, 1.0], [0.2, 0.2], [1.0, 0]])) == 1


def test_hypervolume_is_that_of_pymoo():
    from pymoo.indicators.hv import HV

    random = np.random.default_rng(1)
    assert hypervolume([[0.0, 0.0]], [2.0, 3.0]) == 6 and hypervolume([[3.0, 0.0]], [2.0, 3.0]) == 0
    assert hypervolume(np.zeros((0, 2)), [1.0, 1.0]) == 0
    for m in (2, 3):
        points = random.random((12, m))
        points[3] = points[4]
        assert hypervolume(points, [1.1] * m) == pytest.approx(float(HV(ref_point=np.full(m, 1.1))(points)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return work(task(), options(), url=f"journal:{folder}/search.log")  # SQLite waits for the disk at every step


def test_a_search_asks_for_new_genomes_within_the_limits(undisturbed):
    assert [c.slot for c in undisturbed] == list(range(18))
    assert len({c.digest for c in undisturbed}) == 18
    assert all(c.violation == 0 and c.generation == c.slot // 6 for c in undisturbed)
    assert undisturbed[0].genome == SPACE.seed
    found = front_of(undisturbed, ["size"])
    scores = [c.score for c in found]
    assert scores == sorted(scores) and pick(undisturbed, ["size"]).score == max(c.score for c in undisturbed)
    assert pick(undisturbed, ["size"], "knee") in found
    volumes = hypervolumes(undisturbed, ["size"], [16.0])
    assert volumes == sorted(volumes) and len(volumes) == 3 and 0 < volumes[-1] < 1
    assert [c.digest for c in read_archive(archive_lines(undisturbed), "x")] == [c.digest for c in undisturbed]
    assert len(front_table(undisturbed, ["size"]).splitlines()) == len(found) + 1
    with pytest.raises(UserError, match="line 1"):
        read_archive("{}\n", "archive.jsonl")


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [3, 10])
def test_a_search_that_was_stopped_asks_for_the_same_genomes(tmp_path, undisturbed, after):
    seen = []

    def stopping(genome, digest):
        seen.append(digest)
        if len(seen) == after + 1:
            raise Stop
        return evaluate(genome, digest)

    url = f"journal:{tmp_path}/search.log"
    with pytest.raises(Stop):
        work(task(evaluate=stopping), options(), url=url)
    resumed = work(task(), options(), url=url, alone=True)
    assert archive_lines(resumed) == archive_lines(undisturbed)


def test_sqlite_gives_the_same_and_a_diverging_candidate_is_a_bad_one(tmp_path, undisturbed):
    again = work(task(), options(), url=f"sqlite:///{tmp_path}/search.db")
    assert archive_lines(again) == archive_lines(undisturbed)

    def diverging(genome, digest):
        raise RunStopped("the loss is nan")

    found = work(task(evaluate=diverging), options(generations=1), url=f"journal:{tmp_path}/bad.log")
    assert [c.score for c in found] == [0.0] * 6 and "nan" in found[0].details["failed"]


@pytest.fixture(scope="module")
def server():
    if not postgres.AVAILABLE:
        pytest.skip("PostgreSQL is not installed")
    with postgres.postgres_server() as url:
        yield url


@pytest.mark.parametrize(("storage", "mode"), [("sqlite", "sync"), ("postgresql", "sync"), ("sqlite", "async")])
def test_workers_that_are_killed_lose_nothing_and_repeat_nothing(tmp_path, undisturbed, storage, mode, request):
    url = request.getfixturevalue("server") if storage == "postgresql" else f"sqlite:///{tmp_path}/search.db"
    killed = disturb(url, workers=4, kills=2, mode=mode)
    found = work(task(), options(mode=mode), url=url, **BEAT)
    assert [c.slot for c in found] == list(range(18)) and len({c.digest for c in found}) == 18
    assert killed > 0 and finished_once(url)
    if mode == "sync":
        assert archive_lines(found) == archive_lines(undisturbed)
    with pytest.raises(UserError, match="belongs to another task"):
        work(task(fingerprint="other seed weights"), options(mode=mode), url=url)


def test_of_two_retries_of_one_candidate_one_is_evaluated(tmp_path, undisturbed):
    """Two workers may put the same dead candidate back into the queue at one moment."""
    url, seen = f"journal:{tmp_path}/search.log", []

    def stopping(genome, digest):
        seen.append(digest)
        if len(seen) == 5:
            raise Stop
        return evaluate(genome, digest)

    with pytest.raises(Stop):
        work(task(evaluate=stopping), options(), url=url)
    study = optuna.load_study(study_name="search", storage=open_storage(url))
    failed = next(trial for trial in study.trials if trial.state == TrialState.FAIL)
    for _ in range(2):
        RetryHeartbeatStaleTrialCallback(max_retry=3)(study, failed)
    assert archive_lines(work(task(), options(), url=url)) == archive_lines(undisturbed) and finished_once(url)


def test_a_worker_that_was_taken_for_dead_goes_on(tmp_path, undisturbed):
    """As after a suspend: another worker has given its candidate up and evaluated it."""
    url, late = f"journal:{tmp_path}/search.log", []

    def suspended(genome, digest):
        if not late:
            late.append(digest)
            study = optuna.load_study(study_name="search", storage=open_storage(url))
            (running,) = study.get_trials(states=[TrialState.RUNNING])
            study._storage.set_trial_state_values(running._trial_id, state=TrialState.FAIL)
            RetryHeartbeatStaleTrialCallback(max_retry=3)(study, running)
        return evaluate(genome, digest)

    assert archive_lines(work(task(evaluate=suspended), options(), url=url)) == archive_lines(undisturbed)
    assert late and finished_once(url)

    def broken(genome, digest):
        raise ValueError("of the reader's own code")

    with pytest.raises(ValueError, match="own code"):
        work(task(evaluate=broken), options(generations=1), url=f"journal:{tmp_path}/broken.log")


def finished_once(url):
    """Whether every slot was evaluated to its end once, retries included."""
    study = optuna.load_study(study_name="search", storage=open_storage(url))
    slots = [t.system_attrs[SLOT] for t in study.trials if t.state == TrialState.COMPLETE and SLOT in t.system_attrs]
    return len(slots) == len(set(slots))


def test_a_screen_tunes_the_better_half_also_after_a_stop(tmp_path):
    asked, seen = [], []

    def cheap(genome, digest):
        asked.append(digest)
        return evaluate(genome, digest).score

    def stopping(genome, digest):
        seen.append(digest)
        if len(seen) == 9:
            raise Stop
        return evaluate(genome, digest)

    chosen = options(generations=2, screen=True)
    found = work(task(cheap=cheap), chosen, url=f"journal:{tmp_path}/search.log")
    assert len(asked) == len(set(asked)) == 12 and {c.digest for c in found[6:]} < set(asked)
    assert len({c.digest for c in found}) == 12
    scores = {c.digest: c.score for c in found}
    left_out = [digest for digest in asked if digest not in scores]
    assert len(left_out) == 6
    url = f"journal:{tmp_path}/stopped.log"
    with pytest.raises(Stop):
        work(task(cheap=cheap, evaluate=stopping), chosen, url=url)
    resumed = work(task(cheap=cheap), chosen, url=url, alone=True)
    assert archive_lines(resumed) == archive_lines(found) and len(asked) == 24
    with pytest.raises(UserError, match="cheap score"):
        work(task(), chosen, url=url)
    with pytest.raises(UserError, match="mode sync"):
        options(screen=True, mode="async").check()


def test_weights_of_the_front_only_are_kept(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()

    def keeping(genome, digest):
        (folder / f"{digest}.safetensors").touch()
        return evaluate(genome, digest)

    (folder / "of-a-dead-one.safetensors").touch()
    found = work(
        task(evaluate=keeping), options(generations=2), url=f"journal:{tmp_path}/s.log", weights=folder, alone=True
    )
    assert {path.stem for path in folder.iterdir()} == {c.digest for c in front_of(found, ["size"])}


@pytest.mark.parametrize("strategy", ["random", "scalar", "optuna-nsga2", "optuna-tpe"])
def test_controls_train_as_many_candidates(tmp_path, strategy):
    chosen = options(strategy=strategy, generations=2)
    found = work(task(), chosen, url=f"journal:{tmp_path}/search.log")
    assert len(found) == 12 and all(c.violation == 0 for c in found)
    if not strategy.startswith("optuna"):
        assert len({c.digest for c in found}) == 12


def test_studies_of_something_else_are_refused(tmp_path):
    url = f"journal:{tmp_path}/search.log"
    work(task(), options(generations=1), url=url)
    for other in (
        task(fingerprint="other seed weights"),
        task(limits={"size": 13}),
        SearchTask(SearchSpace({**SPACE.genes, "x": (1, 2)}), costs, evaluate, ("size",), {"size": 12}, "x"),
    ):
        with pytest.raises(UserError, match="belongs to another"):
            work(other, options(generations=1), url=url)
    for bad in ("mysql://x", f"sqlite:///{tmp_path}/no/where.db", "postgresql://nobody@127.0.0.1:1/none"):
        with pytest.raises(UserError):
            work(task(), options(), url=bad)
    with pytest.raises(UserError, match="below the smallest network"):
        work(task(limits={"size": 3}), options(), url=url)
    with pytest.raises(UserError, match="no cost"):
        work(task(objectives=("speed",)), options(), url=url)
    for wrong in ({"population": 1}, {"strategy": "best"}, {"mode": "later"}, {"crossover": 2}):
        with pytest.raises(UserError):
            work(task(), options(**wrong), url=url)


def test_the_traps_of_stock_optuna(tmp_path):
    """Same sampler seed after a resume and in two processes: the same genomes again; ours never."""

    def asked(sampler_of, rounds):
        study = optuna.create_study(directions=["maximize", "minimize"])
        for _ in range(rounds):
            study.sampler = sampler_of()
            study.optimize(
                lambda t: (sum(t.suggest_categorical(n, c) for n, c in SPACE.genes.items()), 1.0), n_trials=4
            )
        return [tuple(trial.params.values()) for trial in study.trials]

    stock = asked(lambda: optuna.samplers.NSGAIISampler(seed=0), 2)
    assert stock[:4] == stock[4:8]
    seen = []
    for generations in (1, 2, 3):  # three processes' worth of samplers on one study
        changed = options(generations=generations)
        found = work(task(), changed, url=f"journal:{tmp_path}/search.log")
        seen = [c.digest for c in found]
    assert len(set(seen)) == len(seen) == 18


def test_the_first_population_holds_the_seed_and_what_the_task_names():
    first = {**SPACE.seed, "s0.g0": 2}
    over = dict.fromkeys(SPACE.genes, 4)
    assert initial_population(task(initial=[first, first, over])) == [SPACE.seed, first]
