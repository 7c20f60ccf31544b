"""The round loop: train, aggregate, now and then evaluate, checkpoint, stop early; at the end the best model.

Flower's ``Strategy.start`` knows neither checkpoints nor early stopping nor an evaluation every few rounds, so the
loop is our own; what it calls are the strategy's five methods, and the grid's ``send_and_receive``. Nothing in here
depends on the time of day, the order of arrival or the number of workers: the same seed gives the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from data.sampling import generator
from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe_server.report.client_ranks import ClientRank, ranks_of, write_client_ranks
from fedmoe_server.report.tracking import Tracker
from fedmoe_server.rounds.checkpoints import CheckpointStore
from fedmoe_server.rounds.clients import ClientDirectory
from fedmoe_server.rounds.exchange import (
    Exchange,
    Failure,
    ReducingGrid,
    exchange,
    name_failures,
    reduced_exchange,
    too_few,
)
from fedmoe_server.rounds.privacy import PrivacyLedger
from fedmoe_server.rounds.record import SELECTION_METRIC, LoopState, Metrics, Result, plain_metrics
from strategies import AggregationSchedule, Cohorts, PartialAggregation, ReplyMean, clippings

LARGEST_NORM = 1e300  # JSON has no infinity
LARGEST_COUNTED_ID = 2**24  # above it client ids are not the numbers 0, 1, 2 ... of a simulation


@dataclass(frozen=True)
class ServerLoop:
    """Runs rounds until they are done or patience is out.

    Attributes:
        grid: any Flower grid; where it offers ``save_clients``, checkpoints hold the clients' private state too.
        strategy: chooses the cohort and aggregates; its inner layers hold the user's strategy.
        partial: the layer of ``strategy`` that withholds private groups and refuses bad replies.
        schedule: which parameters are shared in which round.
        directory: node id -> client id.
        timeout: seconds to wait for a round's replies; None: until every client has answered or failed.
        ledger: what a private run has spent; it stops before it spends more than its budget.
    """

    grid: Grid
    strategy: Cohorts
    partial: PartialAggregation
    schedule: AggregationSchedule
    settings: Settings
    directory: ClientDirectory
    tracker: Tracker
    checkpoints: CheckpointStore
    timeout: float | None = None
    ledger: PrivacyLedger | None = None

    def run(self, state: LoopState) -> Result:
        """Do the remaining rounds, then evaluate the best model on all clients.

        Raises:
            FedMoEError: too many rounds failed one after the other, the final evaluation did, the strategy could not
                aggregate, or nothing could be written.
        """
        while not self._done(state):
            self.one_round(state)
            self._give_up_if_all_fail(state)
            if self._checkpoint_due(state):
                self.checkpoints.save(state, self.strategy, self.grid)
        if self.ledger is not None and state.round < self.settings.federation.num_rounds and self._last(state.round):
            self.tracker.note(f"the privacy budget is spent after round {state.round}")
        return self._finish(state)

    def _done(self, state: LoopState) -> bool:
        """Whether the last round is done or patience has run out; decided from the state, so also after a resume."""
        return self._last(state.round) or self._out_of_patience(state)

    def _last(self, number: int) -> bool:
        """Whether a round that is done was the last one: all are, or the privacy budget allows no other."""
        spent = self.ledger is not None and not self.ledger.allows_another()
        return spent or number >= self.settings.federation.num_rounds

    def _out_of_patience(self, state: LoopState) -> bool:
        patience = self.settings.federation.patience
        return 0 < patience <= state.stalled

    def _checkpoint_due(self, state: LoopState) -> bool:
        every = self.settings.federation.checkpoint_every
        return self._done(state) or (every > 0 and state.round % every == 0)

    def _evaluation_due(self, number: int) -> bool:
        # The last round counts as well, or the last model could never be the best one. With evaluate_every 0 there
        # is only one candidate, so nothing has to be chosen.
        every = self.settings.federation.evaluate_every
        return every > 0 and (number % every == 0 or self._last(number))

    def one_round(self, state: LoopState) -> None:
        """Do one round and put its record into the history."""
        started = time.monotonic()
        number = state.round + 1
        outcome, metrics = self._train(number, state)
        state.round = number
        record: dict[str, Any] = {
            "round": number,
            "phase": "warmup" if number <= self.settings.federation.warmup_rounds else "main",
            "shared": list(self.schedule.shared_groups(number)),
            "clients": outcome.sent,
            "train": metrics,
            "clipped": self._clipped(),
            "validation": None,
            "best": False,
        }
        exchanges, unseen = [outcome], None
        if self.ledger is not None:
            record["privacy"] = self.ledger.spend(number)
        if self._evaluation_due(number):
            checked, metrics = self._evaluate(number, state.arrays, "validation", self._sample())
            exchanges.append(checked)
            unseen = checked.problem
            if checked.problem is None:
                record["validation"] = metrics
                record["best"] = state.judge(_score(metrics, number))
        failures = [failure for each in exchanges for failure in each.failures]
        record |= {
            "failure": outcome.problem,
            "validation_failure": unseen,
            "failed": [asdict(failure) for failure in failures],
            "dropped": [self._named(node) for each in exchanges for node in each.dropped],
            "bytes_down": sum(each.bytes_down for each in exchanges),
            "bytes_up": sum(each.bytes_up for each in exchanges),
            "seconds": round(time.monotonic() - started, 3),
        }
        state.history.append(record)
        self.tracker.round(record, failures)

    def _train(self, number: int, state: LoopState) -> tuple[Exchange, Metrics]:
        """Train a cohort and put the aggregated arrays into the state; they stay as they are if the round fails."""
        self.directory.await_clients(self.grid)
        config = ConfigRecord({"server-round": number})
        messages = self.strategy.configure_train(number, state.arrays, config, self.grid)
        outcome = self._exchange(messages, "train", self._reducer(number))
        what = f"round {number}, train"
        outcome.problem = self._too_few(what, outcome)
        if outcome.problem is not None:
            return outcome, {}
        arrays, metrics = self.strategy.aggregate_train(number, outcome.replies)
        outcome.failures += self._refused("train")
        outcome.problem = self._too_few(what, outcome)
        if outcome.problem is None and arrays is None:
            outcome.problem = f"{what}: the strategy aggregated nothing"
        if outcome.problem is not None or arrays is None:
            return outcome, {}
        state.arrays = arrays
        return outcome, plain_metrics(metrics)

    def _give_up_if_all_fail(self, state: LoopState) -> None:
        """End the run after too many failed rounds in a row: whatever is wrong does not pass by itself."""
        most = self.settings.federation.guards.max_failed_rounds
        latest = [record.get("failure") for record in state.history[-most:]]
        if len(latest) == most and all(latest):
            raise FedMoEError(f"{latest[-1]} ({most} failed rounds in a row, see federation.guards.max_failed_rounds)")

    def _evaluate(
        self, number: int, arrays: ArrayRecord, split: str, clients: Sequence[int] | None
    ) -> tuple[Exchange, Metrics]:
        """Evaluate arrays on some clients (None: all) and average what they report."""
        self.strategy.evaluate_on(clients)
        config = ConfigRecord({"server-round": number, "split": split})
        outcome = self._exchange(self.strategy.configure_evaluate(number, arrays, config, self.grid), split)
        what = f"round {number}, {split}"
        outcome.problem = self._too_few(what, outcome)
        if outcome.problem is not None:
            return outcome, {}
        metrics = self.strategy.aggregate_evaluate(number, outcome.replies)
        outcome.failures += self._refused(split)
        outcome.problem = self._too_few(what, outcome)
        return outcome, plain_metrics(metrics)

    def _reducer(self, number: int) -> Callable[[], ReplyMean] | None:
        """Return what merges the replies of a round where the clients live; None: each is needed here."""
        wanted = self.settings.simulation.aggregate_in_hosts and self.timeout is None
        reducer = self.partial.reducer(number) if wanted and isinstance(self.grid, ReducingGrid) else None
        self.partial.means = reducer is not None
        return reducer

    def _exchange(
        self, messages: Iterable[Message], stage: str, reducer: Callable[[], ReplyMean] | None = None
    ) -> Exchange:
        if reducer is not None and isinstance(self.grid, ReducingGrid):
            return reduced_exchange(self.grid, messages, stage, self._names, reducer)
        outcome = exchange(self.grid, messages, stage, self._names, self.timeout)
        if outcome.dropped:
            self.tracker.note(f"{len(outcome.dropped)} late or repeated replies dropped ({stage})")
        return outcome

    def _sample(self) -> list[int] | None:
        """Return the clients of the evaluations during training, None for all: a fixed sample for the seed.

        Every client id has a fixed random key and the smallest keys win, so a client that joins or leaves changes the
        sample by at most itself.
        """
        size = self.settings.federation.evaluate_clients
        known = np.sort(np.fromiter(self._client_ids().values(), dtype=np.int64))
        if size == 0 or size >= len(known):
            return None
        keys = self._sample_keys(known)
        return [int(client) for client in np.sort(known[np.argsort(keys, kind="stable")[:size]])]

    def _sample_keys(self, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the fixed random key of each client; clients ascend."""
        seed, purpose = self.settings.seed, "evaluation-clients"
        if int(clients[-1]) < LARGEST_COUNTED_ID:
            return generator(seed, purpose).random(int(clients[-1]) + 1)[clients]
        # Real clients draw their ids from far more numbers than fit into a table.
        return np.array([generator(seed, purpose, int(client)).random() for client in clients])

    def _finish(self, state: LoopState) -> Result:
        """Restore the best model and evaluate it on all clients, on validation and test.

        The best round's schedule decides which parameters the clients take from the server, so a best model from the
        warm-up comes back whole. Of groups that were private in that round only the server's copy is restored: each
        client keeps the private value that it has now.
        """
        arrays, best_round = state.chosen()
        metrics: dict[str, Metrics] = {}
        ranks: list[ClientRank] = []
        failed = sum(len(record["failed"]) for record in state.history)
        down = sum(record["bytes_down"] for record in state.history)
        up = sum(record["bytes_up"] for record in state.history)
        for split in ("validation", "test"):
            self.tracker.stage(f"{split} of the model of round {best_round} on all clients")
            outcome, metrics[split] = self._evaluate(best_round, arrays, split, None)
            if outcome.problem is not None:
                raise FedMoEError(outcome.problem)
            self.tracker.failures("final evaluation", outcome.sent, outcome.failures)
            ranks += ranks_of(split, outcome.replies, self._client_ids())
            failed += len(outcome.failures)
            down, up = down + outcome.bytes_down, up + outcome.bytes_up
        write_client_ranks(self.tracker.run_dir, ranks)
        return Result(
            arrays=arrays,
            best_round=best_round,
            rounds=state.round,
            stopped_early=state.round < self.settings.federation.num_rounds,
            validation=metrics["validation"],
            test=metrics["test"],
            history=state.history,
            bytes_down=down,
            bytes_up=up,
            failed_replies=failed,
        )

    def _refused(self, stage: str) -> list[Failure]:
        """Return the replies that arrived but were refused by the latest aggregation, as failures of their clients."""
        reasons = {r.node_id: f"reply refused: {r.reason}" for r in self.partial.refusals}
        return name_failures(reasons, stage, self._names)

    def _clipped(self) -> list[dict[str, Any]]:
        """Return the replies of the latest training that were scaled down, by client."""
        found = [self._named(c.node_id) | {"norm": c.norm, "bound": c.bound} for c in clippings(self.strategy)]
        return [entry | {"norm": min(entry["norm"], LARGEST_NORM)} for entry in found]

    def _named(self, node: int) -> dict[str, Any]:
        return {"client": self._names().get(node), "node": node}

    def _too_few(self, what: str, outcome: Exchange) -> str | None:
        return too_few(what, outcome, self.settings.federation.min_reply_fraction)

    def _names(self) -> Mapping[int, int]:
        return self.directory.names(self.grid)

    def _client_ids(self) -> Mapping[int, int]:
        return self.directory.client_ids(self.grid)


def _score(metrics: Metrics, number: int) -> float:
    """Return the metric that chooses the best model."""
    value = metrics.get(SELECTION_METRIC)
    if value is None:
        raise FedMoEError(
            f"round {number}, validation: the clients reported no finite '{SELECTION_METRIC}', "
            f"which chooses the best model (got {', '.join(metrics) or 'no metrics'})"
        )
    return value
