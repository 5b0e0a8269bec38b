"""How programs of the network are compiled, and where compiled ones are kept."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

# XLA:CPU would give 2D convolutions to YNNPACK; its own code, Eigen's, makes better use of several
# cores.
_CPU = {'xla_cpu_experimental_ynn_fusion_type': ''}


def cache_folder() -> str:
  """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or else `~/.cache/mome_jax`."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # set at run time
  return folder or str(pathlib.Path(home, 'mome_jax'))


def use_cache() -> None:
  """Keeps compiled programs in `cache_folder()`.

  Where there are several processes, after `multihost.initialize`.
  """
  jax.config.update('jax_compilation_cache_dir', cache_folder())


def jit(function: Callable, platform: str, **keywords: Any) -> Any:
  """`jax.jit` of a program of the network, for 'cpu', 'gpu' or 'tpu'."""
  return jax.jit(function, compiler_options=options(platform), **keywords)


def options(platform: str) -> dict[str, str]:
  """Those of our options of XLA for 'cpu', 'gpu' or 'tpu' that this JAX knows."""
  settings = _CPU if platform == 'cpu' else {}
  return {name: value for name, value in settings.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: str) -> bool:
  cpu = jax.local_devices(backend='cpu')[:1]
  program = jax.jit(lambda: 0, compiler_options={name: value})
  try:
    with jax.set_mesh(jax.make_mesh((1,), ('cpu',), devices=cpu)):  # not on the mesh of a run
      program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'INVALID_ARGUMENT' in str(error):
      return False
    raise
  return True
