"""Outside pages: Markdown and code outside docs/ that the site shows, and links to them. A hook of MkDocs.

README.md is the site's first page; other pages of the tree have the names in `PAGES`. A file of code that a page
links to is copied to ``source/`` as text. So each link works on a code host, in an editor and on the site, without an
address.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "bench/README.md": "speed.md",
    "examples/README.md": "examples.md",
}
"""Pages of the tree outside docs/, by path, and what the site calls them."""

LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the outside pages, and the files that any page links to."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    for file in list(files.documentation_pages()):
        for _, target, _, _ in LINK.findall(Path(str(file.abs_src_path)).read_text(encoding="utf-8")):
            path = _in_tree(file, target)
            if path and path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file():
                copied = _copied(path)
                if files.get_file_from_path(copied) is None:
                    files.append(File.generated(config, copied, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where their targets are in the site. A target that is not there stays, and MkDocs reports it."""

    def moved(found: re.Match[str]) -> str:
        path = _in_tree(page.file, found[2])
        if path is None:
            return found[0]
        place = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else _copied(path))
        if files.get_file_from_path(place) is None:
            return found[0]
        relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{found[1]}{relative}{found[3] or ''}{found[4]}"

    return LINK.sub(moved, markdown)


def _in_tree(file: File, target: str) -> str | None:
    """The path in the tree that a page's link means; None for an address."""
    if re.match(r"[a-z]+:", target):
        return None
    at = Path(str(file.abs_src_path)).resolve().relative_to(ROOT).parent
    return posixpath.normpath(posixpath.join(at.as_posix(), target))


def _copied(path: str) -> str:
    """Where the site has a file of code: as text, which a browser shows."""
    return f"source/{path}" + ("" if path.endswith((".svg", ".png", ".txt", ".ipynb")) else ".txt")
