"""A server's figures for Prometheus: what ``/metrics`` answers with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedmoe.errors import FailureKind
from fedmoe_server.deploy.known_runs import State
from fedmoe_server.deploy.status import RunStatus, replied
from fedmoe_server.monitor.overview import Overview, epsilon_of, failures_by_kind, latest_metrics, total_of

Samples = Iterable[tuple[tuple[str, ...], float | None]]
T = TypeVar("T", GaugeMetricFamily, CounterMetricFamily)
__all__ = ["CONTENT_TYPE", "exposition"]


def exposition(overview: Overview) -> bytes:
    """Return an overview in the format that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(overview))
    return generate_latest(registry)


class _Figures(Collector):
    """Turns one overview into metrics. A run is labelled with its folder's name, which it keeps when it goes on."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; those that are not known have no sample."""
        seen = self._overview
        online = sum(client.online for client in seen.clients) if seen.asked else None
        yield _gauge("server_up", "Whether both ports of the server answer", (), [((), float(seen.up))])
        alive = [((part.name,), float(part.alive)) for part in seen.parts]
        yield _gauge("part_up", "Whether a program of the server runs", ("part",), alive)
        again = [((part.name,), float(part.restarts)) for part in seen.parts]
        yield _counter("part_restarts", "Times that a program was started again", ("part",), again)
        yield _gauge("clients_admitted", "Clients whose keys are admitted", (), [((), len(seen.clients))])
        yield _gauge("clients_online", "Admitted clients that are connected", (), [((), online)])
        yield from self._runs()

    def _runs(self) -> Iterator[Metric]:
        runs = self._overview.runs
        states = [((_name(run), each.value), float(run.state is each)) for run in runs for each in State]
        yield _gauge("run_state", "1 for the state that a run is in", ("run", "state"), states)
        yield _of_runs("rounds_done", "Rounds done", runs, lambda run: run.done)
        yield _of_runs("rounds_planned", "Rounds that the run is to do", runs, lambda run: run.total)
        yield _of_runs("seconds_left", "Estimate of what the other rounds take", runs, lambda run: run.seconds_left)
        yield _of_runs("round_seconds", "Duration of the latest round", runs, lambda run: _last(run, "seconds"))
        yield _of_runs("round_clients", "Clients asked in the latest round", runs, lambda run: _last(run, "clients"))
        yield _of_runs("epsilon", "Epsilon spent", runs, lambda run: epsilon_of(run.records))
        answers = [((_name(run),), float(sum(map(replied, run.records)))) for run in runs]
        yield _counter("replies", "Answers of clients that counted in training", ("run",), answers)
        failed = [(run, failures_by_kind(run.records)) for run in runs]
        kinds = [((_name(run), kind.word), float(found[kind.word])) for run, found in failed for kind in FailureKind]
        yield _counter("failures", "Answers of clients that failed, by kind", ("run", "kind"), kinds)
        phases = [((_name(run), phase), value) for run in runs for phase, value in _phases(run).items()]
        yield _counter("phase_seconds", "Time that rounds took, by phase", ("run", "phase"), phases)
        ways = (("down", "bytes_down"), ("up", "bytes_up"))
        sent = [((_name(run), way), float(total_of(run.records, key))) for run in runs for way, key in ways]
        yield _counter("bytes", "Payload sent to clients (down) and received (up)", ("run", "direction"), sent)
        latest = [((_name(run), *key), value) for run in runs for key, value in latest_metrics(run).items()]
        yield _gauge("model", "Latest mean of a metric over clients", ("run", "part", "metric"), latest)


def _name(run: RunStatus) -> str:
    return run.run.path.name


def _last(run: RunStatus, name: str) -> float | None:
    return float(getattr(run.records[-1], name)) if run.records else None


def _phases(run: RunStatus) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in run.records:
        for phase, seconds in record.phases.items():
            found[phase] = found.get(phase, 0.0) + seconds
    return found


def _of_runs(
    name: str, about: str, runs: Iterable[RunStatus], value: Callable[[RunStatus], float | None]
) -> GaugeMetricFamily:
    return _gauge(name, about, ("run",), [((_name(run),), value(run)) for run in runs])


def _gauge(name: str, about: str, labels: Sequence[str], samples: Samples) -> GaugeMetricFamily:
    return _filled(GaugeMetricFamily(f"fedmoe_{name}", about, labels=labels), samples)


def _counter(name: str, about: str, labels: Sequence[str], samples: Samples) -> CounterMetricFamily:
    return _filled(CounterMetricFamily(f"fedmoe_{name}", about, labels=labels), samples)


def _filled(family: T, samples: Samples) -> T:
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, value)
    return family
