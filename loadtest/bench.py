"""`make bench`: starts the server and a reference, measures both in one run, prints one table. Try --help."""

import sys
from pathlib import Path

# Run as a file, Python puts loadtest/ on sys.path; the package `loadtest` is found from the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.cli import main

if __name__ == "__main__":
    sys.exit(main())
