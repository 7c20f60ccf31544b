"""The ledger of a private run: what it has spent, and whether it may go on.

The ledger is written after each round, before the round's model goes anywhere. In a simulation a resumed run repeats
the rounds after its checkpoint number by number, so they are paid once. Real clients may answer differently, so there
every round that was ever aggregated stays in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError
from fedmoe.files import read_json
from fedmoe.settings import Settings
from strategies.privacy.accountant import Release, epsilon_of
from strategies.privacy.rule import PrivateUpdates

if TYPE_CHECKING:
    from strategies.privacy.distributed import DistributedNoise

ROUNDING = 1e-9
ROWS_SHOWN = 10
Entry = Mapping[str, float]
"""A round of the ledger: its number ``round``, ``epsilon`` so far, ``noise``, ``rate`` and ``norm``."""


class PrivacyLedger:
    """What a run has spent so far.

    updates: the mechanism, whose noise, rate and norm are taken down each round.
    save: writes the ledger, which is JSON, to where ``read_ledger`` finds it.
    spent: the rounds done before a resume.

    Raises FedMoEError if the budget does not even allow the first round.
    """

    def __init__(
        self,
        settings: Settings,
        updates: PrivateUpdates | DistributedNoise,
        save: Callable[[Mapping[str, Any]], None],
        spent: Sequence[Entry] = (),
    ) -> None:
        self.settings = settings.privacy
        self.updates = updates
        self.save = save
        self.rounds = [dict(entry) for entry in spent]
        if not self.rounds and not self.allows_another():
            raise FedMoEError(
                f"privacy.epsilon {self.settings.epsilon:g} does not allow one round with noise_multiplier "
                f"{updates.noise:g}: raise one of them, or leave noise_multiplier out to have it chosen"
            )

    def allows_another(self) -> bool:
        """Whether one more round stays within the budget; always without a budget."""
        budget = self.settings.epsilon
        return budget is None or self._epsilon() <= budget + ROUNDING

    def spend(self, number: int) -> Entry:
        """Take down a round that was aggregated, and return its entry."""
        entry = {
            "round": number,
            "epsilon": self._epsilon(),
            "noise": self.updates.noise,
            "rate": self.updates.rate,
            "norm": self.updates.used_norm,
        }
        self.rounds.append(entry)
        self.save(self._document())
        return entry

    def _epsilon(self) -> float:
        """Return what is spent with one more round."""
        releases = [Release(entry["noise"], entry["rate"]) for entry in self.rounds]
        return epsilon_of([*releases, Release(self.updates.noise, self.updates.rate)], self.settings.delta)

    def _document(self) -> Mapping[str, Any]:
        exact = ", which the clients sent as they are" if self.settings.metrics == "exact" else ""
        return {
            "guarantee": self.updates.guarantee + exact,
            "mechanism": f"{self.updates.mechanism}, {self.settings.clipping} clipping",
            "accountant": "dp-accounting, Renyi",
            "budget": self.settings.epsilon,
            "delta": self.settings.delta,
            "epsilon": self.rounds[-1]["epsilon"],
            "rounds": self.rounds,
        }


def read_ledger(path: Path) -> dict[str, Any] | None:
    """Return what a ledger's file holds; None if there is none, because the run is not private."""
    found: dict[str, Any] | None = read_json(path)
    return found


def spent_before(ledger: Path | None, entries: Sequence[Entry], deployed: bool) -> list[Entry]:
    """Return the rounds that a resumed run starts with.

    ledger: the file of the run that is resumed, None for a fresh run. entries: those of the rounds up to the
    checkpoint. deployed: the clients are real ones, so that the rounds after the checkpoint count as well.
    """
    document = read_ledger(ledger) if deployed and ledger is not None else None
    return list(entries if document is None else document["rounds"])


def privacy_section(ledger: Mapping[str, Any] | None) -> str:
    """Return the report's section on privacy; nothing for a run without."""
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


def sums_section(privacy: Mapping[str, Any]) -> str:
    """Return the report's section on exact sums; nothing for a run without."""
    if not privacy.get("sum_bits"):
        return ""
    return (
        "## Exact sums\n\nUpdates, weights and metrics of the clients, in training and evaluation, were used as exact "
        f"sums alone, of integers of {privacy['sum_bits']} bits; an update longer than {privacy['update_norm']:g} was "
        "clipped. So no client's rank is known: clients.csv is empty, and whom personalisation helped is not said."
    )
