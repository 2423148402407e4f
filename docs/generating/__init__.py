"""Pages of the site that are made of the library itself: docstrings, tables, notebooks, benchmarks."""
