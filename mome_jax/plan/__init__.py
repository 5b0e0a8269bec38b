"""Plans an experiment from the data: a fingerprint, stated rules, the compiler's bytes, a config.

`cohort` reads what the rules need to know of the scans, `rules` chooses the values, `trial`
compiles a training step to see what it needs, `fit` looks for the largest patch and batch that the
memory and the time hold, `config_file` writes the experiment, `command` reads the options and
`planning` does it.
"""
