"""Experiments. Each file holds values only: it starts from another and changes lines."""
