"""The process and its devices: how programs are compiled and kept, and what errors of JAX mean."""
