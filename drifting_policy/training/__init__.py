"""The training loop: one Trainer for every objective, network and task."""
