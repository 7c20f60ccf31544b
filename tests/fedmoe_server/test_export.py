"""The exported model is the run's best one, and usable without the federation."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pyarrow.parquet import read_table
from safetensors import safe_open
from safetensors.numpy import load_file

from data.dataset import Dataset, load_catalogue
from data.registry import load_dataset
from fedmoe.deployment import front_door
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from fedmoe_client.device.recommend import best_items
from fedmoe_client.learning.workbench import Workbench
from fedmoe_server.__main__ import COMMANDS, parser
from fedmoe_server.report.export import CARD, ITEMS, PROGRAM, USERS, WEIGHTS, export
from fedmoe_server.report.run_folder import CHECKPOINTS, RESULT, SETTINGS
from fedmoe_server.rounds.checkpoints import CheckpointStore
from fedmoe_server.rounds.record import LoopState, list_arrays
from model.build import arrays_of, build_model
from strategies import build_strategy

WORDS = (
    "dataset=synthetic data.synthetic.users=12 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 "
    "memory_size=6 memory_refresh=3 name=small"
).split()


def main(words: list[str]) -> int:
    return front_door.main(parser(), COMMANDS, ["export", *words])


def catalogue(words: list[str]) -> int:
    return front_door.main(parser(), COMMANDS, ["catalogue", *words])


@dataclass(frozen=True)
class Exported:
    """A run that was exported once, by the command. printed, warned: what that said."""

    settings: Settings
    dataset: Dataset
    arrays: dict[str, np.ndarray]
    run_dir: Path
    printed: str
    warned: str

    @property
    def out(self) -> Path:
        return self.run_dir / "export"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, fakes: Any) -> Exported:
    run_dir = tmp_path_factory.mktemp("exported") / "run"
    words = [word.replace("users=12", "users=100").replace("items=40", "items=300") for word in WORDS]
    made = make_run(run_dir, fakes, words)
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as warned:
        assert main([str(run_dir)]) == 0
    return Exported(*made, run_dir, printed.getvalue(), warned.getvalue())


def make_run(folder: Path, fakes: Any, words: Sequence[str] = WORDS) -> tuple[Settings, Dataset, dict[str, np.ndarray]]:
    """Write what a completed run leaves behind; return the best arrays."""
    settings, _ = load_settings(words)
    dataset = load_dataset(settings)
    arrays = arrays_of(build_model(settings.model_copy(update={"seed": 9}), dataset))
    state = LoopState(list_arrays(arrays), round=3)
    state.judge(0.2, {})
    state.arrays = list_arrays({name: np.asarray(array + 1) for name, array in arrays.items()})
    state.round = 4
    CheckpointStore(folder / CHECKPOINTS).save(state, build_strategy("fedavg", {}), fakes.FakeGrid())
    (folder / SETTINGS).write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    figures = {kind: {"hr@10": 0.25, "ndcg@10": 0.125} for kind in ("personalised", "global")}
    result = {"status": "completed", "rounds": 4, "best_round": 3, "test": figures, "validation": figures}
    (folder / RESULT).write_text(json.dumps(result))
    return settings, dataset, arrays


def test_the_best_model_is_exported_with_card_settings_and_program(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, dataset, arrays, out = exported.settings, exported.dataset, exported.arrays, exported.out
    assert "round 3" in exported.printed
    assert exported.warned == ""
    files = {WEIGHTS, PROGRAM, CARD, SETTINGS, "item_ids.txt", ITEMS, USERS}
    assert {path.name for path in out.iterdir()} == files
    found = load_file(out / WEIGHTS)
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in arrays.items()}

    model = build_model(settings, dataset)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(found[name]))
    model.eval()
    context = torch.tensor([[0, 0, 3, 1, 4, 7]])
    candidates = torch.arange(1, 301).unsqueeze(0)
    program = torch.export.load(out / PROGRAM).module()
    torch.testing.assert_close(program(context, candidates), model.rank_scores(context, candidates))

    card = (out / CARD).read_text()
    for words in (
        "small",
        "0.2500",
        "round 3",
        "router, gate, norms stayed",
        "model.pt2",
        *dataset.fingerprints().values(),
    ):
        assert words in card
    assert main([str(exported.run_dir)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_card_of_a_deployment_speaks_of_its_clients(
    tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own data set has users who took no part, and the clients' histories are not its to count."""
    monkeypatch.setattr("fedmoe_server.report.export._save_program", lambda model, path: None)  # takes seconds
    settings, dataset, _ = make_run(tmp_path / "run", fakes)
    path = tmp_path / "run" / RESULT
    failure = {"client": 7, "node": 1, "stage": "test", "reason": "no reply in time", "kind": "no-reply"}
    ended = json.loads(path.read_text()) | {"final_clients": 12, "final_failures": [failure]}
    path.write_text(json.dumps(ended))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"simulated": False, "data": {}}))
    out = tmp_path / "out"
    assert main([str(tmp_path / "run"), "--out", str(out)]) == 0
    card = " ".join((out / CARD).read_text().split())
    assert "on the histories of 12 clients, as many as were connected at the end, which kept them" in card
    assert f"{dataset.interactions.num_items} items of the catalogue" in card
    assert f"{dataset.interactions.num_users} users" not in card
    assert not (out / USERS).exists()  # nobody's history is the server's to hand on
    assert "history = [4, 17]" in card
    assert "means over the users of those clients that answered, 11 of 12 (test) and 12 of 12 (validation)" in card


