"""Python runs this first in every process that the tests start, where `make test` has put its folder into PYTHONPATH.

A process of the tests lives for seconds, of which PyTorch's import was the most, and of that a third the garbage
collector's, going through objects that all stay. It looks less often here, and not at all at the very end.
"""

import atexit
import gc

gc.set_threshold(50_000, 50, 100)
atexit.register(gc.freeze)
