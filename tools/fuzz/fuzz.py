"""Runs one target of targets.py under atheris (libFuzzer for Python), on interpreted sources, which is what it can see.

    python tools/fuzz/fuzz.py capture -runs=1000000
    python tools/fuzz/fuzz.py --all -runs=1000000     one after another, a line each
    python tools/fuzz/fuzz.py --plain frames 1000000  seeds damaged at random, no coverage, compiled modules: fast

Further options are libFuzzer's. What is new goes into a corpus in a temporary folder; a finding is written to
`finding-*` in the working directory: once mended, it belongs into `seeds/NAME/`. An input may take 2 GiB and 10 s.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The sources of this checkout: an editable install would give compiled modules, by a loader that atheris passes over.
if "--plain" not in sys.argv:
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    name, options = arguments[0], arguments[1:]
    if name == "--plain":
        return plain(options[0], int(options[1]))
    if name == "--all":
        return all_of_them(options)
    import atheris

    with atheris.instrument_imports(include=["netssmd"]):
        from targets import TARGETS, other_value, starts
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="netssmd-corpus-") as folder:
        words = Path(folder, "words")
        words.write_text("".join(f'"{escaped(word)}"\n' for word in target.words))
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for kept, data in starts(name).items():
            (corpus / kept).write_bytes(data)
        fixed = [f"-max_len={target.most_bytes}", "-rss_limit_mb=2048", "-timeout=10", "-artifact_prefix=finding-",
                 "-print_final_stats=1", *([f"-dict={words}"] if target.words else [])]  # fmt: skip

        def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
            """Every second change is one of a value."""
            rng = random.Random(seed)
            if target.json_at is not None and rng.random() < 0.5:
                data = other_value(data, target, rng)
                return data if len(data) <= most_bytes else data[:most_bytes]
            return bytes(atheris.Mutate(data[:most_bytes], most_bytes))

        extra = {} if target.json_at is None else {"custom_mutator": mutate}
        atheris.Setup([sys.argv[0], *fixed, *options, str(corpus)], target.run, **extra)
        atheris.Fuzz()
    return 0


def plain(name: str, runs: int) -> int:
    """Without atheris."""
    from targets import TARGETS, damaged, starts

    target, rng, begun = TARGETS[name], random.Random(1), time.monotonic()
    seeds = list(starts(name).values())
    for number in range(runs):
        data = damaged(rng.choice(seeds), target, rng)
        try:
            target.run(data)
        except Exception:
            Path(f"finding-{name}-{number}").write_bytes(data)
            raise
    seconds = time.monotonic() - begun
    print(f"{name:<16} {runs:>9} inputs {seconds:>7.0f} s  no coverage  nothing found", flush=True)
    return 0


def escaped(word: str) -> str:
    """As libFuzzer's dictionaries write it."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{b:02x}" for c in word for b in c.encode("latin-1"))


def all_of_them(options: list[str]) -> int:
    """Each target in a process of its own; what came of it."""
    from targets import TARGETS

    worst = 0
    for name in TARGETS:
        begun = time.monotonic()
        done = subprocess.run([sys.executable, __file__, name, *options], capture_output=True, text=True)
        runs = re.findall(r"stat::number_of_executed_units: (\d+)|Done (\d+) runs", done.stderr)
        coverage = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
        count = max((int(a or b) for a, b in runs), default=0)
        seconds = time.monotonic() - begun
        print(
            f"{name:<14} {count:>9} inputs {seconds:>7.0f} s  edges {coverage[-1][0] if coverage else '?':>6}  "
            f"{'nothing found' if done.returncode == 0 else 'FOUND: ' + last_error(done.stderr + done.stdout)}",
            flush=True,
        )
        worst = max(worst, done.returncode != 0)
    return worst


def last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if re.match(r"(\w+\.)*\w*(Error|Exception|ERROR)", line)]
    return lines[-1] if lines else "see its output"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
