"""The same scan in several datasets: found by what scans show, whatever was done to their files.

`fingerprint` says what a scan shows and compares two of them voxel by voxel; `sketches` tells which
pairs are worth that, `fingerprint_store` holds those of thousands of scans. `command` writes what
is found to the file of groups.
"""

from input_pipeline.dedupe.command import main, make_parser, write_groups

__all__ = ['main', 'make_parser', 'write_groups']
