"""Policy tables: the tables of docs/policies.md that list a class's attributes and methods, from the docstrings.

python docs/site/policy_tables.py        # writes docs/policies.md
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "policies.md"
FILES = {
    "View": "engine_view",
    "QueueView": "wait_queue",
    "RequestView": "views",
    "AdapterView": "views",
    "TenantView": "views",
    "CostView": "batch_shape",
    "BatchShape": "batch_shape",
    "Lanes": "lanes",
    "SortedQueue": "sorted_queue",
    "Units": "fairness",
    "Account": "fairness",
    "Rounds": "fairness",
    "FairnessLimits": "fairness",
    "Reservation": "reservation",
}
"""The file of `serving/` that each class is in."""

BLOCK = re.compile(r"(<!-- attributes of (\w+), made by docs/site/policy_tables.py -->\n).*?(<!-- end -->)", re.DOTALL)


def written(page: str) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(found[2])}\n{found[3]}", page)


def table(name: str) -> str:
    """A row for each public attribute and method of a class, in the order of its source."""
    (found,) = (
        node
        for node in ast.parse((ROOT / "serving" / f"{FILES[name]}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    head = "| attribute | type | meaning |\n|---|---|---|\n"
    return head + "".join(
        f"| `{_cell(what)}` | `{_cell(kind)}` | {_cell(text)} |\n" for what, kind, text in _rows(found)
    )


def _rows(found: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    init = next((node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    for body in (found.body, [] if init is None else init.body):
        for node, following in zip(body, [*body[1:], ast.Pass()], strict=False):
            name = _name(node)
            if name is None or name.startswith("_"):
                continue
            if isinstance(node, ast.FunctionDef):
                returns = "None" if node.returns is None else ast.unparse(node.returns)
                attribute = any(ast.unparse(each) == "property" for each in node.decorator_list)
                what = name if attribute else f"{name}({_parameters(node.args)})"
                yield what, returns, _plain(ast.get_docstring(node))
            elif isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
                assert isinstance(following.value, ast.Constant), name
                yield name, ast.unparse(node.annotation), _plain(str(following.value.value))


def _name(node: ast.stmt) -> str | None:
    """What a statement of a class, or of its __init__, defines."""
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.AnnAssign):
        target = node.target
        if isinstance(target, ast.Name):
            return target.id
        if isinstance(target, ast.Attribute):
            return target.attr
    return None


def _parameters(given: ast.arguments) -> str:
    return ast.unparse(ast.arguments(**{**vars(given), "args": given.args[1:]})).replace("'", '"').replace("=", " = ")


def _plain(text: str | None) -> str:
    assert text, "a public attribute has a docstring"
    return " ".join(re.sub(r"(`+)([^`]+)\1", r"`\2`", text).split())


def _cell(text: str) -> str:
    """A cell's text. A bar would end the cell, and its escapes differ from one reader of Markdown to the next."""
    return text.replace(" | ", " or ")


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
