"""Write netssmd/_build.py: which modules were compiled, and the hashes of the sources they were compiled from.

In: the source folder, the file to write, the compiled modules' names. netssmd/freshness.py reads the result and has the
hash function, so that both sides count alike. The file is left alone when it would not change.
"""

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    source, out, modules = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    spec = importlib.util.spec_from_file_location("freshness", source / "netssmd" / "freshness.py")
    assert spec is not None and spec.loader is not None
    freshness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(freshness)

    hashes = {module: freshness.source_hash(str(source / "netssmd"), module) for module in modules}
    lines = [f"    {module!r}: {value!r},\n" for module, value in hashes.items()]
    docstring = '"""Made by the build: each compiled module and the hash of its sources."""'
    text = f"{docstring}\n\nSOURCES = {{\n{''.join(lines)}}}\n"
    if not out.exists() or out.read_text() != text:
        out.write_text(text)


if __name__ == "__main__":
    main()
