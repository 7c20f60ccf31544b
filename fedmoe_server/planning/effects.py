"""Settings that were given and have no effect, because of others: each is a warning."""

from __future__ import annotations

from collections.abc import Iterator

from fedmoe.settings import PrivacySettings, Settings

_EXPERTS = (
    *(
        "experts",
        "fusion",
        "gate_init",
        "attention_dim",
        "memory_size",
        "memory_refresh",
        "memory_decay",
        "memory_floor",
    ),
    "norm_sequence",
)


def without_effect(settings: Settings) -> list[str]:
    """Return a line for each setting that was given to a simulation and that nothing reads.

    Settings that a run has written down name every key: of them it cannot be told what was given.
    """
    if set(Settings.model_fields) <= settings.model_fields_set:
        return []
    return [f"{key} has no effect: {reason}" for key, reason in _found(settings) if is_given(settings, key)]


def is_given(settings: Settings, key: str) -> bool:
    """Whether a file or the command line gave a setting ``section.leaf`` a value."""
    section, leaf = key.split(".")
    return section in settings.model_fields_set and leaf in getattr(settings, section).model_fields_set


def _found(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting that nothing reads, given or not, and why."""
    training, federation, evaluation = settings.training, settings.federation, settings.evaluation
    if not settings.model.mixture:
        yield from ((f"model.{name}", "mixture is false") for name in _EXPERTS)
        yield "training.balance_weight", "mixture is false"
    elif settings.model.fusion != "residual":
        yield "model.gate_init", f"fusion {settings.model.fusion} has no gate"
    if training.loss != "gbce":
        yield "training.gbce_calibration", f"it belongs to loss gbce, not to {training.loss}"
    if training.loss == "softmax":
        yield "training.num_negatives", "loss softmax ranks the positive among all items"
    if training.windows != "all":
        yield "training.max_windows", f"windows {training.windows} is one window"
    if federation.warmup_rounds == 0:
        yield "federation.warmup", "warmup_rounds is 0"
    elif federation.warmup_rounds >= federation.num_rounds:
        yield "federation.shared", f"all {federation.num_rounds} rounds belong to the warm-up; lower warmup_rounds"
    if federation.evaluate_every == 0:
        yield "federation.patience", "evaluate_every is 0: there is nothing to be patient with"
    if evaluation.protocol == "full":
        yield "evaluation.num_candidates", "protocol full ranks among all items; set protocol to sampled"
    if settings.simulation.engine != "vectorized":
        yield "simulation.stack_size", f"engine {settings.simulation.engine} does not stack clients"
    if settings.simulation.engine == "flower":
        for name in ("hosts", "aggregate_in_hosts", "state_memory"):
            yield f"simulation.{name}", "engine flower has no hosts"
    if settings.simulation.device == "cuda" and not settings.simulation.client_gpus:
        yield "simulation.device", "clients have no part of a GPU; set simulation.client_gpus"
    masked = ("secure_aggregation", "rows_first", "smallest_cohort", "dropouts", "corrupt")
    yield from ((f"privacy.{name}", "real clients mask their sums, simulated ones add up") for name in masked)
    if not settings.privacy.on:
        used = {*masked, "sum_bits", "update_norm" if settings.privacy.sum_bits else ""}
        idle = [name for name in PrivacySettings.model_fields if name not in used]
        yield from ((f"privacy.{name}", "set privacy.epsilon") for name in idle)
    for name in type(settings.deployment).model_fields:
        yield f"deployment.{name}", "it is for real clients, and these are simulated"
