"""The process: its memory, programs compiled and kept, what errors of JAX mean."""
