"""Programs that a test compiles once, whatever starts it and however often."""

import contextlib

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def kept(folder):
  """In this block, compiled programs are kept in a folder, and read from there.

  JAX decides at the first program of a process whether it keeps any, and where: an earlier test may
  have made it do so.
  """
  names = 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'
  before = {name: getattr(jax.config, name) for name in names}

  def use(values):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  use(dict(zip(names, (str(folder), 0), strict=True)))
  try:
    yield
  finally:
    use(before)
