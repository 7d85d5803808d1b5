"""``python -m fourstage.dashboards [FOLDER]`` writes the dashboards' JSON."""

import sys
from pathlib import Path

from fourstage.dashboards.pages import FOLDER, write

if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
