"""The drifting field as a one-step image generator (arXiv 2602.04770, section 5): the second application of `drift`."""
