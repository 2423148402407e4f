"""Generative models, one Pyro program a file; installed as ``ppl_vae.models``."""
