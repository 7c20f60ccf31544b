"""Each planted defect of a client, and of a metric, is found by its demand; what ships has none."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from torch import Tensor

from data.sampling import training_part
from fedmoe.metrics import Metric
from fedmoe.wire import NamedArrays
from fedmoe_client.check import client, metric
from fedmoe_client.check.__main__ import main
from fedmoe_client.check.client import client_findings
from fedmoe_client.check.metric import metric_findings
from fedmoe_client.learning.client import workbench
from fedmoe_client.learning.own_client import LocalRound, OwnClient, Parameters

BODY = "backbone.blocks.0.attention.output.weight"


class MissesAnArgument(OwnClient):
    def after_round(self, this: LocalRound) -> None:  # type: ignore[override]
        pass


class Misspelt(OwnClient):
    def befor_round(self, this: LocalRound) -> None:
        this.kept["rounds"] = np.ones(1)


class Raises(OwnClient):
    def before_round(self, this: LocalRound) -> None:
        this.extra["control"]


class LosesAName(OwnClient):
    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        return {name: array for name, array in arrays.items() if name != BODY}


class ReturnsNothing(OwnClient):
    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:  # type: ignore[return]
        arrays[BODY] *= 0.5


class Transposes(OwnClient):
    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        return arrays | {BODY: arrays[BODY].reshape(-1)}


class Widens(OwnClient):
    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        return arrays | {BODY: arrays[BODY].astype(np.float64)}


class DividesByZero(OwnClient):
    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        with np.errstate(invalid="ignore"):
            return arrays | {BODY: np.asarray(0 * arrays[BODY] / 0, np.float32)}


class KeepsAList(OwnClient):
    def before_round(self, this: LocalRound) -> None:
        this.kept["seen"] = [1.0, 2.0]  # type: ignore[assignment]


class NumPysNoise(OwnClient):
    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        return arrays | {BODY: arrays[BODY] + np.random.normal(size=arrays[BODY].shape).astype(np.float32)}


class TorchsNoise(OwnClient):
    def before_round(self, this: LocalRound) -> None:
        this.kept["noise"] = torch.randn(3).numpy()


class PythonsNoise(OwnClient):
    def before_round(self, this: LocalRound) -> None:
        this.kept["noise"] = np.array([random.random()])


class CountsOnItself(OwnClient):
    def __init__(self) -> None:
        self.rounds = 0

    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        self.rounds += 1
        return arrays | {BODY: arrays[BODY] / np.float32(self.rounds)}


class RemembersEachOnItself(OwnClient):
    """Apart by client, but gone with the process."""

    def __init__(self) -> None:
        self.rounds: dict[int, int] = {}

    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        self.rounds[this.client] = self.rounds.get(this.client, 0) + 1
        return arrays | {BODY: arrays[BODY] / np.float32(self.rounds[this.client])}


class WritesToTheStart(OwnClient):
    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        this.start[BODY] *= 0.5


class TermWithoutGradient(OwnClient):
    def loss(self, this: LocalRound, parameters: Parameters) -> Tensor | None:
        return parameters[BODY].detach().square().sum()


class SendsThePrivate(OwnClient):
    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        this.reply["mine"] = ArrayRecord({"a": Array(trained["norms.sequence.weight"])})


class SendsTheHistory(OwnClient):
    def before_round(self, this: LocalRound) -> None:
        histories = workbench_of(this).dataset.interactions
        this.reply["mine"] = ConfigRecord({"items": training_part(histories.history(this.client)).tolist()})


class RanksWithRows(OwnClient):
    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        this.kept["rows"] = trained["items.ids.weight"][:1]

    def ranks_with(self, kept: Any) -> NamedArrays:
        return {"items.ids.weight": kept["rows"]}


class TrainsBeforehand(OwnClient):
    """A stack has trained already when it is asked."""

    def before_round(self, this: LocalRound) -> None:
        this.kept["first"] = this.train(this.start)[BODY]


def workbench_of(this: LocalRound) -> Any:
    from fedmoe.loading import to_run_config

    return workbench(to_run_config(this.settings))


DEFECTS: dict[type[OwnClient], str] = {
    MissesAnArgument: "hooks have the base's arguments",
    Misspelt: "hooks have the base's arguments",
    Raises: "runs",
    LosesAName: "names are kept",
    ReturnsNothing: "names are kept",
    Transposes: "shapes and types are kept",
    Widens: "shapes and types are kept",
    DividesByZero: "what is sent is finite",
    KeepsAList: "what is kept can be stored",
    NumPysNoise: "chance is the run's own",
    TorchsNoise: "chance is the run's own",
    PythonsNoise: "chance is the run's own",
    CountsOnItself: "clients are apart",
    RemembersEachOnItself: "resuming equals going on",
    WritesToTheStart: "this.start is left alone",
    TermWithoutGradient: "a term of the loss has a gradient",
    SendsThePrivate: "nothing private is sent",
    SendsTheHistory: "nothing private is sent",
    RanksWithRows: "ranks with whole parameters",
    TrainsBeforehand: "stacked or alone",
}
# A client whose state is on ``self`` also differs after a resume and in a stack; noise differs in a stack.
MORE = {"clients are apart", "resuming equals going on", "stacked or alone", "runs"}


def failed(found: list[Any]) -> list[str]:
    return [finding.demand for finding in found if finding.holds is False]


@pytest.mark.parametrize("defective", DEFECTS)
def test_a_clients_defect_is_found_by_its_demand(defective: type[OwnClient]) -> None:
    found = failed(client_findings(f"{__name__}:{defective.__name__}", {}))
    assert DEFECTS[defective] in found
    assert set(found) - {DEFECTS[defective]} <= MORE


def test_every_demand_on_a_client_has_a_defect() -> None:
    assert set(DEFECTS.values()) == {*client.FIRST, *client.THEN}


@pytest.mark.parametrize(
    ("name", "parameters", "stacked"),
    [
        ("plain", {}, "in stacks on engine vectorized"),
        ("examples.clients.scaffold:ScaffoldClient", {}, "because of step, after_round, whole_table"),
        ("examples.clients.ditto:Ditto", {"penalty": 0.5}, "because of after_round, whole_table"),
        ("examples.clients.fedprox:FedProx", {"mu": 0.1}, "because of loss"),
        ("paper_clients:Counting", {}, "in stacks on engine vectorized"),
        ("paper_clients:Dynamic", {}, "because of step, after_round, whole_table"),
        ("paper_clients:Rated", {}, "because of step"),
        ("paper_clients:Telling", {}, "in stacks on engine vectorized"),
    ],
)
def test_clients_that_ship_meet_all_demands(name: str, parameters: dict[str, Any], stacked: str) -> None:
    found = client_findings(name, parameters)
    assert [str(finding) for finding in found if not finding.holds] == []
    assert stacked in found[-1].seen


class Throws(Metric):
    def of(self, rank: float) -> float:
        return [1.0, 0.5, 0.25][int(rank) - 1]


class NoneBeyondTen(Metric):
    def of(self, rank: float) -> float:
        return 1.0 if rank <= 10 else None  # type: ignore[return-value]


class Infinite(Metric):
    def of(self, rank: float) -> float:
        return 1.0 / (rank - 1.5) if rank != 1.5 else float("inf")


class Running(Metric):
    def __init__(self) -> None:
        self.best = 1e9

    def of(self, rank: float) -> float:
        self.best = min(self.best, rank)
        return self.best


class Noisy(Metric):
    def of(self, rank: float) -> float:
        return rank + float(np.random.normal())


METRICS: dict[type[Metric], str] = {
    Throws: "runs",
    NoneBeyondTen: "runs",
    Infinite: "values are finite",
    Running: "calls are apart",
    Noisy: "chance has no part in it",
}


@pytest.mark.parametrize("defective", METRICS)
def test_a_metrics_defect_is_found_by_its_demand(defective: type[Metric]) -> None:
    found = failed(metric_findings(f"{__name__}:{defective.__name__}", {}))
    assert METRICS[defective] in found
    assert set(found) - {METRICS[defective]} <= {"values are finite", "calls are apart"}
    assert set(METRICS.values()) == {*metric.FIRST, *metric.THEN}


@pytest.mark.parametrize("words", [["cutoff=20"], []])
def test_a_metric_that_ships_meets_all_demands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metric", "examples.metrics.mrr:MRR", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(metric.FIRST) + len(metric.THEN)


def test_the_line_of_ones_own_code_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{__name__}:Raises"]) == 1
    said = capsys.readouterr().out
    assert "FAILS: round 1: KeyError: 'control'" in said and 'this.extra["control"]; if it is something' in said
    assert "return one like it from example_extra" in said and "not tried: see above" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["examples.clients.ditto:Ditto"], "'penalty' is missing"),
        (["examples.clients.ditto:Dito"], "did you mean 'Ditto'"),
        (["examples.clients.ditto:Ditto", "penalty"], "'penalty' is not key=value"),
        (["metric", "examples.metrics.mrr:MRR", "cutof=2"], "did you mean 'cutoff'"),
        (["metric", "mrr"], "package.module:Class for one's own"),
    ],
)
def test_wrong_words_are_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error and len(error.splitlines()) == 1
    assert main([]) == 2 and main(["--help"]) == 0 and main(["metric"]) == 2
