"""Pages of the benchmarks: bars, parts, and figures between the marks of a page of docs/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedmoe.errors import FedMoEError

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def bars(axes: Axes, groups: Sequence[str], heights: Mapping[str, Sequence[float]], colours: Any = None) -> None:
    """Draw groups of bars side by side, in each group one bar for each name; not a number: no bar."""
    width = 0.8 / len(heights)
    for place, (name, values) in enumerate(heights.items()):
        colour = None if colours is None else colours[place]
        axes.bar(np.arange(len(groups)) + (place + 0.5) * width - 0.4, values, width, label=name, color=colour)
    axes.set_xticks(np.arange(len(groups)), groups, rotation=25, ha="right", fontsize="small")


def write_page(page: Path, head: str, parts: Sequence[str]) -> None:
    """Write a page of those parts that are not empty, and print them."""
    text = "\n\n".join(part for part in parts if part)
    page.write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    print(f"{text}\npage: {page}")


def page_text(page: Path) -> str:
    """Return a page that has a place for figures, between two marks. FedMoEError: there is none."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise FedMoEError(f"{page} cannot be read: {error}") from error
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise FedMoEError(f"{page} has no lines '{BEGIN}' and '{END}' to put the figures between")
    return text


def replaced(text: str, figures: str) -> str:
    """Return a page's text with other figures between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{figures}\n{END}{rest.partition(END)[2]}"
