"""Which parameters the server aggregates in which round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedmoe.errors import FedMoEError, nearest
from fedmoe.modalities import selected


class AggregationSchedule:
    """Rounds 1 to ``warmup_rounds`` aggregate the groups ``warmup``, later rounds the groups ``shared``.

    groups: group -> names of its parameters; a group that the model does not have is an empty list. A parameter
        belongs to exactly one group.
    warmup_rounds: rounds of the warm-up, 0 or more.
    warmup, shared: names of groups, or patterns such as ``experts.*``, which may match none.

    Raises FedMoEError for an unknown group, a parameter in two groups, and a phase that would aggregate nothing.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[str]], warmup_rounds: int, warmup: Sequence[str], shared: Sequence[str]
    ) -> None:
        self.groups = {group: tuple(names) for group, names in groups.items()}
        self.names = tuple(name for names in self.groups.values() for name in names)
        self.warmup_rounds = warmup_rounds
        self._warmup = self._checked("warmup", warmup)
        self._shared = self._checked("shared", shared)
        for name, count in Counter(self.names).items():
            if count > 1:
                raise FedMoEError(f"parameter '{name}' is in {count} groups; put it into one")
        for round_, key in ((1, "warmup"), (warmup_rounds + 1, "shared")):
            if not self.shared_names(round_):
                raise FedMoEError(
                    f"federation.{key if warmup_rounds else 'shared'}: these groups hold no parameter of this model, "
                    f"nothing would be aggregated; name one of {_listed(g for g, n in self.groups.items() if n)}"
                )

    def _checked(self, key: str, wanted: Sequence[str]) -> tuple[str, ...]:
        for group in wanted:
            if "*" not in group and group not in self.groups:
                raise FedMoEError(
                    f"federation.{key}: unknown group '{group}'{nearest(group, self.groups)}; "
                    f"groups are {_listed(self.groups)}"
                )
        return tuple(selected(wanted, self.groups))

    def shared_groups(self, server_round: int) -> list[str]:
        """Names of the groups aggregated in this round (counted from 1), in the order of ``groups``."""
        return list(self._warmup if server_round <= self.warmup_rounds else self._shared)

    def shared_names(self, server_round: int) -> list[str]:
        """Names of the parameters aggregated in this round."""
        return [name for group in self.shared_groups(server_round) for name in self.groups[group]]

    def private_names(self, server_round: int) -> list[str]:
        """Names of the parameters that stay with the clients in this round."""
        shared = set(self.shared_names(server_round))
        return [name for name in self.names if name not in shared]


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
