"""What pages of docs/ are checked against; ``python tests/site_pages.py`` writes docs/settings.md anew.

With a folder, ``python tests/site_pages.py FOLDER``, it runs the tutorial there as it stands, real clients included,
and puts the figures of this run into the outputs that the page shows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"[-+]?\d[\d.,/:-]*")
DEPLOYED = "6. Real clients"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def chapters() -> dict[str, str]:
    """Return the chapters of the tutorial, by their headings."""
    _, *parts = re.split(r"^## ", (DOCS / "tutorial.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(part.split("\n", 1) for part in parts)


def steps(chapter: str) -> Iterator[tuple[str, str]]:
    """Yield commands and the output that is shown below them; files of the chapter are yielded as commands, too."""
    blocks = BLOCK.findall(chapter)
    for (kind, title, text), (after, _, shown) in zip(blocks, [*blocks[1:], ("", "", "")], strict=True):
        if title:
            yield f"cat > {title} <<'END'\n{text}END\n", ""
        elif kind == "sh":
            yield text, shown if after == "text" else ""


def deployed_commands() -> str:
    """Return the commands of the tutorial that start a server and clients."""
    (commands,) = [text for text, _ in steps(chapters()[DEPLOYED]) if "pip install" not in text]
    return commands


def words_of(line: str) -> str:
    """Return a line of output without its figures, blanks and quoted values, and without what depends on figures."""
    line = re.sub(r"(?<=: )'[^']*'", "#", line)
    return " ".join(re.sub(r"\bbest\b|about .* left", "", FIGURE.sub("#", line)).split())


def run(commands: str, folder: Path, setup: str = "") -> str:
    """Run commands in a folder as a person does who has installed FedMoE, and return what they print."""
    start = f'set -e\npython() {{ "{sys.executable}" "$@"; }}\nfedmoe() {{ python -m sim "$@"; }}\n{setup}\n'
    done = subprocess.run(
        ["bash", "-c", start + commands], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, commands + done.stdout
    return done.stdout


def settings_page() -> str:
    """Return docs/settings.md: all settings with their defaults, a table for each topic."""
    from fedmoe.help import TOPICS, settings_of

    lines = ["# Settings", "", "`python sim.py --help TOPIC` prints the settings of a topic; `key=value` sets one.", ""]
    for topic, text in TOPICS.items():
        lines += [f"## {topic}", "", f"{text[0].upper()}{text[1:]}.", "", "| setting | default | |", "|---|---|---|"]
        for key, default, description in settings_of(topic):
            told = re.sub(r"([|<*_\[])", r"\\\1", description)
            lines.append(f"| `{key}` | `{default}` | {told} |")
        lines.append("")
    return "\n".join(lines)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def refresh(folder: Path) -> None:
    """Run the tutorial and put its figures into the outputs that are shown."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    for chapter in chapters().values():
        for commands, shown in steps(chapter):
            if "pip install" in commands:
                continue
            found = {words_of(line): line for line in run(commands, folder).splitlines()}
            new = "".join(f"{found.get(words_of(line), line)}\n" for line in shown.splitlines())
            page = page.replace(f"```text\n{shown}```", f"```text\n{new}```") if shown else page
    (DOCS / "tutorial.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    (DOCS / "settings.md").write_text(settings_page(), encoding="utf-8")
    if len(sys.argv) > 1:
        refresh(Path(sys.argv[1]))
