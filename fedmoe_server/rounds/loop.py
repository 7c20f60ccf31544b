"""The round loop: train, aggregate, now and then evaluate, checkpoint, stop early; at the end the best model.

Flower's ``Strategy.start`` knows neither checkpoints nor early stopping, so the loop is our own. The same seed gives
the same numbers: nothing here depends on the time of day, the order of arrival or the number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from data.sampling import NEW
from fedmoe.errors import FailureKind, FedMoEError
from fedmoe.metrics import catalogue_metrics
from fedmoe.settings import Settings
from fedmoe_server.report.client_ranks import ClientRank, ranks_of, write_client_ranks
from fedmoe_server.report.tracking import Tracker
from fedmoe_server.rounds.checkpoints import CheckpointStore
from fedmoe_server.rounds.clients import Directory, fixed_sample
from fedmoe_server.rounds.exchange import (
    Reducer,
    ReducingGrid,
    exchange,
    name_failures,
    plain_metrics,
    reduced_exchange,
    selection_score,
    too_few,
)
from fedmoe_server.rounds.halting import Callback, Halt, Paused, halting
from fedmoe_server.rounds.lists import metrics_of_lists
from fedmoe_server.rounds.questions import WireGrid
from fedmoe_server.rounds.record import (
    Clipped,
    Exchange,
    LoopState,
    Metrics,
    Result,
    RoundRecord,
    Sender,
    list_failures,
    split_global,
)
from strategies import Cohorts, PartialAggregation, PrivacyLedger, load_state_arrays, state_arrays

if TYPE_CHECKING:
    from fedmoe_server.rounds.secure import SecureRounds
    from strategies.sums.layer import ExactSums

CHECKPOINT_EVERY = 30  # rounds, unless the settings say otherwise
LARGEST_NORM = 1e300  # JSON has no infinity
T = TypeVar("T")


@dataclass(frozen=True)
class ServerLoop:
    """Runs rounds until they are done or patience is out.

    Attributes:
        grid: any Flower grid; where it offers ``save_clients``, checkpoints hold the clients' private state too.
        strategy: chooses the cohort and aggregates; its inner layers hold the user's strategy.
        partial: the layer of ``strategy`` that withholds private groups and refuses bad replies.
        directory: node id -> client id.
        timeout: seconds to wait for a round's replies; None: until every client has answered or failed.
        ledger: what a private run has spent; it stops before it spends more than its budget.
        new_cases: the clients that rank a withheld item at the end.
        sums, secure: what adds replies up exactly, and what does so under masks; None: each is seen as it is.
        callbacks, interruptible: what may end the run early, see ``halting``.
    """

    grid: Grid
    strategy: Cohorts
    partial: PartialAggregation
    settings: Settings
    directory: Directory
    tracker: Tracker
    checkpoints: CheckpointStore
    timeout: float | None = None
    ledger: PrivacyLedger | None = None
    new_cases: Sequence[int] = ()
    sums: ExactSums | None = None
    secure: SecureRounds | None = None
    callbacks: Sequence[Callback] = ()
    interruptible: bool = False

    def run(self, state: LoopState) -> Result:
        """Do the remaining rounds, then evaluate the best model on all clients.

        Raises FedMoEError: too many rounds failed one after the other, the final evaluation did, the strategy could not
        aggregate, or nothing could be written. Raises Paused: a callback or Ctrl-C has asked for it.
        """
        with halting(self.callbacks, self.interruptible) as asked:
            halt = None
            while not (halt or self._done(state)):
                self.tracker.round(record := self.one_round(state))
                self._give_up_if_all_fail(state)
                if (halt := asked(record)) or self._checkpoint_due(state):
                    self.checkpoints.save(state, self.strategy, self.grid)
                if halt is Halt.PAUSE:
                    raise Paused(f"paused after round {state.round}")
        if self.ledger is not None and self._last(state.round) and state.round < self.settings.federation.num_rounds:
            self.tracker.note(f"the privacy budget is spent after round {state.round}")
        if state.history and all(record.failure for record in state.history):
            raise FedMoEError(f"{state.history[-1].failure} (all rounds failed: the model is what it was at the start)")
        return self._finish(state)

    def one_round(self, state: LoopState) -> RoundRecord:
        """Do one round, put its record into the history and return it."""
        started, number = time.monotonic(), state.round + 1
        self.directory.await_clients(self.grid)
        began = time.monotonic()
        outcome, train = self._train(number, state)
        trained, state.round = time.monotonic(), number
        exchanges, privacy = [outcome], None if self.ledger is None else self.ledger.spend(number)
        validation, unseen, best = None, None, False
        if self._evaluation_due(number):
            strategy = state_arrays(self.strategy)
            checked, metrics = self._evaluate(number, state.arrays, "validation", self._sample())
            exchanges.append(checked)
            unseen = checked.problem
            if unseen is None:
                validation, best = metrics, state.judge(selection_score(metrics, number), strategy)
        now = time.monotonic()
        phases = {"waiting": began - started, "training": trained - began, "evaluation": now - trained}
        record = RoundRecord(
            round=number,
            phase="warmup" if number <= self.settings.federation.warmup_rounds else "main",
            shared=tuple(self.partial.schedule.shared_groups(number)),
            clients=outcome.sent,
            train=train,
            clipped=self._clipped(),
            validation=validation,
            best=best,
            privacy=privacy,
            failure=outcome.problem,
            validation_failure=unseen,
            failed=tuple(failure for each in exchanges for failure in each.failures),
            dropped=tuple(Sender(self._names().get(node), node) for each in exchanges for node in each.dropped),
            bytes_down=sum(each.bytes_down for each in exchanges),
            bytes_up=sum(each.bytes_up for each in exchanges),
            seconds=round(now - started, 3),
            phases={phase: round(each, 3) for phase, each in phases.items()},
        )
        state.history.append(record)
        return record

    def _done(self, state: LoopState) -> bool:
        """Whether the last round is done or patience has run out; decided from the state, so also after a resume."""
        return self._last(state.round) or 0 < self.settings.federation.patience <= state.stalled

    def _last(self, number: int) -> bool:
        """Whether a round that is done was the last one: all are, or the privacy budget allows no other."""
        spent = self.ledger is not None and not self.ledger.allows_another()
        return spent or number >= self.settings.federation.num_rounds

    def _checkpoint_due(self, state: LoopState) -> bool:
        every = CHECKPOINT_EVERY if (given := self.settings.federation.checkpoint_every) is None else given
        return self._done(state) or (every > 0 and state.round % every == 0)

    def _evaluation_due(self, number: int) -> bool:
        # The last round counts as well, or the last model could never be the best one. With evaluate_every 0 there
        # is only one candidate, so nothing has to be chosen.
        return (every := self.settings.federation.evaluate_every) > 0 and (number % every == 0 or self._last(number))

    def _give_up_if_all_fail(self, state: LoopState) -> None:
        """Raise FedMoEError after too many failed rounds in a row."""
        most = self.settings.federation.guards.max_failed_rounds
        latest = [record.failure for record in state.history[-most:]]
        if len(latest) == most and all(latest):
            raise FedMoEError(f"{latest[-1]} ({most} failed rounds in a row, see federation.guards.max_failed_rounds)")

    def _train(self, number: int, state: LoopState) -> tuple[Exchange, Metrics]:
        """Train a cohort and put the aggregated arrays into the state; they stay as they are if the round fails."""
        config = ConfigRecord({"server-round": number})
        questions: Any = WireGrid(self.grid, self.timeout)
        messages = self.strategy.configure_train(number, state.arrays, config, questions)
        outcome = self._exchange(messages, "train", questions, self._reducer(number))
        outcome, aggregated = self._aggregated(number, "train", outcome, self.strategy.aggregate_train)
        arrays, metrics = aggregated or (None, None)
        if arrays is None or outcome.problem is not None:
            nothing = f"round {number}, train: the strategy aggregated nothing"
            return replace(outcome, problem=outcome.problem or nothing), {}
        state.arrays = arrays
        return outcome, plain_metrics(metrics)

    def _evaluate(
        self, number: int, arrays: ArrayRecord, split: str, clients: Sequence[int] | None
    ) -> tuple[Exchange, Metrics]:
        """Evaluate arrays on some clients (None: all) and average what they report."""
        self.strategy.evaluate_on(clients)
        questions: Any = WireGrid(self.grid, self.timeout)
        config = ConfigRecord({"server-round": number, "split": split})
        messages = self.strategy.configure_evaluate(number, arrays, config, questions)
        outcome = self._exchange(messages, split, questions, None if self.sums is None else self._reducer(number))
        shown: Metrics = {}
        if split != NEW and (listed := catalogue_metrics(self.settings)):
            outcome, shown = metrics_of_lists(outcome, split, self._names, listed, arrays)
        outcome, metrics = self._aggregated(number, split, outcome, self.strategy.aggregate_evaluate)
        return outcome, {**plain_metrics(metrics), **shown}

    def _exchange(
        self, messages: Iterable[Message], stage: str, questions: WireGrid, reducer: Callable[[], Reducer] | None = None
    ) -> Exchange:
        if self.secure is not None:  # whatever the grid and the deadline are: nothing is asked in plain
            return self.secure.exchange(self.grid, messages, stage, self._names, self.timeout)
        mean = None if self.sums is None else self.sums.mean
        if reducer is not None and isinstance(self.grid, ReducingGrid):
            outcome = reduced_exchange(self.grid, messages, stage, self._names, reducer, mean)
        else:
            outcome = exchange(self.grid, messages, stage, self._names, self.timeout, mean)
        if outcome.dropped:
            self.tracker.note(f"{len(outcome.dropped)} late or repeated replies dropped ({stage})")
        down, up = questions.bytes_down, questions.bytes_up
        return replace(outcome, bytes_down=outcome.bytes_down + down, bytes_up=outcome.bytes_up + up)

    def _reducer(self, number: int) -> Callable[[], Reducer] | None:
        """Return what merges the replies of a round in the hosts; None: the server needs each reply."""
        merging = self.timeout is None and isinstance(self.grid, ReducingGrid)
        wanted = merging and self.settings.simulation.aggregate_in_hosts
        if self.sums is not None:
            self.partial.means = True
            return self.sums.reducer() if wanted else None
        reducer = self.partial.reducer(number) if wanted else None
        self.partial.means = reducer is not None
        return reducer

    def _aggregated(
        self, number: int, stage: str, outcome: Exchange, aggregate: Callable[[int, Iterable[Message]], T]
    ) -> tuple[Exchange, T | None]:
        """Aggregate the replies if there are enough; those that are refused join the failures."""
        what, least = f"round {number}, {stage}", self.settings.federation.min_reply_fraction
        if problem := outcome.problem or too_few(what, outcome, least):
            return replace(outcome, problem=problem), None
        aggregated = aggregate(number, outcome.replies)
        refused = {refusal.node_id: (FailureKind.REFUSED, refusal.reason) for refusal in self.partial.refusals}
        outcome = replace(outcome, failures=(*outcome.failures, *name_failures(refused, stage, self._names)))
        return replace(outcome, problem=too_few(what, outcome, least)), aggregated

    def _sample(self) -> list[int] | None:
        """Return the clients whose validation items are ranked, None for all."""
        return fixed_sample(self.settings.seed, self._client_ids().values(), self.settings.federation.evaluate_clients)

    def _finish(self, state: LoopState) -> Result:
        """Restore the best model, with the strategy as it was by then, and evaluate it: on test, on all clients.

        The best round's schedule decides which parameters the clients take from the server: a best model from the
        warm-up comes back whole. Of groups that were private then only the server's copy is restored.
        """
        arrays, best_round = state.chosen()
        if state.best is not None:
            load_state_arrays(self.strategy, state.best.strategy)
        metrics: dict[str, Metrics] = {}
        ranks: list[ClientRank] = []
        outcomes: dict[str, Exchange] = {}
        asked = {"validation": self._sample(), "test": None, **({NEW: self.new_cases} if self.new_cases else {})}
        for split, clients in asked.items():
            whom = "all" if clients is None else len(clients)
            self.tracker.stage(f"{split} items ranked by the model of round {best_round} on {whom} clients")
            outcome, metrics[split] = self._evaluate(best_round, arrays, split, clients)
            if outcome.problem is not None:
                raise FedMoEError(outcome.problem)
            if failed := outcome.failures:
                self.tracker.note(f"{split}: {len(failed)} of {outcome.sent} clients failed - {list_failures(failed)}")
            if self.sums is None:  # else the one reply is a mean
                ranks += ranks_of(split, outcome.replies, self._client_ids())
            outcomes[split] = outcome
        write_client_ranks(self.tracker.run_dir, ranks)
        final = list(outcomes.values())
        return Result(
            status="completed",
            stopped_early=state.round < self.settings.federation.num_rounds,
            rounds=state.round,
            best_round=best_round,
            validation=split_global(metrics["validation"]),
            test=split_global(metrics["test"]),
            new=split_global(metrics[NEW]) if NEW in metrics else {},
            bytes_down=sum(r.bytes_down for r in state.history) + sum(o.bytes_down for o in final),
            bytes_up=sum(r.bytes_up for r in state.history) + sum(o.bytes_up for o in final),
            failed_replies=sum(len(r.failed) for r in state.history) + sum(len(o.failures) for o in final),
            failed_rounds=tuple(record.round for record in state.history if record.failure),
            final_clients=outcomes["test"].sent,
            sampled=None if asked["validation"] is None else outcomes["validation"].sent,
            final_failures=tuple(failure for outcome in final for failure in outcome.failures),
        )

    def _clipped(self) -> tuple[Clipped, ...]:
        """Return the replies of the latest training that were scaled down, by client."""
        names, found = self._names(), self.partial.clippings
        return tuple(Clipped(names.get(c.node_id), c.node_id, min(c.norm, LARGEST_NORM), c.bound) for c in found)

    def _names(self) -> Mapping[int, int]:
        return self.directory.names(self.grid)

    def _client_ids(self) -> Mapping[int, int]:
        return self.directory.client_ids(self.grid)
