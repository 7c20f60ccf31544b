"""Defaults that follow from the number of users and of rounds, and why a setting makes a run hopeless.

What the user has set stays. The figures behind the rules are in docs/experiments.md, "Few rounds".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.section import Section
from fedmoe.settings import ADAMS, FederationSettings, Settings

PASSES = 15  # rounds that a client takes part in, where there are ENOUGH; up to MOST_PASSES where there are fewer
MOST_PASSES = 35
ENOUGH = 300
LEAST_COHORT = 47  # clients a round: the 5% of MovieLens-100K, for which the learning rates were chosen
MOST_TRAININGS = 200_000  # of clients in all rounds: some five to ten minutes on two cores, without evaluations
SAMPLE = 1_000  # users of an evaluation during training, where there are more than twice as many
LARGE_CATALOGUE = 100_000  # items from which on the server's step over all of them would be most of a round
LONG = 700  # rounds from which on FedAdam's learning rate is RATE
RATE = 0.005
LARGEST_RATE = 0.05
EVALUATIONS = 10
FEW = 100  # fewer rounds than this train on all windows, twice, with content in the item vectors
HOPELESS_PASSES = 5.0
HOPELESS_WAY = 0.15  # sum of the server's learning rates: about how far a parameter can move


@dataclass(frozen=True)
class Size:
    """users, items, and the number of windows of each user's training part, ``[users]``."""

    users: int
    items: int
    windows: NDArray[np.int64]

    @classmethod
    def of(cls, offsets: NDArray[np.int64], items: int, max_seq_len: int) -> Size:
        """offsets: ``[users + 1]``, where the histories begin and end."""
        targets = np.maximum(np.diff(offsets) - 3, 0)  # two are held out, the first is no target
        return cls(len(offsets) - 1, items, -(-targets // max_seq_len))


def with_defaults(settings: Settings, size: Size) -> Settings:
    """Return the settings with those that were not given chosen for a run of this size."""
    federation = settings.federation
    rounds = federation.num_rounds
    chosen: dict[str, Any] = {
        "client_fraction": _fraction(rounds, size.users, federation.client_fraction),
        "evaluate_every": max(1, rounds // EVALUATIONS if rounds >= FEW else ceil(rounds / 6)),
        "evaluate_clients": SAMPLE if size.users > 2 * SAMPLE else 0,
        "warmup_rounds": max(federation.warmup_rounds, rounds // 10),
    }
    if size.items > LARGE_CATALOGUE and federation.strategy == "fedadam":
        chosen["strategy"] = "lazyadam"
    if rounds > ENOUGH:
        chosen["checkpoint_every"] = rounds // 10
    training: dict[str, Any] = {}
    model: dict[str, Any] = {}
    if federation.strategy in ADAMS and settings.training.client == "plain" and not settings.privacy.on:
        default = FederationSettings().strategy_parameters
        chosen["strategy_parameters"] = {**default, "eta": _rate(rounds)}
        if rounds < FEW:
            training = {"max_windows": 0, "local_epochs": 2}
            model = {"item_representation": "id+content"}
    return settings.model_copy(
        update={
            "federation": _changed(federation, chosen),
            "training": _changed(settings.training, training),
            "model": _changed(settings.model, model),
        }
    )


def _changed(section: Section, chosen: dict[str, Any]) -> Any:
    return section.model_copy(update={key: each for key, each in chosen.items() if key not in section.model_fields_set})


def _fraction(rounds: int, users: int, default: float) -> float:
    """Return the share with which a client takes part often enough, within the bounds on cohort and work."""
    passes = min(MOST_PASSES, PASSES * max(1.0, ENOUGH / rounds))
    wanted = min(passes * users, max(MOST_TRAININGS, LEAST_COHORT * rounds)) / rounds
    cohort = min(users, max(LEAST_COHORT, round(wanted)))
    return default if int(default * users) == cohort else cohort / users


def _rate(rounds: int) -> float:
    """Return FedAdam's learning rate: fewer steps must be larger ones, by the root of the rounds that are missing."""
    return RATE if rounds >= LONG else min(LARGEST_RATE, float(f"{RATE * sqrt(LONG / rounds):.2g}"))


def passes(settings: Settings, size: Size) -> float:
    """Return how often the windows of all users are trained on in the whole run, in the mean."""
    federation = settings.federation
    share = cohort_of(settings, size) * trained_windows(settings, size) / max(int(size.windows.sum()), 1)
    return federation.num_rounds * share


def cohort_of(settings: Settings, size: Size) -> int:
    """Return the number of clients of a round."""
    return max(1, int(settings.federation.client_fraction * size.users + 1e-9))


def trained_windows(settings: Settings, size: Size) -> float:
    """Return how many windows a client trains on in a round, in the mean."""
    training = settings.training
    if training.windows != "all":
        return float(training.local_epochs)
    counts = np.minimum(size.windows, training.max_windows) if training.max_windows else size.windows
    return float(counts.mean()) * training.local_epochs


def hopeless(settings: Settings) -> list[str]:
    """Return why the run can hardly learn anything, one line for each reason."""
    federation, found = settings.federation, []
    each = federation.num_rounds * federation.client_fraction * settings.training.local_epochs
    if each < HOPELESS_PASSES:
        found.append(
            f"{federation.num_rounds} rounds of {federation.client_fraction:.0%} of the clients with local_epochs "
            f"{settings.training.local_epochs} train each client {each:.1f} times: hardly more than popularity comes "
            f"of fewer than {HOPELESS_PASSES:.0f} - raise num_rounds or client_fraction"
        )
    eta, default = federation.strategy_parameters.get("eta"), _rate(federation.num_rounds)
    if federation.strategy in ADAMS and isinstance(eta, int | float) and eta < default:
        way = eta * federation.num_rounds * (0.5 if federation.server_schedule == "cosine" else 1.0)
        if way < HOPELESS_WAY:
            found.append(
                f"strategy_parameters.eta {eta:g} lets a parameter move by at most about {way:.2g} in "
                f"{federation.num_rounds} rounds: {default:g} would do more, as would more rounds"
            )
    return found
