"""Two threads at once are refused, since Pyro's handlers are one for both; in turn they work."""

import threading

import pairs
import pytest
import torch
from capturing import step_on
from small import Bits, BitsGuide

import ppl_vae as pv
from ppl_vae.programs import forked_random_state, own_parameters

BITS = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


class Elsewhere(threading.Thread):
    """Run something on another thread, up to a word."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.error = call, None
        self.start()

    def run(self):
        try:
            self.call()
        except Exception as error:
            self.error = error

    def finished(self):
        self.join(60)
        assert not self.is_alive()
        return self.error


def called(name):
    pair = pairs.make("vae", "normal")
    x = pair.data_set(4)
    step = step_on(Bits(), BitsGuide(), BITS)
    compiled = step_on(Bits(), BitsGuide(), BITS, compile=True)
    return {
        "weigh": lambda: pv.weigh(pair.model, pair.guide, x),
        "check": lambda: pv.check(pair.model, pair.guide, x),
        "fit": lambda: pv.fit(pair.model, pair.guide, x, epochs=1),
        "evaluate": lambda: pv.evaluate(pair.model, pair.guide, x, particles=2),
        "sample": lambda: pv.sample(pair.model, like=x, n=2),
        "step": lambda: step(BITS),
        "compiled step": lambda: compiled(BITS),
        "validation": lambda: step.bound(BITS),
        "loss": lambda: pv.ELBO(pv.objectives.elbo, 2).loss(pair.model, pair.guide, x),
    }[name]


THREADED = ["weigh", "check", "fit", "evaluate", "sample", "step", "compiled step", "validation", "loss"]


@pytest.mark.parametrize("name", THREADED)
def test_a_second_thread_is_refused_in_either_order_and_works_afterwards(name, uncompiled):
    call = called(name)
    call()  # what is compiled, is
    inside, leave = threading.Event(), threading.Event()

    def occupied():
        with own_parameters():
            inside.set()
            leave.wait(60)

    other = Elsewhere(occupied)
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match=r"^threads: Thread-\d+.* is inside .* while MainThread calls .*processes"):
        call()
    leave.set()
    assert other.finished() is None
    call()
    with forked_random_state():
        error = Elsewhere(call).finished()
    assert isinstance(error, RuntimeError)
    assert str(error).startswith("threads: MainThread is inside")
    assert Elsewhere(call).finished() is None  # in turn


def test_a_thread_that_failed_or_was_left_suspended_is_inside_no_more():
    def fails():
        with own_parameters():
            raise KeyError

    assert isinstance(Elsewhere(fails).finished(), KeyError)
    pv.weigh(Bits(), BitsGuide(), BITS)

    def suspended():
        with own_parameters():
            yield

    kept = []
    assert Elsewhere(lambda: kept.append(suspended()) or next(kept[0])).finished() is None
    kept[0].close()  # on another thread than it began on
    dropped = suspended()
    next(dropped)
    del dropped
    assert Elsewhere(lambda: pv.weigh(Bits(), BitsGuide(), BITS)).finished() is None


def test_what_a_verb_calls_may_call_verbs():
    """A transform of the data that runs programs: the same thread, further inside."""
    pair = pairs.make("vae", "normal")

    def noisy(x):
        return pv.reconstruct(pair.model, pair.guide, x)["x"].bernoulli()

    assert len(pv.fit(pair.model, pair.guide, pair.data_set(8), epochs=2, transform=noisy).history["epoch"]) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_threads_that_load_data_are_no_matter(workers):
    pair = pairs.make("vae", "normal")
    loader = torch.utils.data.DataLoader(pair.data_set(8), batch_size=4, num_workers=workers)
    assert len(pv.fit(pair.model, pair.guide, loader, epochs=2).history["epoch"]) == 2
