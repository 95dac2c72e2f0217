"""Write what is generated from the table of metrics: docs/metrics.md, and the golden exposition of the tests.

python tools/metrics.py

The exposition is that of a service that has not begun, with every counter and label set at least once where the table
can be told to: its diff shows what a change of the table means to who scrapes.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from metrics_fixture import exposition, fixed_service  # noqa: E402

from netssmd.daemon.metrics import document  # noqa: E402

DOCUMENT = ROOT / "docs" / "metrics.md"
GOLDEN = ROOT / "tests" / "golden" / "metrics.txt"


def main() -> None:
    DOCUMENT.write_text(document())
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(exposition(fixed_service(Path(folder))))
    print(f"{DOCUMENT}\n{GOLDEN}")


if __name__ == "__main__":
    main()
