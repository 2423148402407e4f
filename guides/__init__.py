"""Guides (posterior families), one Pyro program a file; installed as ``ppl_vae.guides``."""
