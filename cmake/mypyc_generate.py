"""Translate the pure hot modules to C with mypyc, for CMake to compile.

In: the source folder, and in it cmake/mypyc_modules.txt. Out: the C files and `extensions.cmake`, which names each
extension module with its sources and include folders. Nothing is done when the sources are those of the last time.

Only mypyc's public function `mypycify` is used; its setuptools Extension objects are the description of what to
build.
"""

import hashlib
import os
import sys
from pathlib import Path

GROUP = "netssmd"  # the shared library is netssmd__mypyc.*.so beside the package; in it, mypyc would get __file__ wrong
MODULES = "cmake/mypyc_modules.txt"
# Types are taken from the modules that these import, but their own mypy errors are not ours to judge here.
CONFIG = "cmake/mypyc.ini"
MYPY_OPTIONS = [f"--config-file={CONFIG}", "--follow-imports=silent", "--ignore-missing-imports"]
MYPY_OPTIONS += ["--python-version=3.11"]


def listed_modules(source: Path) -> list[str]:
    """The existing files of mypyc_modules.txt, as paths relative to the source folder."""
    lines = (source / MODULES).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#") and (source / line).is_file()]


def fingerprint(paths: list[Path]) -> str:
    """What the C depends on: the interpreter, mypyc, this script, and every module that types may come from."""
    import mypy.version

    digest = hashlib.sha256(f"{sys.version} {mypy.version.__version__}".encode())
    for path in paths:
        digest.update(str(path).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cmake_description(extensions: list, modules: list[str]) -> str:
    """Lines for CMake, one call an extension."""
    lines = []
    for extension in extensions:
        sources = " ".join(f'"{os.path.abspath(path)}"' for path in extension.sources)
        includes = " ".join(f'"{os.path.abspath(path)}"' for path in extension.include_dirs)
        lines.append(f"netssmd_mypyc_extension({extension.name} SOURCES {sources} INCLUDES {includes})")
    names = [path.removesuffix(".py").replace("/", ".") for path in modules]
    lines.append(f"set(mypyc_modules {' '.join(names)})")
    return "\n".join(lines) + "\n"


def main() -> None:
    source, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    description, stamp = out / "extensions.cmake", out / "fingerprint"
    modules = listed_modules(source)
    if not modules:
        description.write_text("set(mypyc_modules)\n")
        return

    folders = ("packet", "codec", "model", "engine")
    near = sorted(path for folder in folders for path in (source / "netssmd" / folder).glob("*.py"))
    settings = [Path(__file__).resolve(), source / CONFIG, source / MODULES]
    now = fingerprint([*settings, source / "netssmd" / "errors.py", *near])
    if description.exists() and stamp.exists() and stamp.read_text() == now:
        return
    stamp.unlink(missing_ok=True)

    import setuptools  # noqa: F401  mypyc.build looks which of setuptools and distutils is loaded
    from mypyc.build import mypycify

    os.chdir(source)  # module names are worked out from relative paths
    cache = f"--cache-dir={out / 'mypy_cache'}"
    extensions = mypycify(
        [*MYPY_OPTIONS, cache, *modules], target_dir=str(out), group_name=GROUP, opt_level="3", debug_level="0"
    )
    description.write_text(cmake_description(extensions, modules))
    stamp.write_text(now)


if __name__ == "__main__":
    main()
