"""`python -m syngrad` is `syngrad`."""

import sys

from syngrad.cli import main

sys.exit(main())
