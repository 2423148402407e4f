"""Run programs with draws that a test chooses."""

from pyro.poutine.messenger import Messenger


class Given(Messenger):
    """Use these values at latent sites, as if the program had drawn them."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg):
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
