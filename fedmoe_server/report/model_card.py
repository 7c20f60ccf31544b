"""The card of an exported model: what it is, how well it ranks, and how it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.dataset import Dataset
from fedmoe.errors import FedMoEError
from fedmoe.modalities import GROUPS, selected
from fedmoe.settings import Settings
from fedmoe_server.report.progress import number
from fedmoe_server.report.report import ranked_among, table
from fedmoe_server.report.run_folder import Splits, baselines_of, federated_metrics, read_result

_METRICS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")


@dataclass(frozen=True)
class Part:
    """A file of the export: its name, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str


def model_card(
    run_dir: Path,
    settings: Settings,
    dataset: Dataset,
    marks: Mapping[str, str],
    parts: Sequence[Part],
    program_problem: str | None,
) -> str:
    """Return the card in Markdown; everything in it comes from the arguments and the run folder."""
    known = dataset.interactions
    sections = [
        f"# {settings.name}: global model of a federated run",
        f"SASRec with {_experts(settings, dataset)}, trained with {settings.federation.strategy} on the data set "
        f"{dataset.name}: {known.num_items} items, {known.num_users} users, each of them a client that kept its "
        "history to itself. " + _rounds(run_dir),
        "## How well it ranks\n\n" + _figures(run_dir, settings),
        _private(settings),
        "## Files\n\n" + _files(parts, program_problem),
        "## Use\n\n" + _use(settings, program_problem),
        "## Identity\n\n" + "\n".join(f"* {name}: `{mark}`" for name, mark in marks.items()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _experts(settings: Settings, dataset: Dataset) -> str:
    if not settings.model.mixture or not dataset.features:
        return "no experts"
    return f"a {settings.model.fusion} mixture of experts ({', '.join(dataset.features)})"


def _rounds(run_dir: Path) -> str:
    result = read_result(run_dir)
    if result.status != "completed":
        return "**The run has not completed**: this is the model of its last checkpoint."
    return f"The model of round {result.best_round} of {result.rounds}, the best by NDCG@10 on validation."


def _figures(run_dir: Path, settings: Settings) -> str:
    try:
        rows: dict[str, Splits] = {**federated_metrics(run_dir), **baselines_of(run_dir)}
    except FedMoEError:
        return "Not measured: the run has not completed."
    among = ranked_among(settings.evaluation.model_dump())
    names = [name for name in _METRICS if all(name in splits["test"] for splits in rows.values())]
    body = [[title, *(number(splits["test"][name], 4) for name in names)] for title, splits in rows.items()]
    return f"Test: the last item of each user, ranked among {among}; means over users.\n\n" + table(
        ["", *(name.upper() for name in names)], body
    )


def _private(settings: Settings) -> str:
    private = [group for group in GROUPS if not selected(settings.federation.shared, [group])]
    if not private:
        return ""
    return (
        f"After the warm-up {', '.join(private)} stayed with the clients, and are here as the server last knew them: "
        "the figures to expect are those of the global model."
    )


def _files(parts: Sequence[Part], program_problem: str | None) -> str:
    lines = ["| file | bytes | SHA-256 |", "|---|---:|---|"]
    lines += [f"| {part.name} | {part.size} | `{part.sha256}` |" for part in parts]
    if program_problem is not None:
        lines += ["", f"There is no `torch.export` program: {program_problem}"]
    return "\n".join(lines)


def _use(settings: Settings, program_problem: str | None) -> str:
    length = max(settings.model.max_seq_len, settings.model.memory_size)
    weights = "`model.safetensors` holds the parameters by name, for `model.build.build_model` with `settings.yaml`."
    if program_problem is not None:
        return weights
    return (
        f"{weights}\n`model.pt2` needs torch alone and has the item features in it; items are numbered by the lines of "
        '`item_ids.txt`, from 1:\n\n```python\nimport torch\n\nranking = torch.export.load("model.pt2").module()\n'
        f"context = torch.zeros(1, {length}, dtype=torch.long)  # the latest items, oldest first, 0 on the left\n"
        "context[0, -2:] = torch.tensor([17, 4])\n"
        "scores = ranking(context, torch.arange(1, num_items + 1).unsqueeze(0))  # [1, num_items]\n```"
    )
