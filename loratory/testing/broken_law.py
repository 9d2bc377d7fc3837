"""BrokenLaw: what is raised where a run breaks a law: its name, and what was found."""

from __future__ import annotations


class BrokenLaw(AssertionError):  # noqa: N818 - what it is
    """A run breaks a law. ``law`` is its name in `loratory.testing.LAWS`, ``found`` what shows it."""

    def __init__(self, law: str, found: str) -> None:
        super().__init__(law, found)  # both, as SimPy makes an exception again from its arguments
        self.law = law
        self.found = found

    def __str__(self) -> str:
        return f"{self.law}: {self.found}"


def require(true: bool, law: str, found: str) -> None:
    """Raise `BrokenLaw` unless ``true``."""
    if not true:
        raise BrokenLaw(law, found)
