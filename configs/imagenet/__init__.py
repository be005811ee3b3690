"""Configuration files of the image generator: one per entry point, task/."""
