"""Checkpoints of a run: sharded, written in the background, verified when they are read. No pickle."""
