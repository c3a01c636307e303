"""`python -m resa_bench.suites` is `resa-bench`."""

import sys

from .cli import main

sys.exit(main())
