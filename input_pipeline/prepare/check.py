"""Verifies a downloaded source without writing anything: files, labels, geometry, plausibility."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from input_pipeline import errors, progress, remarks, sources
from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import body

# (class, class, canonical axis, words): the first has the larger coordinate in any patient
# without situs inversus. A scan that breaks a rule is mirrored or turned, or its labels are.
_PLACES = (
  ('liver', 'spleen', 0, 'right of'),
  ('liver', 'stomach', 0, 'right of'),
  ('gallbladder', 'spleen', 0, 'right of'),
  ('liver', 'bladder', 2, 'above'),
  ('spleen', 'bladder', 2, 'above'),
  ('esophagus', 'duodenum', 2, 'above'),
  ('brainstem', 'larynx', 2, 'above'),
  ('liver', 'right kidney', 1, 'in front of'),
  ('stomach', 'left kidney', 1, 'in front of'),
  ('mandible', 'spinal cord', 1, 'in front of'),
  ('larynx', 'spinal cord', 1, 'in front of'),
  ('bladder', 'rectum', 1, 'in front of'),
)
_FEW_VOXELS = 20


@dataclasses.dataclass(frozen=True)
class Finding:
  """One remark on a case: `kind` is 'error' (the case cannot be used) or 'warning'."""

  case: str
  kind: str
  message: str


def check_source(name: str, manual_dir: str | None) -> Iterator[tuple[str, list[Finding]]]:
  """Reads every case of a download, with a progress bar where that takes seconds.

  Args:
    name: of the source.
    manual_dir: folder the user downloaded.

  Yields:
    For the source as a whole, under the name '', and then for each case: its findings.

  Raises:
    SourceError: if the download as a whole cannot be used.
  """
  source = sources.get_source(name)
  template = source.template(manual_dir)
  cases, notes = source.listed(manual_dir)
  findings = [Finding('', 'warning', note) for note in notes]
  # More is no fault: the labels of WORD's test scans came later.
  if source.expected is not None and len(cases) < source.expected:
    message = f'{len(cases)} labelled cases, {source.expected} expected; is the download complete?'
    findings.append(Finding('', 'warning', message))
  yield '', findings
  for case in progress.bar(cases, desc='check', unit='case', delay=2):
    yield case.name, check_case(case, template)


def check_case(case: sources.Case, template: Template = TEMPLATE) -> list[Finding]:
  """Reads a case; warnings of the readers become findings."""
  with remarks.collected() as messages:
    try:
      scan = case.load()
    except Exception as error:  # whatever is wrong with one case must not stop the check
      return [Finding(case.name, 'error', errors.reason(error))]
  messages += check_scan(scan, case.labelled, template)
  return [Finding(case.name, 'warning', message) for message in messages]


def check_scan(
  scan: sources.Scan, supervised: tuple[str, ...], template: Template = TEMPLATE
) -> list[str]:
  """Whether a scan and its labels are plausible.

  Args:
    scan: with its codes.
    supervised: the classes that its codes hold.
    template: of the codes.

  Returns:
    What is not: classes in wrong places relative to each other, organs in air, and no class at all.
  """
  centres, messages = {}, []
  table = template.code_table(supervised)
  for k, name in enumerate(supervised):
    mask = table[:, k][scan.codes]
    number = int(mask.sum())
    if number >= _FEW_VOXELS:
      centres[name] = [
        mask.sum(tuple({0, 1, 2} - {axis})) @ np.arange(mask.shape[axis]) / number
        for axis in range(3)
      ]
      median = float(np.median(scan.image[mask]))
      if median < body.BODY_HU and 'lung' not in name and name != 'larynx':
        messages.append(
          f'half of {name} is below {median:g} HU: if it holds no air, labels and scan do not match'
        )
  if not centres:
    messages.append('nothing is labelled')
  places = [(right, left, 0, 'right of') for right, left in template.pairs().values()]
  for first, second, axis, words in (*_PLACES, *places):
    known = first in centres and second in centres
    if known and centres[first][axis] <= centres[second][axis]:
      messages.append(f'{first} is not {words} {second}: is the scan mirrored or turned?')
  return messages
