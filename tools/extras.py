"""Print the requirements of extras of pyproject.toml, one a line: `python tools/extras.py test train`."""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    requirements = [item for extra in sys.argv[1:] for item in project["optional-dependencies"][extra]]
    print("\n".join(sorted(set(requirements))))


if __name__ == "__main__":
    main()
