"""Data and a checkpoint that travel with the package."""
