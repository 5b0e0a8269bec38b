"""Programs that tests compile soon, and once, whatever starts them and however often."""

import contextlib

import jax
from jax.experimental.compilation_cache import compilation_cache

# Of processes: LLVM leaves out its costly passes, and compiling takes half the time. XLA's own
# passes stay, so that programs, their memory and collectives are those that users have.
SOON = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}


def variables(folder):
  """The environment of processes that compile soon, and keep all compiled programs in a folder."""
  return SOON | {
    'JAX_COMPILATION_CACHE_DIR': str(folder),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


@contextlib.contextmanager
def soon():
  """In this block, programs are compiled as with `SOON`: for those that run briefly."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  jax.config.update(name, True)
  try:
    yield
  finally:
    jax.config.update(name, before)


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
