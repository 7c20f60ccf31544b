"""Strategies, clients and every kind of component of one's own, in runs over gRPC: the bits of the simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from real_processes import ROOT, SMALL, Federation, final_arrays, records, simulated

pytestmark = pytest.mark.more
USERS = 3
RUNS = {
    "statistics first, then a choice": ["strategy=paper_strategies:PowerOfChoice"],
    "two models a round": ["strategy=paper_strategies:IFCA"],
    "records both ways, state at the clients, and every kind of component": [
        "strategy=examples.clients.scaffold:Scaffold",
        f"strategy_parameters.clients={USERS}",
        "client=examples.clients.scaffold:ScaffoldClient",
        "backbone=examples.backbones.gru4rec:GRU4Rec",
        "loss=examples.losses.bpr_max:BPRMax",
        "evaluation.metrics={mrr: examples.metrics.mrr:MRR}",
    ],
}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Federation]:
    """A federation on a data set of one's own, with a modality and an expert of one's own."""
    rng = np.random.default_rng(3)
    file = tmp_path / "combined_data_1.txt"
    films = {film: rng.permutation(USERS)[: rng.integers(2, USERS + 1)] for film in range(1, 31)}
    lines = {film: [f"{user},{1 + film % 5},2005-0{film % 9 + 1}-11" for user in films[film]] for film in films}
    file.write_text("".join("\n".join([f"{film}:", *lines[film], ""]) for film in films))
    words = [word for word in SMALL if "synthetic" not in word and not word.startswith(("strategy", "num_rounds"))]
    words += ["dataset=examples.data.netflix:NetflixPrize", f"dataset_parameters.file={file}", "num_rounds=2"]
    words += ["modalities.mood.file=noise", "modalities.mood.expert=examples.experts.average:Average"]
    made = Federation(
        tmp_path, USERS, [*words, "modalities.mood.expert_parameters.decay=5.0", "server_schedule=constant"]
    )
    made.search_path.append(ROOT / "tests")
    yield made
    if made.processes():
        made.down()
    assert not made.processes()


def test_runs_with_parts_of_ones_own_give_the_simulations_bits(own: Federation) -> None:
    own.up()
    path = {"PYTHONPATH": ":".join(map(str, own.search_path))}
    for what, more in RUNS.items():
        expected = simulated(own.root, *more, words=own.words, **path)
        own.server("run", *own.words, *more, f"save_dir={own.runs}")
        deployed, wanted = final_arrays(own.run_dir()), final_arrays(expected)
        assert "arrays.safetensors/experts.mood.output.weight" in wanted
        different = [name for name in wanted if wanted[name].tobytes() != deployed[name].tobytes()]
        assert different == [] and deployed.keys() == wanted.keys(), what
        assert [row["train"] for row in records(own.run_dir())] == [row["train"] for row in records(expected)], what
        tests = [json.loads((folder / "result.json").read_text())["test"] for folder in (own.run_dir(), expected)]
        assert tests[0] == tests[1], what
    assert "mrr" in tests[0]["personalised"]
