"""``python -m loratory.cli``: the same as ``python -m loratory``."""

from loratory.__main__ import main

main()
