"""The schedule: warm start, M2L, EM rounds with densification; resumable in the middle of any of them.


folder/warm, mutual-1, mutual-2, ...     phases: fit's checkpoints while they run, done.pt when they are done
folder/round-K/queries                   E-step's teacher: beliefs of the model on the round's unobserved queries
folder/round-K/posterior                 M-step's teacher: beliefs of the posterior, and the injected triples
"""

import dataclasses
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError
from tenfold.files import atomic_path, first_line
from tenfold.models.checkpoints import read_torch_file
from tenfold.seeds import derived_seed
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer, check_scorer
from tenfold.systems.graph_fusion.fusion.batches import QueryBatches
from tenfold.systems.graph_fusion.fusion.densification import Injected, candidates_of, densify, precision_curve
from tenfold.systems.graph_fusion.fusion.made_from import claim_folder
from tenfold.systems.graph_fusion.fusion.objectives import (
    SIDES,
    Exchange,
    Learning,
    MutualObjective,
    Pair,
    PhaseObjective,
    Side,
    other,
    warm_schedule,
)
from tenfold.systems.graph_fusion.fusion.records import Best, Round, read_best
from tenfold.systems.graph_fusion.fusion.schedule import Schedule
from tenfold.systems.graph_fusion.fusion.teachers import TeacherFile, write_teacher
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.graph.unobserved_queries import UnobservedQueries, sample_unobserved
from tenfold.systems.graph_fusion.ranking.calibration import fit_temperature
from tenfold.systems.graph_fusion.ranking.ranks import agreement, evaluate_encoder
from tenfold.systems.graph_fusion.ranking.summaries import summarise_ranks
from tenfold.training import fit
from tenfold.training.options import TrainerOptions
from tenfold.training.parallel import rank, wait_for_all_ranks

log = logging.getLogger("tenfold")
_THRESHOLDS = torch.linspace(0, 0.95, 20)


