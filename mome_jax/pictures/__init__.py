"""Drawings: each takes numbers, none makes them."""
