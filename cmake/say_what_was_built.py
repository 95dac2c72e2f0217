"""One line after an install: what is compiled and what is not. pip hides what the build itself says."""

import warnings

from netssmd import freshness

warnings.simplefilter("ignore")
built = freshness.built_from()
pure = [module for module in built if module not in freshness.NATIVE]
if not built:
    print(
        "netssmd: notice: nothing was compiled (no C++ compiler, no Python headers, or an error which"
        " `.venv/bin/pip install --no-build-isolation -v -e .` shows):"
        " everything runs interpreted, several times slower, and the torch backend serves"
    )
else:
    cpu = "C++ backend" if freshness.CPU_BACKEND in built else "no C++ backend"
    print(f"netssmd: built: {cpu}, {len(pure)} pure modules compiled{': ' if pure else ''}"
          + ", ".join(module.removeprefix("netssmd.") for module in pure))  # fmt: skip
