"""Films and the text features made from their titles."""

from __future__ import annotations

import numpy as np
import pytest

from data.titles import WORD_DIM, Film, attribute_features, split_year, title_features, word_features

HEAT = Film("Heat", 1995, ("Action", "Crime"))
CASINO = Film("Casino", 1995, ("Crime",))
ALIEN = Film("Alien", 1979, ("Horror",))
NAMELESS = Film("", None, ())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Heat (1995)", ("Heat", 1995)),
        ("Seven (Se7en) (1995)", ("Seven (Se7en)", 1995)),
        ("Land Before Time III (1995) (V)", ("Land Before Time III", 1995)),
        ("2001: A Space Odyssey (1968) ", ("2001: A Space Odyssey", 1968)),
        ("unknown", ("unknown", None)),
    ],
)
def test_title_and_year(name: str, expected: tuple[str, int | None]) -> None:
    assert split_year(name) == expected


def test_the_string_for_encoders() -> None:
    assert str(HEAT) == "Heat (1995), Action, Crime"
    assert str(Film("unknown", None, ("unknown",))) == "unknown, unknown"


def test_rows_by_hand() -> None:
    features = title_features([None, HEAT, CASINO, ALIEN, None, NAMELESS])
    assert features.dim == 3 + 2 + WORD_DIM  # Action, Crime, Horror; 1970s, 1990s
    assert features.present.tolist() == [False, True, True, True, False, False]
    third, sixth = 1 / np.sqrt(3), 1 / np.sqrt(6)
    np.testing.assert_allclose(features.values[1, :5], [sixth, sixth, 0, 0, third], rtol=1e-6)
    np.testing.assert_allclose(features.values[2, :5], [0, third, 0, 0, third], rtol=1e-6)
    np.testing.assert_allclose(features.values[3, :5], [0, 0, third, third, 0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features.values[1:4], axis=1), 1.0, rtol=1e-6)
    assert not features.values[[0, 4, 5]].any()


def test_words_and_attributes_apart() -> None:
    films = [None, HEAT, CASINO, ALIEN, None, NAMELESS]
    words, attributes = word_features(films), attribute_features(films)
    assert (words.dim, attributes.dim) == (WORD_DIM, 3 + 2)
    assert words.present.tolist() == attributes.present.tolist() == [False, True, True, True, False, False]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(attributes.values[1], [half**2, half**2, 0, 0, half], rtol=1e-6)
    together = title_features(films).values * np.sqrt(3)
    np.testing.assert_allclose(words.values, together[:, 5:], atol=1e-6)


def test_films_of_one_genre_and_decade_are_closer() -> None:
    values = title_features([None, HEAT, CASINO, ALIEN]).values
    assert values[1] @ values[2] > 0.5 > abs(values[1] @ values[3])


def test_common_words_weigh_less_than_rare_ones() -> None:
    films = [Film(title, None, ()) for title in ("Star Wars", "Star Trek", "Star Quark")]
    values = title_features([None, *films]).values
    assert (np.count_nonzero(values[1:], axis=1) == 2).all()
    shared = np.flatnonzero((values[1:] != 0).all(axis=0))
    assert len(shared) == 1
    assert (np.abs(values[1:, shared]) < 0.5**0.5).all()


def test_the_hash_is_the_same_in_every_process() -> None:
    values = title_features([None, Film("Heat", None, ())]).values
    assert np.flatnonzero(values[1]).tolist() == [0xBA44E6F8 % WORD_DIM]  # the CRC-32 of "heat"
    assert values[1].max() == 1.0
