"""Which scans a model was trained on: they are never scored as held out."""

import dataclasses
import functools
import json
from collections.abc import Iterable

from etils import epath

from input_pipeline import bricks
from input_pipeline.files import text_files
from mome_jax.checkpoint.errors import TrainingCasesError
from mome_jax.checkpoint.model_folder import folder_of
from mome_jax.errors import writing

FILE = 'training_cases.json'  # beside `config.json` of a workdir or model folder


@dataclasses.dataclass(frozen=True)
class TrainingCases:
  """The scans that a model, or one that it started from, could draw in training.

  Attributes:
    cases: of each scan its source, its name and its digest (see `identity.scan_digest`).
    complete: False where a model that this one started from does not say what it was trained on.
  """

  cases: frozenset[tuple[str, str, str]]
  complete: bool = True

  def reason(self, case: bricks.HeldOutCase | bricks.CaseInfo) -> str:
    """Why a held-out scan is none for this model; '' where it is one.

    Equal voxels are the same scan under any name. The same name in the same source is taken for the
    same scan even if voxels differ: a corrected header or another export is no new patient.
    """
    if case.digest in self._names:
      same = self._names[case.digest]
      return f'the same voxels as {same}, which the model was trained on'
    if f'{case.source}/{case.name}' in self._known:
      return (
        'trained on under this name with other voxels; if it is another patient, rename it or '
        'prepare it with another --name'
      )
    return ''

  @functools.cached_property
  def _names(self) -> dict[str, str]:
    """Digest -> source and name."""
    return {digest: f'{source}/{name}' for source, name, digest in sorted(self.cases)}

  @functools.cached_property
  def _known(self) -> frozenset[str]:
    return frozenset(f'{source}/{name}' for source, name, _ in self.cases)


def note(
  workdir: epath.Path, stores: Iterable[bricks.BrickStore], *, resumed: bool, init: str
) -> None:
  """Writes down what a run is about to train on, before its first step.

  Args:
    workdir: of the run.
    stores: that it samples from.
    resumed: whether it goes on from its own earlier steps, whose list is kept.
    init: the model that it started from, whose list is taken over; or ''.
  """
  cases = frozenset((c.source, c.name, c.digest) for store in stores for c in store.cases)
  before = TrainingCases(frozenset())
  if resumed or init:
    unknown = TrainingCases(frozenset(), complete=False)
    before = read(workdir if resumed else folder_of(init)) or unknown
  workdir.mkdir(parents=True, exist_ok=True)
  write(workdir, TrainingCases(cases | before.cases, before.complete))


def write(folder: epath.Path, cases: TrainingCases) -> None:
  """Writes FILE into a workdir or model folder; TrainingCasesError if it cannot be written."""
  lines = ',\n'.join(json.dumps(case) for case in sorted(cases.cases))
  complete = json.dumps(cases.complete)
  text = f'{{"complete": {complete}, "cases": [\n{lines}\n]}}\n'
  with writing(folder / FILE, TrainingCasesError):
    text_files.replace(folder / FILE, text)


def of_models(folders: Iterable[epath.Path]) -> TrainingCases | None:
  """What several models were trained on, any of them; None where none of them says.

  Raises:
    TrainingCasesError: if a list is damaged.
  """
  lists = [read(folder) for folder in folders]
  known = [one for one in lists if one is not None]
  if not known:
    return None
  complete = len(known) == len(lists) and all(one.complete for one in known)
  return TrainingCases(frozenset[tuple[str, str, str]]().union(*(o.cases for o in known)), complete)


def read(folder: epath.Path) -> TrainingCases | None:
  """Reads FILE of a workdir or model folder; None where there is none.

  Raises:
    TrainingCasesError: if it is damaged.
  """
  file = folder / FILE
  if not file.is_file():
    return None
  text = text_files.read_explained(file, TrainingCasesError)
  try:
    content = json.loads(text)
    cases = frozenset((str(s), str(n), str(d)) for s, n, d in content['cases'])
    return TrainingCases(cases, bool(content['complete']))
  except (ValueError, KeyError, TypeError) as error:
    raise TrainingCasesError(
      f'{file}: not a list of training cases ({error!r}); copy the model again'
    ) from error
