"""Scripted experts: the state of the simulator in, actions out, in ways that nothing in the observations tells."""