ELSEWHERE = """
import json, sys
{program}
ours = {{"fedmoe", "model", "data", "strategies", "fedmoe_client", "fedmoe_server"}} & set(sys.modules)
assert not ours, ours
with torch.no_grad():
    for parameter in ranking.parameters():
        parameter.zero_()
ranking.load_state_dict({{f"model.{{k}}": v for k, v in load_file("model.safetensors").items()}}, strict=False)
lists = []
for user in read_table("users.parquet").to_pylist():
    history = user["history"]
    context = torch.tensor([([0] * {length} + history)[-{length}:]])
    new = torch.tensor([[item["item"] for item in items if item["item"] not in history]])
    lists.append([items[number - 1]["id"] for number in new[0, ranking(context, new)[0].topk(10).indices].tolist()])
print(json.dumps(lists))
"""


def test_plain_torch_ranks_as_we_do_by_the_cards_own_lines(exported: Exported) -> None:
    """In a process that cannot import us: the same ten best items for 100 users, by the parameters in safetensors."""
    settings, dataset, arrays, out = exported.settings, exported.dataset, exported.arrays, exported.out
    card = (out / CARD).read_text()
    program = card.split("```python\n")[1].split("```")[0]
    assert len([line for line in program.splitlines() if line]) <= 12
    script = ELSEWHERE.format(program=program, length=settings.model.max_seq_len)
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=out, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed, lists = done.stdout.splitlines()
    bench = Workbench(settings, dataset)
    bench.load(arrays)
    histories = [dataset.interactions.history(user) for user in range(100)]
    assert json.loads(lists) == [[item.item for item in best_items(bench, history, 10)] for history in histories]
    assert printed == str(json.loads(lists)[0])

    front = yaml.safe_load(card.split("---")[1])
    (index,) = front["model-index"]
    assert index["results"][0]["metrics"] == [{"type": "hr@10", "value": 0.25}, {"type": "ndcg@10", "value": 0.125}]
    users, items = (read_table(out / name).to_pydict() for name in (USERS, ITEMS))
    state = bench.model.states(torch.from_numpy(histories[7][-6:].astype(np.int64))[None])[0, -1]
    np.testing.assert_allclose(users["vector"][7], state.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(items["vector"][7], bench.model.items(torch.tensor([8]))[0].detach().numpy(), atol=1e-6)
    assert items["id"] == dataset.interactions.item_ids[1:].tolist()
    assert safe_open(out / WEIGHTS, "pt").metadata()["format"] == "pt"


def test_a_model_that_cannot_be_exported_is_written_all_the_same(
    tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", fakes)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(torch.export, "export", refuse)
    (tmp_path / "run" / RESULT).unlink()
    done = export(tmp_path / "run", tmp_path / "out")
    assert done.program_problem == "ValueError: no such operator"
    assert not (tmp_path / "out" / PROGRAM).exists()
    card = (tmp_path / "out" / CARD).read_text()
    assert "no such operator" in card
    assert "has not completed" in card


def test_a_full_disk_ends_an_export_in_one_line(tmp_path: Path, fakes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", fakes)
    before = sorted((tmp_path / "run").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # of a file, in bytes: less than the weights need
    try:
        status = main([str(tmp_path / "run")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'run'}: cannot be written")
    assert message.count("\n") == 1
    assert sorted((tmp_path / "run").iterdir()) == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"settings\.yaml"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_catalogue_holds_the_items_and_no_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, _ = load_settings(WORDS)
    dataset = load_dataset(settings)
    out = tmp_path / "catalogue"
    assert catalogue([*WORDS, "--out", str(out)]) == 0
    assert "40 items" in capsys.readouterr().out
    found = load_catalogue(out)
    assert found.interactions.num_users == 0
    assert found.interactions.num_items == 40
    assert found.fingerprints() == dataset.fingerprints()
    sizes = [np.load(out / f"{name}.npy").size for name in ("items", "offsets", "user_ids")]
    assert sizes == [0, 1, 0]  # nobody's history
    assert catalogue([*WORDS, "--out", str(out)]) == 2
    assert catalogue(["nun_rounds=3", "--out", str(out)]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_catalogue_is_made_of_a_list_where_there_are_no_histories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = tmp_path / "films.tsv"
    items.write_text("20\tHeat (1995), Action, Crime\n3\tBabe (1995), Comedy\n\n100\n")
    np.save(tmp_path / "pictures.npy", np.eye(3, 8, dtype=np.float32))
    (tmp_path / "item_ids.txt").write_text("3\n20\n100\n")
    words = ["--items", str(items), f"visual_file={tmp_path / 'pictures.npy'}", "--out", str(tmp_path / "catalogue")]
    assert catalogue(words) == 0
    settings, _ = load_settings(["dataset=catalogue", f"data_dir={tmp_path / 'catalogue'}"])
    found = load_dataset(settings)
    assert found.interactions.item_ids.tolist() == ["", "3", "20", "100"]
    assert found.titles == ["", "Babe (1995), Comedy", "Heat (1995), Action, Crime", ""]
    assert found.features["text"].present.tolist() == [False, True, True, False]
    assert found.features["visual"].present.tolist() == [False, True, True, True]
    capsys.readouterr()
    for content, complaint in (
        ("1\n1\n", "line 2: item 1 is there already"),
        ("a b\n", "'a b' is no item id"),
        ("", "no items"),
    ):
        items.write_text(content)
        assert catalogue(["--items", str(items), "--out", str(tmp_path / "other")]) == 2
        assert complaint in capsys.readouterr().err


def test_a_catalogue_without_a_folder_is_refused() -> None:
    with pytest.raises(FedMoEError, match="needs data_dir"):
        load_settings(["dataset=catalogue"])


def test_a_damaged_catalogue_is_refused(tmp_path: Path) -> None:
    settings, _ = load_settings(WORDS)
    catalogue([*WORDS, "--out", str(tmp_path / "catalogue")])
    with pytest.raises(FedMoEError, match="cannot be read"):
        load_catalogue(tmp_path / "nowhere")
    np.save(tmp_path / "catalogue" / "item_ids.npy", np.array(["", "1"]))
    with pytest.raises(FedMoEError, match="visual features have 41 rows, the catalogue has 2"):
        load_catalogue(tmp_path / "catalogue")
    assert settings.name == "small"
