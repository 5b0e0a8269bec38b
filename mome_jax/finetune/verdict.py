"""Whether a fine-tuned model is better than the one it began as, where both know a class."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mome_jax.evaluate import compare, tables


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What came of fine-tuning.

  Attributes:
    comparison: paired, A is the start and B the new model; None where there is nothing to compare.
    new: classes that the start does not know.
    why_not: in words, where there is no comparison.
    failed: whether that is an error, and not that there is nothing to compare.
  """

  comparison: compare.Comparison | None
  new: tuple[str, ...] = ()
  why_not: str = ''
  failed: bool = False

  @property
  def mean(self) -> compare.Difference | None:
    """The mean Dice over the classes that both know; None where no held-out scan has one."""
    rows = self.comparison.differences if self.comparison else ()
    mean = next((row for row in rows if (row.metric, row.name) == ('dice', compare.MEAN)), None)
    return mean if mean is not None and mean.n else None

  @property
  def worse(self) -> bool:
    """Whether the mean Dice over the classes that both know fell."""
    return self.mean is not None and self.mean.difference < 0

  @property
  def keeps_start(self) -> bool:
    """Whether the start is the better model to hand on: it knows all that the new one knows."""
    return self.worse and not self.new

  def lines(self) -> list[str]:
    """For people: the comparison and what follows from it."""
    mean = self.mean
    if self.comparison is None or mean is None:
      why = self.why_not or 'no held-out scan has a class of it'
      again = '; training is whole, and the same command compares again' if self.failed else ''
      return [f'NOT COMPARED with the start: {why}{again}']
    kept = [row for row in self.comparison.differences if row.metric == 'dice' and row.n]
    rows = [
      (row.name, row.n, f'{100 * row.a:.1f}', f'{100 * row.b:.1f}', compare.apart(row))
      for row in kept
    ]
    title = 'Dice % on the held-out scans'
    table = tables.markdown(title, ('class', 'scans', 'start', 'fine-tuned', 'change'), rows)
    lines = [table + tables.few_patients(compare.of_interval(self.comparison, 'dice'))]
    lost = [row.name for row in kept if row.difference < 0 and row.name != compare.MEAN]
    if self.worse:
      lines.append(
        f'WORSE THAN THE START: mean Dice {100 * mean.a:.1f} -> {100 * mean.b:.1f} over the '
        f'classes that it knew{_doubt(mean, kept)}; lost: {", ".join(lost)}. '
        + (
          'The exported model is the START.'
          if self.keeps_start
          else f'The new model is exported nevertheless, since the start does not know '
          f'{", ".join(self.new)}: use the start for the others.'
        )
        + ' More scans, or other --steps in another --workdir, may mend it.'
      )
    elif lost:
      lines.append(f'Better in the mean, but worse in: {", ".join(lost)}')
    return lines


def _doubt(mean: compare.Difference, rows: Sequence[compare.Difference]) -> str:
  """Why a fall of the mean may be chance; '' where the patients tell it.

  Args:
    mean: over the classes.
    rows: of the classes, with or without that of the mean.
  """
  change = compare.apart(mean)
  if math.isnan(mean.low):
    return f' ({change}: one patient does not tell it from no change)'
  single = [row.name for row in rows if row.patients == 1]
  if mean.high >= 0:
    return f' ({change}: {mean.patients} patients do not tell it from no change)'
  if single:
    return (
      f' ({change}, which takes {", ".join(single)} for certain: the one patient with it '
      'does not tell a fall from no change)'
    )
  return ''


def judge(
  start: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]], new: Sequence[str]
) -> Verdict:
  """Compares the scores of both on the same scans.

  Args:
    start: rows of `score_files.read`, of the start.
    tuned: those of the new model; what only one of them has a row of is left out.
    new: classes that the start does not know.

  Raises:
    ResultsError: if the two did not score the same scans.
  """
  case = lambda row: (row['source'], row['case'])
  # A row that one side lacks is of a class that it does not know; a case that it lacks is an error.
  common, both = set(map(compare.key, start)) & set(map(compare.key, tuned)), []
  for rows, others in ((start, tuned), (tuned, start)):
    cases = set(map(case, others))
    both.append([row for row in rows if compare.key(row) in common or case(row) not in cases])
  if not common:
    return Verdict(None, tuple(new), 'no held-out scan labels a class that it knows')
  return Verdict(compare.compare(*both, names=('start', 'fine-tuned')), tuple(new))
