"""Ctrl-C and SIGTERM, heard between batches and not in the middle of an update."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "interrupts"]


class Interrupts:
    """Signals that came.

    Attributes:
        came: the first one, or None.
    """

    def __init__(self) -> None:
        self.came: int | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal. The second is obeyed at once: somebody waits for a batch that takes too long."""
        if self.came is not None:
            raise stopped_by(number)
        self.came = number


def stopped_by(number: int, words: str = "") -> BaseException:
    """Return what ends a program by a signal, with the status that shells expect: 130 or 143.

    Example:
        >>> stopped_by(signal.SIGTERM).code
        143
    """
    return KeyboardInterrupt(words) if number == signal.SIGINT else SystemExit(128 + number)


def terminated(number: int, frame: FrameType | None) -> None:
    """End the program by a signal as by an error, so that what is half done is left in order."""
    raise stopped_by(number)


# What is replaced: handlers that somebody has put there on purpose stay.
OURS = {signal.SIGINT: (signal.default_int_handler,), signal.SIGTERM: (signal.SIG_DFL, terminated)}


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Hear Ctrl-C and SIGTERM inside, and leave them to those who handled them before.

    Only a program's main thread hears signals; in others nothing comes.

    Example:
        >>> with interrupts() as heard:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     heard.came == signal.SIGTERM
        True
    """
    heard = Interrupts()
    with _handled(heard.hear, *OURS):
        yield heard


@contextmanager
def terminable() -> Iterator[None]:
    """Hear SIGTERM inside as Python hears Ctrl-C: as an exception.

    Example:
        >>> with terminable():
        ...     signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
        ...
        SystemExit: 143
    """
    with _handled(terminated, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if in_main}
    ours = {number: was for number, was in before.items() if was in OURS[number]}
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in ours.items():
            signal.signal(number, was)
