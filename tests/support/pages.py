"""Pages: the blocks, links and anchors of a Markdown file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md", "examples/README.md")
PAGES = (*(ROOT / page for page in TOP), *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Block:
    """A fenced block with its language, or an indented one (language ``""``), and where it begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """``docs/traces.md:9``."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its lines without comments, if they are of a shell."""
        lines = [line.split("  #")[0].split(" # ")[0].strip() for line in self.text.splitlines() if line.strip()]
        programs = ("loratory ", "python ", "PYTHONPATH=. python ", "make ")
        return lines if lines and all(line.startswith(programs) for line in lines) else []


def blocks(page: Path) -> list[Block]:
    """All blocks, in the page's order."""
    found: list[Block] = []
    lines = [*page.read_text(encoding="utf-8").splitlines(), ""]
    at = 0
    while at < len(lines):
        if lines[at].startswith("```"):
            end = lines.index("```", at + 1)
            found.append(Block(page, at + 1, lines[at][3:], "\n".join(lines[at + 1 : end]) + "\n"))
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1]):
            end = next(n for n in range(at, len(lines)) if not lines[n].startswith("    "))
            found.append(Block(page, at + 1, "", "\n".join(line[4:] for line in lines[at:end]) + "\n"))
            at = end
        else:
            at += 1
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """Targets of links and figures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """What ``#...`` of a link to the page may be, as GitHub makes it of headings."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def code_spans(page: Path) -> list[str]:
    """All that stands between single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def rows(page: Path, first_head: str) -> list[list[str]]:
    """Cells of the tables whose first column has this head."""
    found: list[list[str]] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == first_head:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            found.append(cells)
    return found
