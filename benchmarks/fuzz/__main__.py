"""Entry point of `python -m benchmarks.fuzz`."""

import sys

from benchmarks.fuzz.fuzz import main

sys.exit(main())
