"""A local page to type prompts into: `python -m mome_jax.serve`, and a JSON API for programs.

`command` starts it; `app` answers requests, which `guard` has let in, by the document of `openapi`.
`uploads` brings scans to disk, `scans` keeps them, `compute` is the one line of work, in which
`answers` has the model segment what was asked for, and `downloads` writes files of it.
"""
