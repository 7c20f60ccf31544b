"""The notebook runs from its first cell to its last, with fewer rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def test_the_notebook_runs(ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    book = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(book)
    for cell in book.cells:
        cell.source = cell.source.replace(
            '"quick", num_rounds=20', f'"quick", num_rounds=3, hosts=1, client_cpus=0.5, ray_address="{ray_address}"'
        )
    nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in shown if output.output_type == "stream")
    assert "ShrinkingStep   NDCG@10" in printed
    assert any('<progress value="3" max="3">' in str(output.get("data", "")) for output in shown)
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert len(list((tmp_path / "runs").iterdir())) == 2
