"""A run under differential privacy: its noise, and the ledger of what it has spent.

The ledger is ``privacy.json`` in the run folder, written after each round before its model goes anywhere. In a
simulation a resumed run repeats the rounds after its checkpoint number by number, so they are paid once. Real clients
may answer differently, so there every round that was ever aggregated stays in the ledger.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe_server.report.run_folder import PRIVACY, write_json
from strategies import PrivateUpdates, Release, epsilon_of, noise_for

SECRET_BITS = 96
ROUNDING = 1e-9
ROWS_SHOWN = 10


def noise_of(settings: Settings) -> float:
    """Return the noise multiplier of a private run: as given, or the one with which all rounds cost epsilon."""
    privacy, federation = settings.privacy, settings.federation
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.epsilon is not None  # one of the two is what makes the run private
    return noise_for(privacy.epsilon, privacy.delta, federation.client_fraction, federation.num_rounds)


def secret_of(settings: Settings, deployed: bool) -> int:
    """Return what cohorts and noise are drawn from: the seed in a simulation, so that it can be repeated.

    Real clients are told the seed with the settings, and whoever knows it could take the noise away; there it is drawn
    anew by the operating system, and never written down.
    """
    return secrets.randbits(SECRET_BITS) if deployed else settings.seed


def private(strategy: Strategy, settings: Settings, key: int) -> PrivateUpdates:
    """Return ``strategy`` behind the mechanism that the settings describe."""
    privacy = settings.privacy
    return PrivateUpdates(
        strategy,
        noise=noise_of(settings),
        norm=privacy.update_norm,
        rate=settings.federation.client_fraction,
        key=key,
        clipping=privacy.clipping,
        side=privacy.side,
        metrics=privacy.metrics,
        quantile=privacy.norm_quantile,
        norm_rate=privacy.norm_rate,
    )


class PrivacyLedger:
    """What a run has spent so far, and whether it may go on.

    updates: the mechanism, whose noise, rate and norm are taken down each round.
    spent: the rounds done before a resume, as in the file.

    Raises FedMoEError if the budget does not even allow the first round.
    """

    def __init__(
        self, run_dir: Path, settings: Settings, updates: PrivateUpdates, spent: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.path = run_dir / PRIVACY
        self.settings = settings.privacy
        self.updates = updates
        self.rounds = [dict(entry) for entry in spent]
        if not self.rounds and not self.allows_another():
            raise FedMoEError(
                f"privacy.epsilon {self.settings.epsilon:g} does not allow one round with noise_multiplier "
                f"{updates.noise:g}: raise one of them, or leave noise_multiplier out to have it chosen"
            )

    def allows_another(self) -> bool:
        """Whether one more round stays within the budget; always without a budget."""
        budget = self.settings.epsilon
        return budget is None or self._epsilon(1) <= budget + ROUNDING

    def spend(self, number: int) -> dict[str, float]:
        """Take down a round that was aggregated, and return its entry: round, epsilon so far, noise, rate, norm."""
        entry = {
            "round": number,
            "epsilon": self._epsilon(1),
            "noise": self.updates.noise,
            "rate": self.updates.rate,
            "norm": self.updates.used_norm,
        }
        self.rounds.append(entry)
        self._write()
        return entry

    def _epsilon(self, more: int) -> float:
        releases = [Release(entry["noise"], entry["rate"]) for entry in self.rounds]
        return epsilon_of([*releases, Release(self.updates.noise, self.updates.rate, more)], self.settings.delta)

    def _write(self) -> None:
        document = {
            "guarantee": "(epsilon, delta) for the presence of one client; training alone, neither evaluation nor "
            "metrics" + (", which the clients sent as they are" if self.settings.metrics == "exact" else ""),
            "mechanism": f"Poisson-sampled Gaussian, {self.settings.clipping} clipping",
            "accountant": "dp-accounting, Renyi",
            "budget": self.settings.epsilon,
            "delta": self.settings.delta,
            "epsilon": self.rounds[-1]["epsilon"],
            "rounds": self.rounds,
        }
        write_json(self.path, document)


def spent_before(
    source: Path | None, entries: Sequence[Mapping[str, float]], deployed: bool
) -> list[Mapping[str, float]]:
    """Return the ledger's rounds that a resumed run starts with.

    source: the checkpoint. entries: those of the rounds up to it. deployed: the clients are real ones, so that
    the rounds after it count as well.
    """
    if deployed and source is not None:
        ledger = read_ledger(source.resolve().parent.parent)
        if ledger is not None:
            return list(ledger["rounds"])
    return list(entries)


def read_ledger(run_dir: Path) -> dict[str, Any] | None:
    """Return what ``privacy.json`` of a run folder holds; None if the run is not private."""
    path = run_dir / PRIVACY
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    except (OSError, ValueError) as error:
        raise FedMoEError(f"{path} is not readable JSON: {error}") from error


def privacy_section(run_dir: Path) -> str:
    """Return the report's section on privacy; nothing for a run without."""
    ledger = read_ledger(run_dir)
    if ledger is None:
        return ""
    rounds = ledger["rounds"]
    step = -(-len(rounds) // ROWS_SHOWN)
    shown = [entry for place, entry in enumerate(rounds, start=1) if place % step == 0 or place == len(rounds)]
    rows = [f"| {entry['round']} | {entry['epsilon']:.3f} | {entry['norm']:.4g} |" for entry in shown]
    budget = "" if ledger["budget"] is None else f" of a budget of {ledger['budget']:g}"
    text = (
        f"Spent: epsilon {ledger['epsilon']:.3f}{budget}, at delta {ledger['delta']:g}; {len(rounds)} rounds of noise "
        f"multiplier {rounds[-1]['noise']:.3f}, each with {rounds[-1]['rate']:.1%} of the clients. "
        f"Guarantee: {ledger['guarantee']}. Mechanism: {ledger['mechanism']}; accountant: {ledger['accountant']}."
    )
    table = "\n".join(["| round | epsilon so far | clipping norm |", "| ---: | ---: | ---: |", *rows])
    return f"## Privacy\n\n{text}\n\n{table}"
