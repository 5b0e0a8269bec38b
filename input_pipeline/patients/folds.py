"""Cross-validation: which cases a fold holds out.

The cases of the splits train and validation are dealt into folds by patient, in the order of a hash
of each (`patient_folds`): the same on every machine. Test cases stay apart.
Sources must be prepared with `--folds`, so that every case can be trained on and be scored.
"""

import os
from collections.abc import Collection, Sequence
from typing import Any

from input_pipeline import bricks
from input_pipeline.bricks import Key
from input_pipeline.errors import UserError
from input_pipeline.patients import patient_folds


class FoldError(UserError):
  """The folds are not what they should be; the message names the fix."""


def of_run(config: Any) -> frozenset[Key] | None:
  """What the fold of a run's config holds out; see `held_out`."""
  data = config.data
  return held_out(config.data_dir, data.sources, data.fold, data.folds)


def held_out(
  data_dir: str | os.PathLike, sources: Sequence[str], fold: int, folds: int
) -> frozenset[Key] | None:
  """Source and name of the cases that a fold holds out; None for no fold.

  Args:
    data_dir: of the prepared sources.
    sources: names of them; patients are recognised across all.
    fold: 0 to folds - 1; -1 is no fold: the splits of the preparation.
    folds: how many.

  Raises:
    FoldError: if there is no such fold, or there are fewer patients than folds.
    NotPreparedError: if a source is not prepared with folds.
  """
  if fold == -1:
    return None
  if not 0 <= fold < folds or folds < 2:
    raise FoldError(
      f'data.fold is {fold} of {folds} (data.folds); expected 0 to one less than the number of '
      'folds, of which there are at least two, or -1 for none'
    )
  cases = [case for source in sources for case in bricks.pool_cases(data_dir, source)]
  groups: dict[Key, str] = {}
  for source in sources:
    groups |= bricks.read_patients(data_dir, source)
  patients = patient_folds.patients(cases, groups)
  dealt = patient_folds.deal(patients.values(), folds)
  if len(dealt) < folds:
    raise FoldError(
      f'data.folds is {folds}, and {", ".join(sources)} have {len(dealt)} patients to train on and '
      'validate; choose fewer folds'
    )
  return frozenset(key for key, who in patients.items() if dealt[who] == fold)


def by_source(
  data_dir: str | os.PathLike,
  sources: Sequence[str],
  dealt: Collection[str],
  fold: int,
  folds: int,
) -> dict[str, frozenset[Key] | None]:
  """What a fold holds out of each of some sources, as `bricks.open_bricks` takes it.

  Args:
    data_dir: of the prepared sources.
    sources: whose cases are asked for.
    dealt: the sources that the fold was dealt over, whose patients decide together; of another
      one nobody dealt any: what its preparation held out counts, which is None.
    fold: see `held_out`.
    folds: see `held_out`.

  Raises:
    FoldError: as `held_out`.
    NotPreparedError: if a source that the fold was dealt over is not prepared with folds.
  """
  known = [source for source in sources if source in dealt]
  try:
    cases = held_out(data_dir, tuple(dealt), fold, folds) if known else None
  except bricks.NotPreparedError as error:
    if {*dealt} <= {*sources}:
      raise
    raise bricks.NotPreparedError(
      f'{error}; what fold {fold} holds out of {", ".join(known)} was dealt over '
      f'{", ".join(dealt)}, all of which must be there'
    ) from error
  return {source: cases if source in dealt else None for source in sources}
