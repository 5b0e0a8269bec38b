"""What an hour with an accelerator is for: one command, in parts that resume."""
