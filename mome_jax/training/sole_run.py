"""One run in a workdir at a time."""

import contextlib
from collections.abc import Iterator

from etils import epath

from input_pipeline.files import folder_lock
from mome_jax.checkpoint import CheckpointError
from mome_jax.training import multihost


@contextlib.contextmanager
def sole_run(workdir: epath.Path) -> Iterator[None]:
  """Keeps other runs out of a workdir: two would mix their steps and their checkpoints.

  A bucket has no locks: there it does nothing; see `folder_lock`.

  Args:
    workdir: created where missing.

  Raises:
    CheckpointError: if another run is in it.
  """
  if not multihost.is_lead():
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  refusal = CheckpointError(
    f'{workdir}: another run is in it; wait for its end, end it, or give another --workdir'
  )
  with folder_lock.sole(workdir, refusal):
    yield
