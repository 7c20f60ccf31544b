"""What a run's numbers say about its health, and what to try: each advice hangs on a measured sign.

Also what the guards did: replies refused, scaled down or dropped, by kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from fedmoe.errors import FailureKind
from fedmoe_server.report.run_folder import Splits
from fedmoe_server.rounds.record import Metrics, Result, RoundRecord, Sender, experts_of

Records = Sequence[RoundRecord]
RECENT = 20  # rounds that count as the end of a run: a round's clients differ
LEAST_ROUNDS = 10  # after fewer a gate cannot be expected to have moved
MOST_CUT = 0.5  # share of the updates that clipping may cut without a word
NAMED = 10  # clients named in a row
VARIABLE = re.compile(r"'[^']*'|\[[^\]]*\]|(?<![\w'])-?\d[\d.e+-]*")  # names, shapes and numbers in a reason


def findings(records: Records, result: Result, baselines: Mapping[str, Splits]) -> list[str]:
    """Return one line for each sign of trouble; none is a good sign."""
    if not records:
        return []
    return [*_ranking(result, baselines), *_course(records, result), *_gate(records), *_experts(records)]


def signs(records: Records) -> dict[str, tuple[float, float]]:
    """Return the mean of the first and of the last rounds of what the experts do, by the metric's name.

    They are ``RECENT`` rounds each, or half of a short run's.
    """
    experts = experts_seen(records)
    watched = (
        "gate",
        "gate-gradient",
        *(f"router-{expert}" for expert in experts),
        "router-entropy",
        *(f"view-{expert}" for expert in experts),
    )
    found = {name: values_of(records, name)[1] for name in watched}
    ends = {name: (values, max(1, min(RECENT, len(values) // 2))) for name, values in found.items() if values}
    return {name: (fmean(values[:few]), fmean(values[-few:])) for name, (values, few) in ends.items()}


def experts_seen(records: Records) -> list[str]:
    """Return the names of the experts that any round tells of."""
    return list(dict.fromkeys(name for record in records for name in experts_of(record.train)))


def values_of(records: Records, key: str, part: str = "train") -> tuple[list[int], list[float]]:
    """Return the rounds that have a metric, and its values. part: ``train`` or ``validation``."""
    metrics: list[tuple[int, Metrics]] = [(record.round, getattr(record, part) or {}) for record in records]
    found = [(number, value) for number, each in metrics if (value := each.get(key)) is not None]
    return [number for number, _ in found], [value for _, value in found]


def guard_table(records: Records) -> list[list[str]]:
    """Return a row for each kind of reply that did not count as it was sent, the commonest first.

    A row holds what was done and why, how often, whose replies, and the first and last round.
    """
    kinds: dict[str, list[tuple[int, Sender]]] = {}
    for record in records:
        for kind, sender in _rejections(record):
            kinds.setdefault(kind, []).append((record.round, sender))
    ordered = sorted(kinds.items(), key=lambda entry: -len(entry[1]))
    return [
        [kind, str(len(found)), _names([sender for _, sender in found]), f"{found[0][0]} to {found[-1][0]}"]
        for kind, found in ordered
    ]


def _rejections(record: RoundRecord) -> Iterator[tuple[str, Sender]]:
    for failure in record.failed:
        if failure.kind is FailureKind.REFUSED:
            yield f"refused: {VARIABLE.sub('...', failure.reason)}", failure
    for clipped in record.clipped:
        yield "scaled down: update longer than the bound", clipped
    for dropped in record.dropped:
        yield "dropped: late or repeated", dropped


def _names(senders: Sequence[Sender]) -> str:
    """Return the distinct clients, the first few by name."""
    distinct = sorted({sender.name for sender in senders}, key=lambda name: (len(name), name))
    more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
    return ", ".join(distinct[:NAMED]) + more


def _ranking(result: Result, baselines: Mapping[str, Splits]) -> Iterator[str]:
    own, common = (result.test.get(kind, {}).get("ndcg@10") for kind in ("personalised", "global"))
    popular = baselines.get("popularity", {}).get("test", {}).get("ndcg@10")
    if common is not None and popular is not None and common <= popular:
        yield (
            f"The model ranks no better than popularity (NDCG@10 {common:.4f} against {popular:.4f}): it has not "
            "trained. Do more rounds (federation.num_rounds), use a server optimiser (federation.strategy: fedadam) "
            "and few local steps."
        )
    if own is not None and common is not None and own < 0.98 * common:
        yield (
            f"Private parameters cost the clients accuracy (NDCG@10 {own:.4f} against {common:.4f} with the server's "
            "model alone): lower training.learning_rate, or share everything with federation.shared=all."
        )


def _course(records: Records, result: Result) -> Iterator[str]:
    _, evaluated = values_of(records, "ndcg@10", "validation")
    best = result.best_round
    if len(evaluated) > 3 and best is not None and best < 0.6 * len(records) and evaluated[-1] < 0.95 * max(evaluated):
        yield (
            f"Validation was best in round {best} of {len(records)} and has fallen since: the model overfits. "
            "Raise model.dropout, do fewer rounds, or lower federation.patience."
        )
    if best is not None and best == len(records) > 1 and len(evaluated) > 1:
        yield "The last evaluation was the best one: more rounds (federation.num_rounds) may help."
    asked = sum(record.clients for record in records)
    failed = sum(failure.stage == "train" for record in records for failure in record.failed)
    if failed > 0.05 * asked:
        yield f"{failed} of {asked} replies to training failed: see the table of failed clients."
    _, cut = values_of(records, "clipped")
    if cut and fmean(cut) > MOST_CUT:
        yield (
            f"{fmean(cut):.0%} of the updates, by weight, were longer than privacy.update_norm and were cut: raise it, "
            "for silos to 10 or so."
        )


def _gate(records: Records) -> Iterator[str]:
    found = signs(records)
    if "gate" not in found:
        return
    first, last = found["gate"]
    gradients = [abs(value) for value in values_of(records, "gate-gradient")[1]]
    if len(gradients) >= LEAST_ROUNDS and abs(last - first) < 1e-3:
        gradient = fmean(gradients)
        remedy = (
            "nothing reaches it - see whether the experts say anything (their outputs are in the table)."
            if gradient < 1e-7
            else "raise training.learning_rate or training.clip_gate, or start elsewhere (model.gate_init)."
        )
        yield f"The gate has not moved from {last:.3f} (mean gradient {gradient:.1e}): {remedy}"
    if last < 0:
        yield (
            f"The gate is negative ({last:.3f}): the experts hurt. "
            "Try model.item_representation=id+content, or other features."
        )
    if abs(last) > 2:
        yield (
            f"The gate is large ({last:.2f}): the experts drown the backbone. "
            "Lower training.clip_gate or model.gate_init."
        )


def _experts(records: Records) -> Iterator[str]:
    found = signs(records)
    for expert in experts_seen(records):
        _, size = found.get(f"view-{expert}", (1.0, 1.0))
        if size < 1e-4:
            yield f"The {expert} expert says nothing (its output has size {size:.1e}): it is dead. Check its features."
        _, weight = found.get(f"router-{expert}", (1.0, 1.0))
        if "router-entropy" in found and weight < 0.05:
            yield (
                f"The router has left the {expert} expert (weight {weight:.3f}): "
                "raise training.balance_weight if it should be heard."
            )
