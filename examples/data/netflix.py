r"""The Netflix Prize's format as a data set: a line ``MovieID:`` and, below it, a line for each of its ratings.

    1:
    1488844,3,2005-09-06
    822109,5,2005-05-13

James Bennett, Stan Lanning: The Netflix Prize, KDD Cup and Workshop 2007. The files are ``combined_data_1.txt`` and so
on; any of them is a data set.

    python sim.py quick dataset=examples.data.netflix:NetflixPrize dataset_parameters.file=combined_data_1.txt \
        dataset_parameters.least_rating=4
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.interactions import Codes, Events
from data.own_data import OwnData
from fedmoe.errors import FedMoEError


class NetflixPrize(OwnData):
    """file: one of the files; least_rating: lower ratings are left out."""

    def __init__(self, file: str, least_rating: int = 1) -> None:
        self.file, self.least_rating = Path(file), least_rating

    def files(self) -> list[Path]:
        return [self.file]

    def events(self) -> Events:
        users, films, days, film = [], [], [], ""
        with self.file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.rstrip().endswith(":"):
                    film = line.rstrip()[:-1]
                    continue
                try:
                    user, rating, day = line.split(",")
                    kept = int(rating) >= self.least_rating
                    when = np.datetime64(day.strip(), "s").astype(np.int64)
                except ValueError as error:
                    raise FedMoEError(f"{self.file}, line {number}: expected 'user,rating,date' ({error})") from error
                if kept:
                    users.append(user)
                    films.append(film)
                    days.append(when)
        return Events(_codes(users), _codes(films), np.array(days, np.int64), "Netflix Prize")


def _codes(ids: list[str]) -> Codes:
    return Codes(*np.unique(np.array(ids, dtype=str), return_inverse=True))
