"""Pages of the site that stand elsewhere in the repository, and links that lead to them.

A link in a Markdown file is relative to that file, so that it works where the repository is
browsed. On the site the same link leads to the page that the file became; one to a file that is
no page keeps its text alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "midiloop/pretrained/README.md": "cards/loop-writer.md",
    "midiloop/pretrained/hands/README.md": "cards/hands.md",
    "audioloop/pretrained/codec/README.md": "cards/codec.md",
    "audioloop/pretrained/masked/README.md": "cards/masked.md",
    "audioloop/pretrained/causal/README.md": "cards/causal.md",
    "datasets/songbook/README.md": "datasets/songbook.md",
    "datasets/lakh/README.md": "datasets/lakh.md",
    "datasets/gigamidi/README.md": "datasets/gigamidi.md",
    "datasets/pretrained/README.md": "datasets/pretrained.md",
}
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    source = _SOURCES.get(here, f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        picture, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if "://" in target:
            return link[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if wanted not in PAGES and not wanted.startswith("docs/"):
            return text
        place = PAGES.get(wanted, wanted.removeprefix("docs/"))
        place = posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{picture}[{text}]({place}{anchor})"

    return _LINK.sub(turned, markdown)
