"""The command line, run in this process."""

import sys

from ppl_vae import cli

FAST = ["--epochs", "3", "--hidden", "16", "--z-dim", "2", "--eval-particles", "50"]


def run(monkeypatch, *arguments):
    """Run the command line in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["ppl-vae", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0
