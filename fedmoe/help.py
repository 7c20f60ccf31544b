"""The help of the command line, one screen a topic, and completion in the shell, both from the settings themselves."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from fedmoe.errors import FedMoEError, nearest
from fedmoe.loading import ALIASES, CONFIGS, full_key, leaves
from fedmoe.settings import Settings

TOPICS = {
    "run": "name, seed, folder and trackers of the run",
    "data": "histories and item features",
    "modalities": "features, norm and expert of each modality of the items; modalities.NAME=null removes one",
    "model": "backbone, experts, router, gate, fusion",
    "training": "what a client does in a round",
    "federation": "rounds, cohorts, strategy, aggregation schedule",
    "privacy": "differential privacy: budget, noise, clipping",
    "evaluation": "how the held-out item is ranked",
    "simulation": "engine, workers, CPU and GPU",
    "deployment": "how long the server of real clients waits, and for whom",
}

OVERVIEW = """\
Train SASRec with a residual mixture of experts, one for each modality of the items, every user being a client.

  {program}                                        MovieLens-100K with the default settings
  {program} CONFIG                                 a YAML file, or one of: {configs}
  {program} [CONFIG] key=value --num_rounds 50     settings on top; a key may be shortened to its last part
  {program} SWEEP                                  runs side by side: {sweeps}
  {program} search                                 trials of drawn settings, with Ray Tune: configs/search.yaml
  {program} ... --dry-run                          read and check everything, show the plan, train nothing
  {program} --resume runs/FOLDER                   go on from a run's last checkpoint, or with a search
  {program} --help TOPIC                           the settings of one topic:

{topics}

{spellings}
A run leaves its settings, metrics, checkpoints, plots and report.md in runs/<time>-<name>/. Exit status: 0 done, 2
something for you to put right."""

# What the command takes, as far as a shell completes it.
SIM: dict[str, Any] = {"words": {"nargs": "*"}, "--dry-run": {"action": "store_true"}, "--resume": {}}


def help_text(topics: list[str], program: str = "python sim.py") -> str:
    """Return the overview, or the settings of the topics named. program: what the command is called by."""
    if unknown := [topic for topic in topics if topic not in TOPICS]:
        raise FedMoEError(f"no help on '{unknown[0]}'{nearest(unknown[0], TOPICS)} Topics: {', '.join(TOPICS)}")
    if topics:
        return "\n\n".join(_topic(topic) for topic in topics)
    return OVERVIEW.format(
        program=program,
        configs=", ".join(
            sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(("sweep-", "search")))
        ),
        sweeps=", ".join(sorted(path.stem for path in CONFIGS.glob("sweep-*.yaml"))),
        topics="\n".join(f"    {topic:<12}{text}" for topic, text in TOPICS.items()),
        spellings=textwrap.fill(
            f"Other spellings: {', '.join(f'--{alias} is {key}' for alias, key in ALIASES.items())}; "
            "--use_negative_sampling true|false chooses training.loss.",
            116,
        ),
    )


def settings_of(topic: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, default and description of each setting of a topic."""
    for key, field in leaves(Settings):
        section, _, leaf = key.partition(".")
        if (section if leaf else "run") == topic:
            yield key, _default(field.get_default()), f"{field.description}{_choices(field.annotation)}"


def _topic(topic: str) -> str:
    rows = [(f"{key} = {default}", description) for key, default, description in settings_of(topic)]
    width = min(max(len(setting) for setting, _ in rows), 46)
    lines = []
    for setting, description in rows:
        first, *rest = textwrap.wrap(description, 116 - width)
        if len(setting) > width:  # too long to share its line
            lines.append(f"  {setting}")
            setting = ""
        lines.append(f"  {setting:<{width}}  {first}")
        lines += [f"  {'':<{width}}  {line}" for line in rest]
    return "\n".join([f"{topic}: {TOPICS[topic]}", "", *lines])


def _default(value: Any) -> str:
    if isinstance(value, dict) and value and not any(value.values()):  # names without arguments
        value = list(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _choices(annotation: Any) -> str:
    return f"  ({' | '.join(map(str, get_args(annotation)))})" if get_origin(annotation) is Literal else ""


def complete(parser: argparse.ArgumentParser | None = None) -> None:
    """Answer a shell that asks what may follow, and end; do nothing in any other process. None: that of ``sim.py``."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        made = parser or argparse.ArgumentParser()
        for name, how in () if parser else SIM.items():
            made.add_argument(name, **how)
        given: Any = words  # a function does, whatever the type says
        argcomplete.autocomplete(made, default_completer=given)


def words(prefix: str, action: argparse.Action, **others: Any) -> list[str]:
    """Return shipped files and settings, whose keys are short where that is unique; for nothing the shell has files."""
    fields = dict(leaves()) if action.dest == "words" else {}
    key, equals, _ = prefix.partition("=")
    if equals:
        kind = getattr(fields.get(full_key(key, []) or ""), "annotation", None)
        values = ("true", "false") if kind is bool else get_args(kind)
        return [f"{key}={each}" for each in values if isinstance(each, str)]
    keys = [full if "." in key else full.split(".")[-1] for full in fields]
    return [f"{key}=" for key in keys if full_key(key, [])] + [path.stem for path in CONFIGS.glob("*.yaml") if fields]
