"""Compiled modules are used only while they match their sources.

In: `netssmd/_build.py`, written by the build, with a hash of the sources of every compiled module. Out: at the
package's import, nothing when all is well. When a `.py` was edited since it was compiled, its whole group (the
modules share a library and call each other directly) is imported from source instead, and one warning says so. So an
edit always takes effect at once, and `make setup` makes it fast again. The hash is the one of hash-based .pyc files
(PEP 552).

This runs at every start, in front of `netssmd --help`: it reads a few files and imports next to nothing.
"""

import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

CPU_BACKEND = "netssmd.model._cpu"
NATIVE = {
    CPU_BACKEND: os.path.join("model", "cpu"),
    "netssmd.output._pacer": os.path.join("output", "native"),
    "netssmd.packet._sum16": os.path.join("packet", "native"),
}
"""Modules written in C++, and the folders of their sources."""


class StaleBuildWarning(UserWarning):
    """A compiled module is older than its source."""


def source_files(package: str, module: str) -> list[str]:
    """Paths of what `module` is compiled from. `package` is the netssmd folder of the sources; files may be missing."""
    if module in NATIVE:
        folder = os.path.join(package, NATIVE[module])
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return [os.path.join(folder, name) for name in names if name.endswith((".cpp", ".hpp", ".inl"))]
    return [os.path.join(package, *module.split(".")[1:]) + ".py"]


def source_hash(package: str, module: str) -> str | None:
    """Hash of the module's sources, or None where they are not at hand (a wheel carries no C++)."""
    paths = source_files(package, module)
    if not paths or not all(os.path.isfile(path) for path in paths):
        return None
    content = []
    for path in paths:
        with open(path, "rb") as file:
            content.append(file.read())
    return importlib.util.source_hash(b"\0".join(content)).hex()


def built_from() -> dict[str, str]:
    """Compiled module -> hash of its sources at build time. Empty where nothing was compiled."""
    try:
        from netssmd import _build  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return {}
    return dict(_build.SOURCES)


def stale_modules(package: str, built: dict[str, str]) -> list[str]:
    """The compiled modules whose sources have changed since."""
    return [module for module, then in built.items() if source_hash(package, module) not in (None, then)]


class SourceFinder:
    """A meta path finder that finds the given modules as .py files, whatever lies beside them."""

    def __init__(self, package: str, modules: Sequence[str]) -> None:
        self.paths = {module: source_files(package, module)[0] for module in modules}

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in self.paths:
            return None
        return importlib.util.spec_from_file_location(fullname, self.paths[fullname])


def prefer_sources_when_stale(package: str) -> None:
    """Called once by `netssmd/__init__.py`. NETSSMD_INTERPRETED=1 asks for the sources in any case."""
    built = built_from()
    if not built:
        return
    group = [module for module in built if module not in NATIVE]
    if os.environ.get("NETSSMD_INTERPRETED", "") not in ("", "0"):
        sys.meta_path.insert(0, SourceFinder(package, group))
        return
    stale = stale_modules(package, built)
    if not stale:
        return
    if any(module in group for module in stale):
        sys.meta_path.insert(0, SourceFinder(package, group))
    warnings.warn(
        f"{', '.join(stale)} changed since it was compiled: "
        + ("the pure modules run interpreted" if set(stale) & set(group) else "the old binary is used")
        + " until `make setup` builds again",
        StaleBuildWarning,
        stacklevel=2,
    )
