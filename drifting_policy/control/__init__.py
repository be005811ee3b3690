"""From a policy to a robot: on time, smooth, within limits. NumPy only; other packages where they are used."""