class Fusion:
    """Two encoders of one graph, and how far they have come.

    Args:
        graph: the graph.
        structure: scores by the graph.
        text: scores by texts.
        schedule: what is done, how long and how strongly.
        learning: how each side learns from facts.
        seed: of all that is random.
        folder: where checkpoints and teacher files go.
        trainer: where it runs.
        on_progress: called after an epoch with its number, the epochs of the phase, and a note.

    Attributes:
        pair: both encoders, as they are now.
        best: of each side the weights with its best validation MRR over all phases.
        rounds: the EM rounds so far.
        history: one row per epoch.
    """

    def __init__(
        self,
        graph: KnowledgeGraph,
        structure: QueryScorer,
        text: QueryScorer,
        *,
        schedule: Schedule | None = None,
        learning: dict[Side, Learning] | None = None,
        seed: int = 0,
        folder: str | Path,
        trainer: TrainerOptions | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.graph, self.schedule, self.seed = graph, schedule or Schedule(), seed
        self.folder, self.trainer = Path(folder), trainer or TrainerOptions()
        self.learning: dict[Side, Learning] = learning or {"structure": Learning(), "text": Learning()}
        self.on_progress = on_progress
        self.known = graph.known("train")
        self.pair = Pair(structure, text)
        self.best: dict[Side, Best] = {}
        self.rounds: list[Round] = []
        self.history: list[dict[str, Any]] = []
        self.steps = 0
        self._temperatures: dict[Side, float] = {}  # of the weights as they are now
        seen = graph.seen()
        self._seen = None if bool(seen.all()) else seen
        self._set_graph(structure, None)
        for side in SIDES:
            check_scorer(self.pair.side(side), side)
        self.optimizer = self._make_optimizer()
        claim_folder(self.folder, graph, self.schedule, self.learning, seed, self.pair)

    # --- stages -------------------------------------------------------------------------------------------------

    def warm_start(self) -> None:
        """Stage 0: each encoder alone, with its own loss; without epochs only measured."""
        warm = self.schedule.warm
        if warm.epochs == 0:
            for side in SIDES:
                self._note_best(side, self._validation_mrr(side), "given", None)
            return
        objective = MutualObjective(self.learning, self._exchange(0.0, {"structure": 1.0, "text": 1.0}))
        batches = self._batches("warm")
        rates = None
        if warm.warm_up_steps or warm.decay:
            total = len(batches) * warm.epochs
            rates = warm_schedule(min(warm.warm_up_steps, total // 10), total, warm.decay)  # the cap is SimKGC's
        self._phase("warm", objective, batches, warm.epochs, SIDES, 1.0, rates)

    def mutual(self) -> None:
        """Stage 1: M2L on observed queries, in spells of ``patience`` epochs, until a spell brings no better MRR."""
        self._start_stage()
        mutual = self.schedule.mutual
        left = mutual.epochs
        spell = mutual.patience or left
        number = 0
        while left > 0:
            number += 1
            name = f"mutual-{number}"
            before = self._best_mrr()
            objective = MutualObjective(self.learning, self._exchange(mutual.weight, self._calibrate(name)))
            self._phase(name, objective, self._batches(name), min(spell, left), SIDES, 1.0)
            left -= spell
            # The better of the two encoders decides; without exchange (a control) all epochs are trained.
            if mutual.patience and mutual.weight > 0 and self._best_mrr() <= before:
                break

    def em_round(self, number: int) -> Round:
        """Stage 2, one round: sample queries, E-step, densify, M-step (or the steps in the other order)."""
        if number == 1:
            self._start_stage()
        rounds, folder = self.schedule.rounds, self.folder / f"round-{number}"
        posterior: Side = rounds.posterior
        unobserved = self._sample(number)
        needed = rounds.mu_e > 0 or rounds.mu_m > 0 or self.schedule.injection.share > 0
        found: list[Any] = []

        def e_step() -> None:
            teacher = self._ask(other(posterior), unobserved, folder / "queries") if needed else None
            self._learn(posterior, f"round-{number}/e-step", teacher, rounds.mu_e, None, rounds.reverse)

        def m_step() -> None:
            teacher = self._ask(posterior, unobserved, folder / "posterior") if needed else None
            injected = self._densify(teacher, folder, number)
            self._set_graph(self.pair.side(other(posterior)), injected)
            self._learn(other(posterior), f"round-{number}/m-step", teacher, rounds.mu_m, injected)
            found.append((teacher, injected))

        for step in (m_step, e_step) if rounds.model_first else (e_step, m_step):
            step()
        made = self._describe(number, unobserved, *found[0])
        self.rounds.append(made)
        return made

    def run(self, *, mutual: bool = True, rounds: bool = True) -> None:
        """The whole schedule after the warm start."""
        if mutual:
            self.mutual()
        if rounds:
            for number in range(1, self.schedule.rounds.number + 1):
                self.em_round(number)

    def use_best(self) -> None:
        """Give each encoder its best weights on validation; the warm start's count, too."""
        self._temperatures = {}
        for side, best in self.best.items():
            self.pair.side(side).load_state_dict(best.state)
        self.pair.eval()

    # --- state --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that a later stage, or another arm, goes on from."""
        return {
            "pair": {name: value.detach().cpu().clone() for name, value in self.pair.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "best": {side: dataclasses.asdict(best) for side, best in self.best.items()},
            "history": self.history,
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.pair.load_state_dict(state["pair"])
        self._temperatures = {}
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {side: Best(**best) for side, best in state["best"].items()}
        self.history = list(state["history"])
        self.steps = state["steps"]

    def save(self, path: str | Path) -> None:
        """Write `state` whole or not at all."""
        if rank() == 0:
            with atomic_path(path) as temporary:
                torch.save(self.state(), temporary)
        wait_for_all_ranks()

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote."""
        try:
            self.load_state(read_torch_file(path))
        except (UserError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path} is damaged or of another fusion ({first_line(error)}): remove the folder {Path(path).parent} "
                "and resume; what it held is then done anew"
            ) from error

    # --- parts --------------------------------------------------------------------------------------------------

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {
                "params": list(self.pair.side(side).parameters()),
                "lr": self.learning[side].learning_rate,
                "weight_decay": self.learning[side].weight_decay,
            }
            for side in SIDES
        ]
        return torch.optim.AdamW(groups, fused=True)

    def _start_stage(self) -> None:
        """A stage goes on from each encoder's best weights: after the last epoch of the one before, both may overfit.

        Moments that Adam gathered later than those weights are dropped.
        """
        self._temperatures = {}
        for side, best in self.best.items():
            self.pair.side(side).load_state_dict(best.state)
        self.optimizer = self._make_optimizer()

    def _phase(
        self,
        name: str,
        objective: Any,
        batches: QueryBatches,
        epochs: int,
        learners: Any,
        factor: float,
        rates: Callable[[int], float] | None = None,
    ) -> None:
        folder = self.folder / name
        done = folder / "done.pt"
        if done.exists():
            self.load(done)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for side in SIDES:
            for parameter in self.pair.side(side).parameters():
                parameter.requires_grad_(side in learners)
            self.optimizer.param_groups[SIDES.index(side)]["lr"] = factor * self.learning[side].learning_rate
            if (kept := folder / f"best-{side}.pt").exists():  # of this phase, before it was killed
                found = read_best(kept)
                if side not in self.best or found.mrr > self.best[side].mrr:
                    self.best[side] = found
        torch.manual_seed(self._seed_of(name))

        def validate(_: Any) -> dict[str, float]:
            values = {}
            for side in learners:
                values[side] = self._validation_mrr(side)
                self._note_best(side, values[side], name, folder)
            if len(learners) == len(SIDES):
                values["agreement"] = agreement(self.pair.structure, self.pair.text, self.graph)
            return values

        def note(epoch: int, row: dict[str, float]) -> None:
            if self.on_progress is not None:
                numbers = ", ".join(f"{side} {row[f'validation/{side}']:.4f}" for side in learners)
                self.on_progress(epoch, epochs, f"{name}: validation MRR {numbers}")

        for side in learners:
            self._temperatures.pop(side, None)
        try:
            fitted = fit(
                self.pair,
                objective,
                batches,
                epochs=epochs,
                optimizer=self.optimizer,
                schedule=rates,
                folder=folder,
                options=self.trainer,
                validate=validate,
                on_epoch=note,
            )
        finally:
            if isinstance(objective, PhaseObjective):
                objective.forget(self.pair)
        self.steps += len(batches) * epochs
        self.history += [{"stage": name, **row} for row in fitted.history]
        self.save(done)
        if rank() == 0:
            (folder / "last.ckpt").unlink(missing_ok=True)

    def _learn(
        self,
        side: Side,
        name: str,
        teacher: TeacherFile | None,
        mu: float,
        injected: Injected | None,
        reverse: bool = False,
    ) -> None:
        exchange = self._exchange(self.schedule.mutual.weight, self._calibrate(name))
        nu = self.schedule.injection.nu
        objective = PhaseObjective(side, self.learning[side], exchange, mu, reverse)
        more = None if injected is None else injected.as_answers(self.graph.num_relations, nu)
        batches = QueryBatches(
            self.known,
            self.schedule.batch_size,
            seed=self._seed_of(name),
            injected=more if nu > 0 else None,
            teacher=teacher if mu > 0 else None,
        )
        rounds = self.schedule.rounds
        self._phase(name, objective, batches, rounds.epochs, (side,), rounds.learning_rate)

    def _sample(self, number: int) -> UnobservedQueries:
        extra, queries = None, self.schedule.queries
        if queries.test_queries:
            log.warning("test queries take part as unobserved queries: not a fair result")
            extra = self.graph.known("test").queries
        return sample_unobserved(
            self.graph,
            self.known,
            seed=derived_seed(self.seed, 101, number),
            cross=queries.cross,
            residual=queries.residual,
            limit=queries.limit,
            extra=extra,
        )

    def _ask(self, side: Side, unobserved: UnobservedQueries, folder: Path) -> TeacherFile:
        beliefs = self.schedule.beliefs
        return write_teacher(
            self.pair.side(side),
            unobserved,
            self.known,
            folder,
            temperature=self._temperature_of(side) * self.schedule.temperature,
            k=beliefs.top_k,
            seen=self._seen if side == "structure" else None,
            leftover=beliefs.leftover,
            renormalize=beliefs.renormalize,
        )

    def _densify(self, teacher: TeacherFile | None, folder: Path, number: int) -> Injected | None:
        injection = self.schedule.injection
        if teacher is None or injection.share == 0:
            return None
        partner = None
        if injection.agreement > 0:
            partner = self._ask(other(self.schedule.rounds.posterior), self._sample(number), folder / "agreement")
        return densify(
            teacher,
            self.graph,
            gate=injection.gate,
            threshold=injection.threshold,
            share=injection.share,
            student=partner,
            agreement=injection.agreement,
            weighted=injection.weighted,
            sample=injection.sample,
            seed=derived_seed(self.seed, 103, number),
        )

    def _describe(
        self, number: int, unobserved: UnobservedQueries, teacher: TeacherFile | None, injected: Injected | None
    ) -> Round:
        none = torch.empty(0)
        injected = injected or Injected(torch.empty(0, 3, dtype=torch.int64), none, none, none.bool())
        cross = int(unobserved.cross.sum())
        candidates = candidates_of(teacher, self.graph) if teacher is not None else injected
        share = precision_curve(injected, self.graph, torch.zeros(1))["precision"][0]
        curve = precision_curve(candidates, self.graph, _THRESHOLDS)
        return Round(number, injected, (len(unobserved) - cross, cross), curve, share)

    def _exchange(self, lam: float, calibration: dict[Side, float]) -> Exchange:
        return Exchange(lam, self.schedule.temperature, self.schedule.mutual.split, calibration, self._seen)

    def _calibrate(self, name: str) -> dict[Side, float]:
        """Both temperatures at the start of a phase; those of a phase that is done are not needed again.

        A resumed phase starts from the weights that it started from before, and so from the same temperatures.
        """
        if (self.folder / name / "done.pt").exists():
            return {"structure": 1.0, "text": 1.0}
        return {side: self._temperature_of(side) for side in SIDES}

    def _temperature_of(self, side: Side) -> float:
        """Fitted when an encoder has learned since the last time; a frozen one keeps its temperature."""
        if not self.schedule.calibrate:
            return 1.0
        if side not in self._temperatures:
            self._temperatures[side] = fit_temperature(self.pair.side(side), self.graph)
        return self._temperatures[side]

    def _batches(self, name: str) -> QueryBatches:
        return QueryBatches(self.known, self.schedule.batch_size, seed=self._seed_of(name))

    def _seed_of(self, name: str) -> int:
        return derived_seed(self.seed, zlib.crc32(name.encode()))

    def _set_graph(self, encoder: QueryScorer, injected: Injected | None) -> None:
        triples, weights = self.graph.train, torch.ones(len(self.graph.train))
        if injected is not None and len(injected):
            triples, weights = torch.cat([triples, injected.triples]), torch.cat([weights, injected.weights])
        if type(encoder).set_graph is not QueryScorer.set_graph:
            self._temperatures = {}  # a graph encoder scores otherwise now
        encoder.set_graph(triples[:, [0, 2]].T.contiguous(), triples[:, 1].contiguous(), weights)

    def _validation_mrr(self, side: Side) -> float:
        ranks = evaluate_encoder(
            self.pair.side(side), self.graph, "valid", limit=self.schedule.validation_limit, what=side
        )
        return summarise_ranks(ranks)["mrr"]

    def _best_mrr(self) -> float:
        return max((best.mrr for best in self.best.values()), default=float("-inf"))

    def _note_best(self, side: Side, mrr: float, stage: str, folder: Path | None) -> None:
        if side in self.best and mrr <= self.best[side].mrr:
            return
        state = {name: value.detach().cpu().clone() for name, value in self.pair.side(side).state_dict().items()}
        self.best[side] = Best(mrr, stage, state)
        if folder is not None and rank() == 0:
            with atomic_path(folder / f"best-{side}.pt") as temporary:
                torch.save(dataclasses.asdict(self.best[side]), temporary)
