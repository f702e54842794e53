"""Entry point of `python -m benchmarks.crash`."""

import sys

from benchmarks.crash.crash import main

sys.exit(main())
