"""The settings of how a run is executed: engine or real clients, what guards refuse, and who keeps its numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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
        30.0,
        description="seconds that a round waits for the last quarter, or as long again as the others took in the "
        "median, if that is later; 0: until round_deadline",
    )
