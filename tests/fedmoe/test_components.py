from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe.components import Kind
from fedmoe.errors import FedMoEError


class Shape:
    """What the components of these tests derive from."""


class Circle(Shape):
    def __init__(self, canvas: str, *, radius: float, filled: bool = False) -> None:
        if radius < 0:
            raise ValueError("radius must not\n be negative")
        self.canvas, self.radius, self.filled = canvas, radius, filled


class Point(Shape):
    pass


KIND = Kind("drawing.shape", "drawing.arguments", Shape, {"circle": Circle, "point": Point}, {"radius": 1.0})


def test_defaults_settings_and_what_the_program_gives() -> None:
    circle = KIND.build("circle", {"filled": True}, canvas="paper")
    assert isinstance(circle, Circle)
    assert (circle.canvas, circle.radius, circle.filled) == ("paper", 1.0, True)
    assert isinstance(KIND.build("point", {}), Point)  # a default that its constructor does not take is not passed


def test_ones_own_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_shapes.py").write_text(f"from {__name__} import Shape\nclass Square(Shape): pass\nNUMBER = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert KIND.find("my_shapes:Square").__name__ == "Square"
    with pytest.raises(FedMoEError, match="drawing.shape 'my_shapes:square': my_shapes has no 'square' - did you mean"):
        KIND.find("my_shapes:square")
    with pytest.raises(FedMoEError, match=f"not a subclass of {__name__}.Shape"):
        KIND.find("my_shapes:NUMBER")
    with pytest.raises(FedMoEError, match="'squair' is not known; use one of circle, point, or package.module:Class"):
        KIND.find("squair")


def test_all_faults_at_once() -> None:
    wanted = (
        "drawing.arguments of circle: unknown 'fild'.*; unknown 'canvas'; 'radius' must be a number, is '1e-3'.* "
        r"\(it takes radius, filled\)"
    )
    with pytest.raises(FedMoEError, match=wanted):
        KIND.build("circle", {"fild": 1, "canvas": "mine", "radius": "1e-3"}, canvas="paper")
    assert KIND.faults("circle", {}) == ["'canvas' is missing"]
    assert KIND.faults("circle", {"filled": True}, given=["canvas"]) == []
    with pytest.raises(FedMoEError, match="of circle: radius must not be negative"):
        KIND.build("circle", {"radius": -1}, canvas="paper")
