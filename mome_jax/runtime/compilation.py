"""How programs of the network are compiled, and where compiled ones are kept."""

import contextlib
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mome_jax.runtime import durations

# XLA:CPU would give 2D convolutions to YNNPACK; its own code, Eigen's, makes better use of several
# cores.
_OFF = 'off', '0', 'no', 'none', 'false'  # of MOME_CACHE
_CPU = {'xla_cpu_experimental_ynn_fusion_type': ''}


def cache_folder() -> str:
  """Where compiled programs are kept, '' where they are not.

  The environment says it: MOME_CACHE, a folder or 'off', or JAX_COMPILATION_CACHE_DIR; else it is
  `~/.cache/mome_jax`.
  """
  ours = os.environ.get('MOME_CACHE')
  if ours:
    return '' if ours.lower() in _OFF else os.path.expanduser(ours)
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # set at run time
  return folder or str(pathlib.Path(home, 'mome_jax'))


def use_cache() -> None:
  """Keeps compiled programs in `cache_folder()`, if it can be written to.

  Several processes may share it. Where they are of one run, after `multihost.initialize`.
  """
  folder = cache_folder()
  try:
    if folder and '://' not in folder:
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    print(
      f'note: compiled programs are not kept: {folder} cannot be written ({error.strerror}); '
      'MOME_CACHE names another folder',
      file=sys.stderr,
    )
    folder = ''
  if folder:
    jax.config.update('jax_compilation_cache_dir', folder)
    if '://' in folder:  # XLA's own caches of a GPU, in C++, know no buckets: compiling would fail
      jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  else:
    jax.config.update('jax_enable_compilation_cache', False)


_programs = 0


@functools.cache
def _count_programs() -> None:
  def note(event: str, duration_secs: float, **details: str | int) -> None:
    del duration_secs, details
    global _programs
    _programs += event == '/jax/core/compile/backend_compile_duration'

  jax.monitoring.register_event_duration_secs_listener(note)


def programs() -> int:
  """How many programs this process has compiled, or read from the cache, since the first call."""
  _count_programs()
  return _programs


def about(config: Any, *, training: bool) -> str:
  """What decides how long a config's program takes to compile, in words."""
  return f'{network(config, training=training)}, {devices()}'


def network(config: Any, *, training: bool) -> str:
  """The network of a config and what it is given, in words."""
  backbone, data = config.model.backbone, config.data
  rows = config.train.batch_size if training else max(config.evaluation.batch_size, 1)
  sides = data.patch if training else config.evaluation.window
  patch = 'x'.join(map(str, sides))
  return (
    f'{backbone.name} {backbone.get("size", "")}, {len(config.classes)} classes, {rows} of {patch}'
  )


def devices() -> str:
  """What programs are compiled for, and by which JAX."""
  return f'{jax.device_count()} {jax.devices()[0].device_kind}, jax {jax.__version__}'


@contextlib.contextmanager
def told(what: str, key: str, say: Callable[[str], object]) -> Iterator[None]:
  """Says that a program is compiled in the block, and how long that took the last time.

  Entries of the cache that a killed process left unfinished are removed first: JAX would go on to
  read them in vain.

  Args:
    what: 'the train step', say.
    key: what decides how long it takes; see `about`.
    say: prints a line.
  """
  folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # set at run time
  kept = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
  if kept and folder and '://' not in folder:
    program = f'jit_{what.removeprefix("the ").replace(" ", "_")}'
    _remove_unfinished(pathlib.Path(folder), program)
  before = durations.last(f'{what}: {key}')
  say(f'compiling {what} ({"the first time" if before is None else f"{before:.0f} s last time"})')
  start = time.perf_counter()
  yield
  spent = time.perf_counter() - start
  say(f'compiled {what} in {spent:.0f} s')
  durations.note(f'{what}: {key}', spent)


def _remove_unfinished(folder: pathlib.Path, program: str) -> None:
  """Removes entries of a program that were cut short, of those that came since the last look."""
  try:
    from jax._src.compilation_cache import decompress_executable  # there is no public way
  except ImportError:
    return
  mark = folder / f'{program}-seen'  # its time is that of the newest entry that was looked at
  with contextlib.suppress(OSError):
    seen = mark.stat().st_mtime_ns if mark.exists() else 0
    entries = {one: one.stat().st_mtime_ns for one in folder.glob(f'{program}-*-cache')}
    for entry, changed in entries.items():
      try:
        if changed >= seen:
          decompress_executable(entry.read_bytes())
      except Exception:  # each way of compressing raises its own
        with contextlib.suppress(OSError):  # of a user who shares the folder, say
          entry.unlink()
    mark.touch()
    os.utime(mark, ns=(max(entries.values(), default=0),) * 2)


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
