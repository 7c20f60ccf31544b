"""What a run's numbers say about its health, and what to try: each advice hangs on a measured sign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

Records = Sequence[Mapping[str, Any]]
RECENT = 20  # rounds that count as the end of a run: a round's clients differ
LEAST_ROUNDS = 10  # after fewer a gate cannot be expected to have moved
EXPERTS = ("visual", "semantic")


def findings(records: Records, result: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[str]:
    """Return one line for each sign of trouble; none is a good sign.

    records: lines of ``metrics.jsonl``; result: ``result.json``; baselines: ``baselines.json``.
    """
    if not records:
        return []
    return [*_ranking(result, baselines), *_course(records, result), *_gate(records), *_experts(records)]


def signs(records: Records) -> dict[str, tuple[float, float]]:
    """Return the mean of the first and of the last rounds of what the experts do, by the metric's name.

    They are ``RECENT`` rounds each, or half of a short run's.
    """
    watched = (
        "gate",
        "gate-gradient",
        *(f"router-{e}" for e in EXPERTS),
        "router-entropy",
        *(f"view-{e}" for e in EXPERTS),
    )
    series = {name: [r["train"][name] for r in records if r["train"].get(name) is not None] for name in watched}
    ends = {name: (values, max(1, min(RECENT, len(values) // 2))) for name, values in series.items() if values}
    return {name: (fmean(values[:few]), fmean(values[-few:])) for name, (values, few) in ends.items()}


def _ranking(result: Mapping[str, Any], baselines: Mapping[str, Any]) -> Iterator[str]:
    test = result.get("test", {})
    own, common = (test.get(kind, {}).get("ndcg@10") for kind in ("personalised", "global"))
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


def _course(records: Records, result: Mapping[str, Any]) -> Iterator[str]:
    evaluated = [r["validation"]["ndcg@10"] for r in records if r["validation"] and r["validation"].get("ndcg@10")]
    best = result.get("best_round")
    if len(evaluated) > 3 and best is not None and best < 0.6 * len(records) and evaluated[-1] < 0.95 * max(evaluated):
        yield (
            f"Validation was best in round {best} of {len(records)} and has fallen since: the model overfits. "
            "Raise model.dropout, do fewer rounds, or lower federation.patience."
        )
    if best is not None and best == len(records) > 1 and len(evaluated) > 1:
        yield "The last evaluation was the best one: more rounds (federation.num_rounds) may help."
    asked = sum(r["clients"] for r in records)
    failed = sum(failure["stage"] == "train" for r in records for failure in r["failed"])
    if failed > 0.05 * asked:
        yield f"{failed} of {asked} replies to training failed: see the table of failed clients."


def _gate(records: Records) -> Iterator[str]:
    found = signs(records)
    if "gate" not in found:
        return
    first, last = found["gate"]
    gradients = [abs(r["train"]["gate-gradient"]) for r in records if r["train"].get("gate-gradient") is not None]
    if len(gradients) >= LEAST_ROUNDS and abs(last - first) < 1e-3:
        gradient = fmean(gradients)
        blocked = gradient < 1e-7
        yield f"The gate has not moved from {last:.3f} (mean gradient {gradient:.1e}): " + (
            "nothing reaches it - see whether the experts say anything (their outputs are in the table)."
            if blocked
            else "raise training.learning_rate or training.clip_gate, or start elsewhere (model.gate_init)."
        )
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
    for expert in EXPERTS:
        _, size = found.get(f"view-{expert}", (1.0, 1.0))
        if size < 1e-4:
            yield f"The {expert} expert says nothing (its output has size {size:.1e}): it is dead. Check its features."
        _, weight = found.get(f"router-{expert}", (1.0, 1.0))
        if "router-entropy" in found and weight < 0.05:
            yield (
                f"The router has left the {expert} expert (weight {weight:.3f}): "
                "raise training.balance_weight if it should be heard."
            )
