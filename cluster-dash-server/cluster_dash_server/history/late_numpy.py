"""NumPy, imported when the first figures are packed, read or added up: the one place from which the server takes it.

It costs 0.15 s and 17 MB, and a server that starts is to answer before that. So modules say `from … import np` of here,
at their top, and quote the types: what they define is then free of NumPy until something is called.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
"""Nothing here multiplies matrices: else a pool of threads, with memory for each, stands by for it."""

if TYPE_CHECKING:
    import numpy as np
else:

    class _Late:
        """NumPy, a name at a time; any thread."""

        def __getattr__(self, name: str) -> Any:
            found = getattr(import_module("numpy"), name)
            setattr(self, name, found)
            return found

    np = _Late()

__all__ = ["load", "np"]


def load() -> None:
    """Import it now, in a thread for which nobody waits."""
    import_module("numpy")
