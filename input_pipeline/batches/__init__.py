"""Bricks to training batches."""
