"""Ctrl-C and SIGTERM, heard between batches and not in the middle of an update."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "interrupts"]

# What is replaced: handlers that somebody has put there on purpose stay.
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


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
    in_main = threading.current_thread() is threading.main_thread()
    ours = [number for number, handler in DEFAULTS.items() if in_main and signal.getsignal(number) == handler]
    for number in ours:
        signal.signal(number, heard.hear)
    try:
        yield heard
    finally:
        for number in ours:
            signal.signal(number, DEFAULTS[number])
