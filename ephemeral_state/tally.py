"""What this process has counted since it began, for whoever measures it. Pure.

What is counted: `set`, `explicit`, `disconnect` and `expired`, as a store's reports name them; `writes` and the
`batches` that they went in; `heard`, changes of topics that are followed here, and `handed`, the same times the sockets
that were told; `gaps` and `doubts`, after which a topic was read again; `refused.CODE`, and `error.EVENT`.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Final

__all__ = ["tally", "totals"]

_tallies: Final[dict[int, Counter[str]]] = {}


def tally() -> Counter[str]:
    """The running thread's own, to be added to by nobody else: so that takes no lock."""
    # An identifier is given to another thread when its own has ended, so there are no more than threads at one time.
    return _tallies.setdefault(threading.get_ident(), Counter())


def totals() -> Counter[str]:
    """All that was counted, from any thread."""
    found: Counter[str] = Counter()
    for each in list(_tallies.values()):
        found.update(dict(each))  # a copy is made in one step, while others add
    return found


if hasattr(os, "register_at_fork"):
    # A child has done nothing yet; what its parent did is the parent's to tell.
    os.register_at_fork(after_in_child=_tallies.clear)
