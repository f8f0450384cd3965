"""What is made at a start stays to the end: Python need not look through it for what nobody refers to any more.

Else it does so again and again while modules are read and thousands of hosts come back, for an eighth of the start;
and later it is half of each collection, during which no post is answered. Those of all that is known are rare from
then on: of 3,000 hosts one takes a fifth of a second, and finds nothing that the small ones have not found.
"""

import contextlib
import gc
from collections.abc import Iterator

RARE = 100
"""So many collections of what is young come before one of all; else it were ten, and a post in twenty waited for it."""


@contextlib.contextmanager
def made_to_last() -> Iterator[None]:
    """Have the garbage collector leave alone, for good, what is there at the end; it rests in between."""
    gc.disable()
    try:
        yield
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], RARE)
    finally:
        gc.enable()
