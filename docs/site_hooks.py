"""A hook of MkDocs: files outside of docs/ that a page links to are shown on the site, as pages below source/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add a page with the source of each file, or of a folder's files; a notebook is added as it is."""
    for name in sorted({name for page in files.documentation_pages() for name in LINK.findall(page.content_string)}):
        paths = sorted((ROOT / name).glob("*.py")) or [ROOT / name]
        heads = [f"## {path.name}\n\n" if paths[1:] else "" for path in paths]
        sources = [f"~~~~python\n{path.read_text(encoding='utf-8')}~~~~\n" for path in paths]
        texts = [head + source for head, source in zip(heads, sources, strict=True)]
        text = f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n" + "\n".join(texts)
        content = paths[0].read_bytes() if name.endswith(".ipynb") else text
        files.append(File.generated(config, _place(name), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links at these pages."""
    return LINK.sub(lambda link: _place(link[1]), markdown)


def _place(name: str) -> str:
    return f"source/{name}" + ("" if name.endswith(".ipynb") else ".md")
