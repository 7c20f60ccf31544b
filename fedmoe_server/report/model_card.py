"""The card of an exported model in Hugging Face's form: what it is, how well it ranks, and how it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.dataset import Dataset
from fedmoe.errors import FedMoEError
from fedmoe.modalities import GROUPS, selected
from fedmoe.settings import Settings
from fedmoe_server.report.progress import number
from fedmoe_server.report.report import ranked_among, table
from fedmoe_server.report.run_folder import averaged, baselines_of, federated_metrics, is_simulated, read_result
from fedmoe_server.rounds.record import Result

METRICS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")
PRIVATE = """
After the warm-up {} stayed with the clients, and are here as the server last knew them: the figures to expect are those
of the global model.
"""
NO_PROGRAM = """
There is no `torch.export` program: {}
"""
USE = """
`model.pt2` needs torch alone, has the item features and these parameters in it, and ranks on a device. With other
parameters of the same names, such as those of a later round, it ranks by these:

```python
import torch
from pyarrow.parquet import read_table
from safetensors.torch import load_file

ranking = torch.export.load("model.pt2").module()
ranking.load_state_dict({{f"model.{{k}}": v for k, v in load_file("model.safetensors").items()}}, strict=False)
items = read_table("items.parquet").to_pylist()
history = {history}  # the items met, oldest first
context = torch.tensor([([0] * {length} + history)[-{length}:]])
new = torch.tensor([[item["item"] for item in items if item["item"] not in history]])
best = new[0, ranking(context, new)[0].topk(10).indices]
print([items[number - 1]["title"] or items[number - 1]["id"] for number in best.tolist()])
```
"""
FIRST_USER = 'read_table("users.parquet").to_pylist()[0]["history"]'
TABLES = """
`items.parquet` has number, id, title and vector of each item{}. The product of the two vectors is the
backbone's part of a score; what the experts add depends on user and item together.
"""
TAGS = ["recommendation", "sequential-recommendation", "federated-learning", "sasrec", "mixture-of-experts", "flower"]


def model_card(
    run_dir: Path, exported: Path, settings: Settings, dataset: Dataset, marks: Mapping[str, str], problem: str | None
) -> str:
    """Return the card in Markdown.

    exported: folder of the other files. marks: what tells this model and its catalogue apart. problem: why there is no
    ``torch.export`` program, None if there is one.
    """
    model = settings.model
    experts = "no experts"
    if model.mixture and dataset.features:
        experts = f"a {model.fusion} mixture of experts ({', '.join(dataset.features)})"
    result = read_result(run_dir)
    origin = "**The run has not completed**: this is the model of its last checkpoint."
    if result.status == "completed":
        chosen = ", the best by NDCG@10 on validation" if settings.federation.evaluate_every else ""
        origin = f"The model of round {result.best_round} of {result.rounds}{chosen}."
    private = [group for group in GROUPS if not selected(settings.federation.shared, [group])]
    files = [
        [path.name, str(path.stat().st_size), f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`"]
        for path in sorted(exported.iterdir())
    ]
    identity = "\n".join(f"* {name}: `{mark}`" for name, mark in marks.items())
    users = (exported / "users.parquet").exists()
    use = USE.format(length=max(model.max_seq_len, model.memory_size), history=FIRST_USER if users else "[4, 17]")
    tables = TABLES.format(", `users.parquet` id, history and vector of each user" if users else "")
    return f"""\
---
{yaml.safe_dump(_front_matter(run_dir, settings, dataset), sort_keys=False, allow_unicode=True)}---

# {settings.name}: global model of a federated run

SASRec with {experts}, trained with {settings.federation.strategy} on {_learned_from(run_dir, dataset, result)}. \
{origin}

## How well it ranks

{_figures(run_dir, settings)}
{PRIVATE.format(", ".join(private)) if private else ""}
## Files

{table(["file", "bytes", "SHA-256"], files, text=(0, 2))}
{NO_PROGRAM.format(problem) if problem else ""}
## Use

`model.safetensors` holds the parameters by name, for `model.build.build_model` with `settings.yaml`.
{use if problem is None else ""}{tables}
## Identity

{identity}
"""


def _front_matter(run_dir: Path, settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """Return what Hugging Face reads of a card, with the figures that have been measured."""
    figures = read_result(run_dir).test.get("global", {})
    found = [{"type": name, "value": figures[name]} for name in METRICS if figures.get(name) is not None]
    data = {"type": dataset.name, "name": dataset.name, "split": "test"}
    results = [{"task": {"type": "sequential-recommendation"}, "dataset": data, "metrics": found}] if found else []
    return {
        "library_name": "fedmoe",
        "tags": TAGS,
        "metrics": [each["type"] for each in found],
        "model-index": [{"name": settings.name, "results": results}],
    }


def _learned_from(run_dir: Path, dataset: Dataset, result: Result) -> str:
    """Return what the model has learned from; of real clients the server knows neither histories nor users."""
    known = dataset.interactions
    if is_simulated(run_dir):
        users = f"{known.num_users} users, each of them a client that kept its history to itself"
        return f"the data set {dataset.name}: {known.num_items} items, {users}"
    asked = result.final_clients
    clients = "clients" if asked is None else f"{asked} clients, as many as were connected at the end"
    return f"the histories of {clients}, which kept them to themselves: {known.num_items} items of the catalogue"


def _figures(run_dir: Path, settings: Settings) -> str:
    try:
        rows = {**federated_metrics(run_dir), **baselines_of(run_dir)}
    except FedMoEError:
        return "Not measured: the run has not completed."
    names = [name for name in METRICS if all(name in splits["test"] for splits in rows.values())]
    body = [[title, *(number(splits["test"][name], 4) for name in names)] for title, splits in rows.items()]
    among = ranked_among(settings.evaluation.model_dump())
    figures = table(["", *(name.upper() for name in names)], body)
    who = averaged(read_result(run_dir))
    return f"Test: the last item of each user, ranked among {among}; means over {who}.\n\n{figures}"
