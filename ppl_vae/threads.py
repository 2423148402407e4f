"""One thread at a time: what Pyro and torch keep once for a whole process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_thread"]

# Who is inside, by entry: a generator that was left suspended ends when it is collected, in any order, on any thread.
_inside: dict[object, threading.Thread] = {}


@contextmanager
def one_thread() -> Iterator[None]:
    """Refuse to go on beside another thread that is inside; a thread that is inside may enter again.

    Pyro's handlers and parameter store, torch's generators and its validation of arguments are one for all threads of
    a process: two that run programs side by side would trace each other's sites and draw from each other's seeds, and
    nothing would say so. A thread counts from where it enters until it leaves or has ended; threads that take turns
    are no matter, nor are those that only load data or compute gradients.

    Raises:
        RuntimeError: another thread is inside.

    Example:
        >>> with one_thread(), one_thread():
        ...     print("the same thread again")
        the same thread again
    """
    entry, me = object(), threading.current_thread()
    _inside[entry] = me  # first, without a lock, which a fork might leave closed: of two that come at once none passes
    try:
        # Those that have ended, or were left behind by a fork, are inside no more.
        others = [thread.name for thread in [*_inside.values()] if thread is not me and thread.is_alive()]
        if others:
            raise RuntimeError(
                f"threads: {others[0]} is inside a function of ppl_vae while {me.name} calls one, and Pyro's handlers, "
                "its parameter store and torch's random state are one for all threads of a process; run them one after "
                "the other, or in processes, such as torch.multiprocessing.get_context('spawn').Process"
            )
        yield
    finally:
        _inside.pop(entry, None)
