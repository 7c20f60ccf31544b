"""The pages of the documentation: links lead somewhere, settings are those of the code, the tutorial's commands run."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import site_pages
import yaml
from site_pages import DEPLOYED, DOCS, LINK, ROOT, anchors, chapters, run, settings_page, steps, words_of

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
FEW = "data.synthetic.users=20 data.synthetic.items=60"
SMALL = (
    "dim=8 attention_dim=8 blocks=1 max_seq_len=10 memory_size=10 "
    "memory_refresh=5 num_negatives=20 hosts=1 client_cpus=0.5 evaluate_every=1 num_rounds=3 client_fraction=0.5 "
    "warmup_rounds=1 local_epochs=1 max_windows=2"
).split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_have_an_empty_line_before_them(page: Path) -> None:
    """Else the site shows them as a part of the paragraph, with their asterisks."""
    assert re.findall(r"^(?![*#]|\d\. |  ).+\n(?:\* |1\. ).*", page.read_text(encoding="utf-8"), re.MULTILINE) == []


def test_the_site_has_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w-]+\.md", str(site["nav"]))
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_names_of_the_reference_exist() -> None:
    for page in DOCS.glob("reference*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, last = name.rpartition(".")
            assert re.search(rf"^(class|def) {last}\b", (ROOT / f"{module.replace('.', '/')}.py").read_text(), re.M), (
                name
            )


def test_the_settings_are_those_of_the_code() -> None:
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page(), "python tests/site_pages.py"


def test_the_tutorials_commands_run_and_print_what_it_shows(ray_address: str, tmp_path: Path) -> None:
    """Smaller runs print other figures, and the same words."""
    words = shlex.join([*SMALL, f"ray_address={ray_address}"])
    setup = f'fedmoe() {{ python -m sim "$@" {words} $([ "$1" != quick ] || echo {FEW}); }}'
    seen = 0
    for title, chapter in chapters().items():
        for commands, shown in steps(chapter):
            if title == DEPLOYED or "pip install" in commands:  # tests/deployment/test_docs.py; .ci/run
                continue
            printed = {words_of(line) for line in run(commands, tmp_path, setup).splitlines()}
            for line in shown.splitlines():
                if line != "..." and not ("'rank'" in line and find_spec("pandas")):  # then it is a table
                    assert words_of(line) in printed, (line, sorted(printed))
                    seen += 1
    assert seen > 20
    assert (tmp_path / "run.png").stat().st_size > 0


def test_a_wrong_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n[here](#a-page) [not](#another)\n")
    with pytest.raises(AssertionError, match="#another"):
        test_links_lead_somewhere(page)
    assert site_pages.words_of("round 10/60  loss 3.19") == "round # loss #"
