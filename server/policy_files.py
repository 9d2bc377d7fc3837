"""policy_files: which policies may be named to a running server: those by name, and files below its roots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from loratory.errors import InputError, did_you_mean, several, shortened
from loratory.experiment.policy_spec import policy_names


def canonical_spec(spec: str) -> str:
    """A spec whose file, if it names one, has its absolute path: it means the same in any working folder."""
    head, colon, rest = spec.partition(":")
    if not head.endswith(".py"):
        return spec
    try:
        return f"{Path(head).expanduser().resolve()}{colon}{rest}"
    except (OSError, RuntimeError, ValueError):
        return spec


def allowed_spec(spec: str, roots: Sequence[Path]) -> str:
    """`canonical_spec` of a policy that was named over HTTP.

    Naming a policy's file runs its code in the server, so only files below ``roots`` may be named, links followed, and
    no modules. Relative paths are relative to the server's working folder. Raises `InputError` for any other.
    """
    head, _, rest = spec.partition(":")
    names = policy_names()
    if head in names:
        return spec
    if not head.endswith(".py"):
        if rest and "=" not in rest.partition(":")[0]:
            raise InputError(
                f"policy {_shown(spec)} names a module, which a running server does not import: name a file below "
                f"{_roots(roots)}"
            )
        hint = did_you_mean(head, names, f"choose one of {several(names, 12)}")
        raise InputError(f"policy {_shown(head)} is unknown; {hint} (a policy of your own is path/file.py:ClassName)")
    canonical = canonical_spec(spec)
    path = Path(canonical.partition(":")[0])
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise InputError(
            f"policy {_shown(spec)} is not below {_roots(roots)}, the folders of policies that may be named to this "
            "server (--policy-root)"
        )
    return canonical


def file_digest(spec: str) -> str | None:
    """The digest of the file that a spec names, as it is now; None where it names none, or that cannot be read."""
    head = spec.partition(":")[0]
    if not head.endswith(".py"):
        return None
    try:
        return sha256(Path(head).read_bytes()).hexdigest()
    except OSError:
        return None


def policy_roots(given: Sequence[Path]) -> tuple[Path, ...]:
    """The folders that were given, or else the working folder."""
    return tuple(given) or (Path(os.getcwd()),)


def _roots(roots: Sequence[Path]) -> str:
    return several([shortened(str(root), 80) for root in roots], 3)


def _shown(spec: str) -> str:
    return repr(shortened(spec, 100))
