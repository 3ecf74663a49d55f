"""``python -m lhkernels``."""

import sys

from lhkernels.cli import main

sys.exit(main())
