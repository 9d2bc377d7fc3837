"""names_read: the attributes that the code around some classes reads, from its source and its functions."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def names_read(kinds: Iterable[type]) -> set[str]:
    """Names that are read from an object, or stand as a text, in the modules of some classes and in their functions.

    Read is ``x.name`` for any ``x``; ``name`` in the body of a class, outside of its functions; and a text in a
    function, or in what is assigned to a name, as for ``getattr``. Modules are those of the classes and, of the
    author's own, those that they import. A class without source, as from ``exec``, has its functions only.
    """
    found: set[str] = set()
    modules: dict[str, ModuleType] = {}
    for kind in kinds:
        module = sys.modules.get(kind.__module__)
        if module is not None:
            modules[module.__name__] = module
        made = any(name in vars(kind) for name in ("__dataclass_fields__", "__attrs_attrs__"))
        for name, value in vars(kind).items():
            for code in _codes(value, set()):
                if not (
                    made and name.startswith("__") and code.co_filename.startswith("<")
                ):  # not what dataclass makes
                    found.update(_read_by_code(code))
    for module in [*modules.values()]:
        modules.update({each.__name__: each for each in _imported_by(module)})
    for module in modules.values():
        try:
            tree = ast.parse(inspect.getsource(module))
        except (OSError, TypeError, ValueError, SyntaxError, RecursionError):
            continue
        found.update(_read_by_source(tree))
    return found


def _imported_by(module: ModuleType) -> Iterator[ModuleType]:
    """The author's modules that a module of the author's has names of."""
    if not _is_authors(module):
        return
    for value in [*vars(module).values()]:
        if isinstance(value, type | FunctionType):
            value = sys.modules.get(str(value.__module__))
        if type(value) is ModuleType and _is_authors(value):
            yield value


def _is_authors(module: ModuleType) -> bool:
    file = vars(module).get("__file__")
    library = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
    ours = str(vars(module).get("__name__", "")).partition(".")[0] == "loratory"
    return isinstance(file, str) and not ours and not file.startswith(library)


def _read_by_source(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
            yield node.target.attr
        elif isinstance(node, ast.MatchClass):
            yield from node.kwd_attrs
        elif isinstance(node, ast.ClassDef):
            yield from _read_in_class(node)
        elif isinstance(node, _FUNCTIONS):
            for part in node.body if isinstance(node.body, list) else [node.body]:
                yield from _texts(part)
        elif isinstance(node, ast.Assign) and not _is_slots(node):
            yield from _texts(node.value)


def _read_in_class(kind: ast.ClassDef) -> Iterator[str]:
    """Names that the body of a class reads; the name in ``@name.setter`` only where another function has it."""
    for part in kind.body:
        own = part.name if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) else ""
        yield from (name for name in _loaded(part) if name != own)


def _loaded(node: ast.AST) -> Iterator[str]:
    """Names that a statement reads, without those in the bodies of functions."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for part in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            yield from _loaded(part)
        return
    if not isinstance(node, ast.Lambda | ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            yield from _loaded(child)


def _texts(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value.isidentifier():
            yield each.value


def _is_slots(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets)


def _read_by_code(code: CodeType) -> Iterator[str]:
    yield from _texts_in(code.co_consts)
    for step in dis.get_instructions(code):
        if step.opname.startswith("LOAD") and step.opname.endswith(("ATTR", "METHOD")):
            yield str(step.argval)


def _texts_in(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if type(value) is str:
            yield value
        elif type(value) in (tuple, frozenset):
            yield from _texts_in(value)


def _codes(value: object, seen: set[int]) -> Iterator[CodeType]:
    """The code of a method, property or wrapper, with that of the functions in it and in its closure."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, CodeType):
        yield value
        for inner in value.co_consts:
            if isinstance(inner, CodeType):
                yield from _codes(inner, seen)
    elif isinstance(value, FunctionType):
        yield from _codes(value.__code__, seen)
        for cell in value.__closure__ or ():
            try:
                yield from _codes(cell.cell_contents, seen)
            except ValueError:
                continue  # it is empty
    else:
        for part in _parts(value):
            yield from _codes(part, seen)


def _parts(value: object) -> tuple[object, ...]:
    if isinstance(value, property):
        return (value.fget, value.fset)
    if isinstance(value, staticmethod | classmethod | MethodType):
        return (value.__func__,)
    if isinstance(value, functools.cached_property | functools.partial | functools.partialmethod):
        return (value.func,)
    if isinstance(value, functools._lru_cache_wrapper):
        return (value.__wrapped__,)
    return ()
