"""The scans that a model is scored on: of one split each, and none that it was trained on."""

import collections
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

from input_pipeline import bricks
from input_pipeline.anatomy import Template
from input_pipeline.patients import patient_folds
from mome_jax.checkpoint.training_cases import TrainingCases
from mome_jax.errors import UserError
from mome_jax.evaluate import patients
from mome_jax.training import multihost

SPLITS = ('validation', 'test')
CHOICES = ('auto', *SPLITS, 'all')
Fold = Mapping[str, Collection[bricks.Key] | None]
_SHOWN = 5  # scans that are left out, one line each


class HeldOutError(UserError):
  """The choice of scans to score is wrong; the message names the fix."""


class NothingHeldOutError(HeldOutError):
  """No scan is left to score."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Scans to score.

  Attributes:
    split: 'validation' or 'test'.
    left_out: `source`, `case` and `reason` of each scan that the model was trained on.
    trained: what the model says that it was trained on, or None.
    places: where the scans are: volumes of a source, and a number in them.
    patients: (source, case) -> patient, of those who have several scans; see `patients.called`.
  """

  split: str
  left_out: tuple[dict[str, str], ...]
  trained: TrainingCases | None
  places: tuple[tuple[Sequence[bricks.VolumeRecord], int], ...]
  patients: Mapping[bricks.Key, str] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.places)

  def read(self, start: int = 0, step: int = 1) -> Iterator[bricks.VolumeRecord]:
    """The scans from number `start` on, each `step`-th, one at a time."""
    for volumes, number in self.places[start::step]:
      yield volumes[number]

  def title(self) -> str:
    """How many scans of which split; what was left out, and what nobody knows."""
    text = f'{len(self)} held-out scan{"s" * (len(self) != 1)} ({self.split})'
    if self.left_out:
      text += f', {len(self.left_out)} more left out since the model was trained on them'
    if self.trained is None or not self.trained.complete:
      text += ', not checked against all training scans: the model does not list them'
    return text

  def origin(self) -> dict:
    """Fields of a summary."""
    complete = self.trained is not None and self.trained.complete
    left_out = list(self.left_out)
    return {'split': self.split, 'left_out': left_out, 'training_cases_known': complete}


def find(
  data_dir: str,
  sources: Sequence[str],
  template: Template,
  *,
  split: str = 'auto',
  trained: TrainingCases | None = None,
  fold: Fold | None = None,
) -> list[HeldOut]:
  """The held-out scans of prepared sources, split by split.

  Args:
    data_dir: of the prepared sources.
    sources: names of some of them.
    template: whose codes to give.
    split: 'validation'; 'test'; 'all', each on its own; or 'auto', validation, and test where no
      source has validation scans.
    trained: what the model was trained on; such scans are left out.
    fold: of `folds.by_source`: the validation scans of each source; None: those as prepared.

  Returns:
    One entry a split, of at least one scan each; what was left out is printed.

  Raises:
    HeldOutError: if `split` is no choice.
    NothingHeldOutError: if no scan is left to score.
  """
  if split not in CHOICES:
    raise HeldOutError(f'evaluation.split is {split!r}; known: {", ".join(CHOICES)}')
  fold = fold or dict.fromkeys(sources)
  listed = {source: bricks.held_out_cases(data_dir, source, fold[source]) for source in sources}
  number = collections.Counter(case.split for cases in listed.values() for case in cases)
  names = _splits(split, number)
  if not names:
    shown = ', '.join(f'{number[name]} {name}' for name in sorted(number)) or 'none'
    raise NothingHeldOutError(
      f'{data_dir}: no scan to score in {", ".join(sources)} with evaluation.split={split}; held '
      f'out there: {shown}. Choose another split, or hold scans out ("splits" in dataset.json of '
      'your own scans) and prepare them again'
    )
  kept, lines, whose = [], [], _patients(data_dir, listed)
  for name in names:
    part = _select(data_dir, listed, template, name, trained, fold)
    part = dataclasses.replace(part, patients=whose)
    lines += [f'left out: {c["source"]}/{c["case"]}: {c["reason"]}' for c in part.left_out]
    if len(part):
      kept.append(part)
  if not kept:
    raise NothingHeldOutError(
      f'{data_dir}: the model was trained on all {len(lines)} {" and ".join(names)} scans of '
      f'{", ".join(sources)} ({lines[0].removeprefix("left out: ")}); score it on others'
    )
  if len(lines) > _SHOWN:
    lines[_SHOWN:] = [f'left out: {len(lines) - _SHOWN} more, see summary.json']
  further = ', '.join(f'{number[name]} {name}' for name in sorted(number) if name not in names)
  if further:
    lines.append(f'not scored: {further} scans; --config.evaluation.split=all scores each split')
  if multihost.is_lead():
    print(*lines, sep='\n', end='\n' * bool(lines))
  return kept


def _patients(
  data_dir: str, listed: Mapping[str, Sequence[bricks.HeldOutCase]]
) -> dict[bricks.Key, str]:
  groups: dict[bricks.Key, str] = {}
  for source in listed:
    groups |= bricks.read_patients(data_dir, source)
  cases = [case for of_source in listed.values() for case in of_source]
  return patients.called(patient_folds.patients(cases, groups))


def _splits(split: str, number: Mapping[str, int]) -> list[str]:
  """Those that one of `CHOICES` asks for, and that some scans are of."""
  names = [name for name in SPLITS if number[name]]
  if split in SPLITS:
    return [split] if split in names else []
  return names[:1] if split == 'auto' else names


def _select(
  data_dir: str,
  listed: Mapping[str, Sequence[bricks.HeldOutCase]],
  template: Template,
  split: str,
  trained: TrainingCases | None,
  fold: Fold,
) -> HeldOut:
  places, left_out = [], []
  for source, cases in listed.items():
    volumes = bricks.open_volumes(data_dir, source, template, fold[source])
    for number, case in enumerate(cases):
      if case.split != split:
        continue
      reason = trained.reason(case) if trained else ''
      if reason:
        left_out.append({'source': case.source, 'case': case.name, 'reason': reason})
      else:
        places.append((volumes, number))
  return HeldOut(split, tuple(left_out), trained, tuple(places))
