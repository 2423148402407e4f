"""Published results, run again: one module an experiment, one command each, a table of all."""
