"""Training: the loop, its steps, state and losses, and where arrays live on the devices."""
