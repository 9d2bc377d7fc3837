"""setup: pyproject.toml says what the package is; here the core of it is compiled where LORATORY_MYPYC=1 asks for that.

    LORATORY_MYPYC=1 pip wheel .      # a wheel with a compiled core, for this Python and platform
    make compiled                     # the same in build/compiled, to test it

mypyc compiles the files below as they are: docs/compiled.md says which, why, and what they must not do.
"""

from __future__ import annotations

import os
import sys

from setuptools import Extension, setup

SERVING = (
    "adapter_states", "engine", "engine_loads", "fairness", "gpu_slots", "host_cache", "kv_pool", "lanes", "ledger",
    "lora_batch", "plan", "policy_runner", "request_maker", "reservation", "running_first", "sequence",
    "sorted_queue", "step_shape", "usage", "wait_index", "wait_queue", "want",
)  # fmt: skip
COMPILED = (
    *(f"loratory/serving/{name}.py" for name in SERVING),
    *(f"loratory/sim/{name}.py" for name in ("noise", "replica", "segment")),
    *(f"loratory/sim/cost/{name}.py" for name in ("engine_times", "lora_kernels", "roofline")),
    *(f"loratory/reports/{name}.py" for name in ("decisions", "recorder")),
)
"""What is compiled into one library, ``loratory.core__mypyc``."""

MYPYC = "mypy>=2.4,<3"

TYPES = ("--config-file=", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent")
"""Types are those of Python and of our own files, so that what is built depends on no other package that is there."""


def compiled() -> list[Extension]:
    """The extension modules of the compiled core."""
    from mypyc.build import mypycify

    modules: list[Extension] = mypycify([*TYPES, *COMPILED], group_name="loratory.core", debug_level="0")
    for module in modules:  # one rounding for a product and its sum would give other last bits than Python's two
        module.extra_compile_args.append("-ffp-contract=off")
    return modules


def main() -> None:
    """Called by pip once to ask what it needs, then to build."""
    if os.environ.get("LORATORY_MYPYC", "0") in ("", "0"):
        setup()
    elif {"editable_wheel", "develop"} & set(sys.argv):
        raise SystemExit("LORATORY_MYPYC=1 has no effect on an editable install, which runs the sources: build a wheel")
    elif {"build", "build_ext", "bdist_wheel", "install"} & set(sys.argv):
        setup(ext_modules=compiled())
    else:
        setup(setup_requires=[MYPYC])


main()
