"""Files and folders appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from fedmoe.files import sync, write_file, write_folder


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_file(tmp_path / "new" / "f", content)
        assert (tmp_path / "new" / "f").read_bytes() == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["f"]


def test_a_folder_that_fails_halfway_is_not_there(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_folder(tmp_path / "d", fill)
    assert not list(tmp_path.iterdir())


def writer(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "f").write_text(text)

    return fill


def test_the_first_folder_stays(tmp_path: Path) -> None:
    write_folder(tmp_path / "d", writer("first"))
    write_folder(tmp_path / "d", writer("second"))
    assert (tmp_path / "d" / "f").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedMoEError, match=r"file: cannot be written \(.+\) - make room"):
        write_file(tmp_path / "file" / "f", b"")
    with pytest.raises(FedMoEError, match="cannot be written"):
        write_folder(tmp_path / "file" / "d", lambda _: None)


def test_files_and_folders_are_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[Path] = []
    monkeypatch.setattr(
        "fedmoe.files.os.fsync", lambda handle: forced.append(Path(f"/proc/self/fd/{handle}").resolve())
    )
    (tmp_path / "f").write_bytes(b"content")
    sync(tmp_path / "f")
    sync(tmp_path)
    assert forced == [tmp_path / "f", tmp_path]
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "nothing")
