"""``python -m fedmoe_server export RUN_FOLDER``: the global model of a run, for use outside of the federation.

``model.safetensors`` (the server's arrays of the best round), ``settings.yaml``, ``item_ids.txt`` (line k is the id of
item k), ``model.pt2`` (the ranking as a ``torch.export`` program, where the model can be exported), ``items.parquet``
and, of simulated clients, ``users.parquet``, and a card as Hugging Face has them, ``README.md``. Private parameters are
with the clients: of these the server's own copy is exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from data.dataset import Dataset
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.files import write_folder
from fedmoe.loading import read_yaml, settings_from
from fedmoe_server.report.model_card import model_card
from fedmoe_server.report.run_folder import SETTINGS, is_simulated
from fedmoe_server.rounds.checkpoints import find_checkpoint, load_checkpoint
from fedmoe_server.rounds.record import list_arrays
from model.build import arrays_of, build_model
from model.residual_moe import ResidualMoE
from model.version import model_version

WEIGHTS, PROGRAM, ITEM_IDS, CARD = "model.safetensors", "model.pt2", "item_ids.txt", "README.md"
ITEMS, USERS = "items.parquet", "users.parquet"
USERS_AT_ONCE = 256
TOLERANCE = 1e-4  # of scores, between the program and the model it was made from


class Ranking(nn.Module):
    """The model as a function of a context and candidates alone."""

    def __init__(self, model: ResidualMoE) -> None:
        super().__init__()
        self.model = model

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """Return scores ``[B, N]`` of candidates ``[B, N]`` after contexts ``[B, C]``, left-padded with 0."""
        return self.model.rank_scores(context, candidates)


@dataclass(frozen=True)
class Export:
    """What was written. program_problem: why there is no ``model.pt2``, None if there is one."""

    folder: Path
    round: int
    program_problem: str | None


def export(run_dir: Path, out: Path) -> Export:
    """Write the global model of a run into a new folder.

    Raises:
        FedMoEError: the folder exists, the run has no checkpoint, or its data set is not the one it was made with.
    """
    if out.exists():
        raise FedMoEError(f"{out} exists already - name another folder with --out, or remove it")
    settings = settings_from(read_yaml(str(run_dir / SETTINGS)))
    dataset = load_dataset(settings)
    model = build_model(settings, dataset)
    number = _load_best(run_dir, model)
    model.eval()
    marks = dataset.fingerprints() | {"model": model_version(settings, dataset)}  # as clients are told
    problem: str | None = None

    def fill(folder: Path) -> None:
        nonlocal problem
        # Written by Python, since safetensors reports a full disk as an error of its own kind.
        metadata = {"format": "pt", **marks, "round": str(number)}
        (folder / WEIGHTS).write_bytes(save(arrays_of(model), metadata=metadata))
        (folder / SETTINGS).write_bytes((run_dir / SETTINGS).read_bytes())
        ids = dataset.interactions.item_ids[1:].tolist()
        (folder / ITEM_IDS).write_text("".join(f"{item}\n" for item in ids), encoding="utf-8")
        _save_tables(model, dataset, folder, with_users=is_simulated(run_dir))
        problem = _save_program(model, folder / PROGRAM)
        card = model_card(run_dir, folder, settings, dataset, marks, problem)
        (folder / CARD).write_text(card, encoding="utf-8")

    write_folder(out, fill)
    return Export(out, number, problem)


def _load_best(run_dir: Path, model: ResidualMoE) -> int:
    """Load the best arrays of the run's last checkpoint into a model; return their round."""
    arrays, number = load_checkpoint(find_checkpoint(run_dir), list_arrays(arrays_of(model))).state.chosen()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name].numpy()))
    return number


def _save_tables(model: ResidualMoE, dataset: Dataset, folder: Path, with_users: bool) -> None:
    """Write what the model makes of each item alone, and of each user of a simulation after its whole history."""
    import pyarrow as pa  # a moment that other commands need not take
    from pyarrow import parquet

    known, titles = dataset.interactions, dataset.titles
    with torch.inference_mode():
        vectors = model.items(torch.arange(1, known.num_items + 1)).numpy()
    columns = {
        "item": np.arange(1, known.num_items + 1, dtype=np.int32),
        "id": known.item_ids[1:].tolist(),
        "title": [""] * known.num_items if titles is None else titles[1:],
        "vector": list(vectors),
    }
    parquet.write_table(pa.table(columns), folder / ITEMS)
    if not with_users:
        return
    length = model.settings.max_seq_len
    histories = [known.history(user) for user in range(known.num_users)]
    latest = np.zeros((known.num_users, length), np.int64)
    for row, history in zip(latest, histories, strict=True):
        row[length - len(history[-length:]) :] = history[-length:]
    with torch.inference_mode():
        starts = range(0, len(latest), USERS_AT_ONCE)
        pieces = [model.states(torch.from_numpy(latest[at : at + USERS_AT_ONCE]))[:, -1] for at in starts]
    columns = {"user": known.user_ids.tolist(), "history": histories, "vector": list(torch.cat(pieces).numpy())}
    parquet.write_table(pa.table(columns), folder / USERS)


def _save_program(model: ResidualMoE, path: Path) -> str | None:
    """Write the model as a ``torch.export`` program for any number of contexts and candidates.

    Returns why there is none, if exporting fails or the program gives other scores than the model.
    """
    length = max(model.settings.max_seq_len, model.settings.memory_size)
    ranking = Ranking(model).eval()
    batch, count = torch.export.Dim("batch", min=1), torch.export.Dim("candidates", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(
                ranking, _example(model.num_items, 2, length, 5), dynamic_shapes=({0: batch}, {0: batch, 1: count})
            )
            torch.export.save(program, path)
            again = torch.export.load(path).module()
            for shape in ((1, 7), (3, 4)):
                example = _example(model.num_items, shape[0], length, shape[1])
                torch.testing.assert_close(again(*example), ranking(*example), atol=TOLERANCE, rtol=TOLERANCE)
    # torch.export raises a dozen unrelated types for what it cannot express; the weights are exported all the same.
    except Exception as error:
        path.unlink(missing_ok=True)
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _example(num_items: int, batch: int, length: int, candidates: int) -> tuple[Tensor, Tensor]:
    """Return contexts, some of them padded, and candidates."""
    context = torch.arange(batch * length).reshape(batch, length) % num_items + 1
    context[0, : length // 2] = 0
    return context, torch.arange(batch * candidates).reshape(batch, candidates) % num_items + 1
