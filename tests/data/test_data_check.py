"""Each planted defect of a data set is found by its demand; the one that ships has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.check import FIRST, THEN, data_findings, main
from data.interactions import Codes, Events
from data.own_data import OwnData

NETFLIX = "examples.data.netflix:NetflixPrize"


class Good(OwnData):
    """A file of lines user, item, time; a base whose subclasses have one defect."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def files(self) -> list[Path]:
        return [self.file]

    def events(self) -> Events:
        rows = [line.split() for line in self.file.read_text().splitlines()]
        users, items, times = (list(column) for column in zip(*rows, strict=True))
        return self.made(_codes(users), _codes(items), np.array(times, np.int64))

    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(users, items, times, "lines")


class NamesNone(Good):
    def files(self) -> list[Path]:
        return []


class NamesText(Good):
    def files(self) -> list[Path]:
        return [str(self.file)]  # type: ignore[list-item]


class NamesWhatIsNotThere(Good):
    def files(self) -> list[Path]:
        return [self.file, self.file.with_name("gone.txt")]


class ReturnsATuple(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return users, items, times  # type: ignore[return-value]


class RaisesItself(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        raise KeyError("rating")


class NamesTwice(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(Codes(users.names[users.rows], np.arange(len(users.rows))), items, times)


class IntegerNames(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(Codes(users.names.astype(int), users.rows), items, times)  # type: ignore[arg-type]


class MissingName(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(users, Codes(np.append(items.names[:-1], "nan"), items.rows), times)


class BeyondTheNames(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(users, Codes(items.names, items.rows + 1), times)


class Shorter(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(users, Codes(items.names, items.rows[:-1]), times)


class Dates(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(users, items, times.astype("datetime64[s]"))


class NoDate(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        dates = times.astype("datetime64[s]")
        dates[0] = np.datetime64("NaT")
        return Events(users, items, dates.astype(np.int64))


class OneTime(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(users, items, np.zeros_like(times))


class Samples(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        kept = np.random.random(len(times)) < 0.9
        return Events(Codes(users.names, users.rows[kept]), Codes(items.names, items.rows[kept]), times[kept])


class ReadsMore(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        assert self.file.with_name("more.txt").read_text() == "more"
        return Events(users, items, times)


class NobodyIsLeft(Good):
    def made(self, users: Codes, items: Codes, times: np.ndarray) -> Events:
        return Events(Codes(np.arange(len(times)).astype(str), np.arange(len(times))), items, times)


DEFECTS: dict[type[OwnData], str] = {
    NamesNone: "files are there",
    NamesText: "files are there",
    NamesWhatIsNotThere: "files are there",
    ReturnsATuple: "rows are read",
    RaisesItself: "rows are read",
    NamesTwice: "ids",
    IntegerNames: "ids",
    MissingName: "ids",
    BeyondTheNames: "ids",
    Shorter: "ids",
    Dates: "times",
    NoDate: "times",
    OneTime: "times",
    Samples: "two readings are equal",
    ReadsMore: "all files are named",
    NobodyIsLeft: "histories",
}


def _codes(ids: list[str]) -> Codes:
    return Codes(*np.unique(np.array(ids, dtype=str), return_inverse=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [f"{user} {item} {100 * user + item}" for user in range(1, 5) for item in range(user, user + 8)]
    (tmp_path / "events.txt").write_text("\n".join(lines))
    (tmp_path / "more.txt").write_text("more")
    return tmp_path / "events.txt"


@pytest.mark.parametrize("defective", DEFECTS)
def test_a_defect_is_found_by_its_demand(defective: type[OwnData], file: Path) -> None:
    found = data_findings(f"{__name__}:{defective.__name__}", {"file": str(file)})
    failed = [finding.demand for finding in found if finding.holds is False]
    assert failed[:1] == [DEFECTS[defective]]
    assert defective in (ReturnsATuple, RaisesItself) or len(failed) == 1  # where nothing is read nothing can be seen


def test_every_demand_has_a_defect_and_a_good_data_set_has_none(file: Path) -> None:
    assert set(DEFECTS.values()) == {*FIRST, *THEN}
    found = data_findings(f"{__name__}:Good", {"file": str(file)})
    assert [str(finding) for finding in found if not finding.holds] == []
    assert "4 users, 11 items, 32 interactions" in found[-1].seen


def test_the_one_that_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "combined_data_1.txt"
    rows = {film: [f"{user},{1 + film % 5},2005-09-{user + film:02}" for user in range(1, 9)] for film in range(1, 9)}
    file.write_text("".join("\n".join([f"{film}:", *lines, ""]) for film, lines in rows.items()))
    assert main([NETFLIX, f"file={file}"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == len(FIRST) + len(THEN) and "8 users, 8 items, 64 interactions" in said
    file.write_text("1:\n7;5;2019-01-01\n")
    assert main([NETFLIX, f"file={file}"]) == 1
    assert "line 2: expected 'user,rating,date'" in capsys.readouterr().out
    assert main([NETFLIX, f"file={tmp_path / 'gone.txt'}"]) == 1
    failed = next(line for line in capsys.readouterr().out.splitlines() if "FAILS" in line)
    assert "gone.txt is no file: correct the argument that names it" in failed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([NETFLIX], "'file' is missing"),
        ([NETFLIX, "file=a", "least=2"], "unknown 'least'"),
        (["ml-100k"], "package.module:Class"),
        ([NETFLIX, "file"], "'file' is not key=value"),
    ],
)
def test_wrong_words_are_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error and len(error.splitlines()) == 1
    assert main([]) == 2 and main(["--help"]) == 0
