"""What is made at a start stays to the end: Python need not look through it for what nobody refers to any more.

Else it does so again and again while modules are read and thousands of hosts come back, for an eighth of the start;
and later it is half of each collection, during which no post is answered.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def made_to_last() -> Iterator[None]:
    """Have the garbage collector leave alone, for good, what is there at the end; it rests in between."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
