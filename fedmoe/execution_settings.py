"""The settings of how runs are executed: engine or real clients, what guards refuse, trackers, and searches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedmoe.errors import nearest
from fedmoe.section import Count, CountOrZero, NonNegative, Positive, Section

TRACKERS = ("tensorboard", "csv", "mlflow", "wandb")


def _with_arguments(given: Any) -> Any:
    """Return a tracker's name, or a list of names, as a mapping of each to its arguments, of which there are none."""
    named = given.split(",") if isinstance(given, str) else given or ()
    found = {name: arguments or {} for name, arguments in named.items()} if isinstance(named, dict) else None
    if found is None and isinstance(named, list | tuple):
        found = {str(name).strip(): {} for name in named}
    for name in found or {}:
        if name not in TRACKERS and ":" not in name:
            raise ValueError(
                f"'{name}' must be {', '.join(TRACKERS)}, or package.module:Class{nearest(name, TRACKERS)}"
            )
    return named if found is None else found


Tracking = Annotated[dict[str, dict[str, Any]], BeforeValidator(_with_arguments)]


class GuardSettings(Section):
    """What a reply may be, and how many rounds may fail."""

    max_examples: Count = Field(100_000, description="a reply that claims more examples is refused")
    norm_multiple: NonNegative = Field(
        3.0, description="an update longer than so many times the round's median is scaled down to that; 0: never"
    )
    max_failed_rounds: Count = Field(3, description="failed rounds in a row that end the run")


class SimulationSettings(Section):
    """Which engine executes the clients, and with what."""

    engine: Literal["vectorized", "ray", "flower"] = Field(
        "vectorized",
        description="ray: resident actors, one client after the other; vectorized: the same, clients in stacks where "
        "they can be; flower: Flower's own runtime",
    )
    hosts: CountOrZero = Field(
        0, description="actors of ray and vectorized; 0: one for each client's share of the CPUs"
    )
    ray_address: str | None = Field(
        None, description="a Ray cluster to join, as host:6379 or auto; null: start Ray here"
    )
    aggregate_in_hosts: bool = Field(
        True, description="actors merge their clients' replies, where the strategy needs no more than weighted means"
    )
    stack_size: Count = Field(24, description="windows that the vectorized engine trains at once")
    state_memory: Count = Field(512, description="MiB of private state in each actor's memory; the rest is on disk")
    client_cpus: Positive = Field(1.0, description="CPUs of a client (client_resources num_cpus)")
    client_gpus: NonNegative = Field(0.0, description="GPUs of a client, a fraction shares one (num_gpus)")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where the client has a GPU")


class DeploymentSettings(Section):
    """How long the server of real clients waits, and for whom."""

    min_clients: Count = Field(1, description="clients that must be connected for a round to begin")
    wait_seconds: Positive = Field(600.0, description="seconds to wait for min_clients; then the run fails")
    round_deadline: NonNegative = Field(
        600.0, description="seconds for an answer; who is later is left out and named; 0: until all have answered"
    )
    rest_seconds: NonNegative = Field(
        25.0,
        description="seconds that a round waits for the last quarter, or as long again as the others took in the "
        "median, if that is later; 0: until round_deadline",
    )


class Parameter(Section):
    """What the values of a setting are drawn from: a list of them, or one range with both ends in it."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = Field(None, description="one of these values")
    uniform: tuple[float, float] | None = Field(None, description="a number between two")
    log_uniform: tuple[float, float] | None = Field(None, description="a number between two, its logarithm uniform")
    integers: tuple[int, int] | None = Field(None, description="a whole number between two")

    @model_validator(mode="before")
    @classmethod
    def _list_is_a_choice(cls, given: Any) -> Any:
        if isinstance(given, list):
            return {"choice": given}
        if not isinstance(given, dict) or len(given) != 1 or not set(given) <= set(cls.model_fields):
            raise ValueError(
                "must be a list of values, or {uniform: [low, high]}, or the same with log_uniform or integers"
            )
        return given

    @model_validator(mode="after")
    def _ends_ascend(self) -> Self:
        low, high = self.uniform or self.log_uniform or self.integers or (0, 1)
        if not -math.inf < low < high < math.inf or (self.log_uniform and low <= 0):
            raise ValueError(f"low ({low:g}) must be below high ({high:g}), and above 0 for log_uniform")
        return self

    def draw(self, rng: Random) -> Any:
        """Return one value; of numbers the first four digits, as they are shown."""
        if self.choice is not None:
            return rng.choice(self.choice)
        if self.integers is not None:
            return rng.randint(*self.integers)
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        share = rng.random()
        value = low + share * (high - low) if self.uniform else low * (high / low) ** share
        return min(high, max(low, float(f"{value:.4g}")))


class SearchSettings(Section):
    """Random search whose worse trials ASHA stops early (Li et al. 2020)."""

    parameters: Annotated[dict[str, Parameter], Field(min_length=1)] = Field(
        description="keys of settings, and what their values are drawn from"
    )
    trials: Count = Field(8, description="runs, at most; fewer where the lists hold fewer combinations")
    at_once: CountOrZero = Field(0, description="trials side by side; 0: as many as the CPUs hold")
    grace_rounds: Count | None = Field(
        None, description="rounds after which a trial may be stopped; null: an eighth of num_rounds"
    )
    reduction: Annotated[int, Field(ge=2)] = Field(
        3, description="of so many trials one goes on, and is compared again after so many times the rounds"
    )
    seed: CountOrZero = Field(0, description="seed of what is drawn")

    def draws(self) -> dict[str, dict[str, Any]]:
        """Return what each trial changes, by its label; no two trials are the same."""
        rng, found = Random(self.seed), list[dict[str, Any]]()
        for _ in range(100 * self.trials):
            if len(found) == self.trials:
                break
            change = {key: parameter.draw(rng) for key, parameter in self.parameters.items()}
            if change not in found:
                found.append(change)
        return {f"trial {number}: {label_of(change)}": change for number, change in enumerate(found, start=1)}


class SearchFile(Section):
    """The part of a configuration file that describes a search."""

    search: SearchSettings


def sweep_points(sweep: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return what each point of a sweep changes, by its label."""
    if isinstance(sweep, dict) and all(isinstance(values, list) and values for values in sweep.values()):
        combinations = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
        return {label_of(change): change for change in combinations}
    if isinstance(sweep, list) and sweep and all(isinstance(point, dict) for point in sweep):
        labels = [str(point.get("label") or f"point {number}") for number, point in enumerate(sweep, start=1)]
        if len(set(labels)) == len(labels):
            return {
                label: {key: value for key, value in point.items() if key != "label"}
                for label, point in zip(labels, sweep, strict=True)
            }
    problems.append(
        "sweep: must map keys to lists of values, or list points, which are mappings with labels of their own"
    )
    return {}


def label_of(change: Mapping[str, Any]) -> str:
    """Return changed settings as a table names them: the last part of each key, and the value."""
    return ", ".join(f"{key.split('.')[-1]}={value}" for key, value in change.items())
