"""Contenders of the speed benchmarks: this library, PyTorch by hand, Pyro, NumPyro and pythae."""
