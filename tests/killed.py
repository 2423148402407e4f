"""Kill training runs and evaluations again and again at their most delicate moments, and go on with each.

A program of its own, which forks a process for each attempt: ``python tests/killed.py FOLDER NAME...`` prints, as JSON
for each run, how often it was killed, where, and what then differs from a run that was not.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import interrupted
import torch

import ppl_vae as pv
from ppl_vae import loop, recording

MOST_ATTEMPTS = 200


def in_child(work, at=None, folder=None, after=None):
    """Run in a forked process, killed at its at-th operation on files of a folder, or after so many seconds.

    Returns:
        Whether it came to its end.
    """
    if (child := os.fork()) == 0:
        if at is not None:
            sys.addaudithook(killer(at, str(folder)))
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "see above"
    return True


def killer(at, folder):
    """Return what kills the process before its at-th operation on files in a folder."""
    left = at

    def hear(event, arguments):
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.truncate") and str(arguments[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hear


def train(name, out, **options):
    """Train, or go on, saving after every batch."""
    loop.SECONDS_BETWEEN_SAVES = 0.0
    interrupted.run(interrupted.RUNS[name], out, resume=True, **options)


def until_done(work, folder, draw):
    """Kill and go on until the end; return how often it was killed."""
    for kills in range(MOST_ATTEMPTS):
        if in_child(work, at=draw(), folder=folder):
            return kills
    raise SystemExit(f"{folder}: no end after {MOST_ATTEMPTS} attempts")


def trained(name, folder):
    """Train both ways; return kills and differences."""
    chance = random.Random(name)
    whole, parts = folder / name / "whole", folder / name / "parts"
    assert in_child(lambda: train(name, whole))
    kills = until_done(lambda: train(name, parts), parts, lambda: chance.randint(1, 60))
    return {"kills": kills, "differences": interrupted.differences(interrupted.state(parts), interrupted.state(whole))}


def evaluated(folder):
    """Evaluate both ways."""
    chance = random.Random(0)

    def evaluate(out):
        recording.SECONDS_BETWEEN_WRITES = 0.0
        pair = interrupted.small("vae", "normal")
        pv.evaluate(pair.model, pair.guide, interrupted.bits(40), particles=20, batch_size=2, out=out)

    folder.mkdir(parents=True)
    whole, parts = folder / "whole.pt", folder / "parts.pt"
    assert in_child(lambda: evaluate(whole))
    kills = until_done(lambda: evaluate(parts), folder, lambda: chance.randint(4, 25))
    found, expected = (recording.read_record(path)["columns"] for path in (parts, whole))
    return {"kills": kills, "differences": interrupted.differences(found, expected)}


def at_any_time(folder):
    """Train both ways, killed by the clock."""
    chance, kills = random.Random(1), 0
    whole, parts = folder / "whole", folder / "parts"
    started = time.monotonic()
    assert in_child(lambda: train("plain", whole, epochs=16))
    takes = time.monotonic() - started
    for _ in range(8):
        kills += not in_child(lambda: train("plain", parts, epochs=16), after=chance.uniform(0.1, 0.5) * takes)
    assert in_child(lambda: train("plain", parts, epochs=16))
    return {"kills": kills, "differences": interrupted.differences(interrupted.state(parts), interrupted.state(whole))}


if __name__ == "__main__":
    target, *names = sys.argv[1:]
    target = Path(target)
    torch.set_num_threads(1)  # of which a fork can be made
    train("plain", target / "warm")  # what is imported on the way is there for all
    found = {name: trained(name, target) for name in names}
    found |= {"evaluation": evaluated(target / "evaluation"), "by the clock": at_any_time(target / "clock")}
    print(json.dumps(found))
