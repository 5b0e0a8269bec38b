"""What came of one scan."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Result:
  """What came of one scan.

  Attributes:
    case: NAME in the outputs' names.
    input: the scan.
    status: 'ok', 'mirrored' (written, but liver and spleen have changed sides), 'incomplete'
      (something beside labels and legend could not be written), 'skipped' (an earlier run has
      made its results) or 'failed'.
    seconds: reading, segmenting and writing.
    message: why it failed, or what was odd about it.
    timings: seconds of each stage.
    labels: a row a class; see `class_statistics.statistics`.
    missing: outputs that were asked for and could not be written, with the reason.
    kept: whether the results are those of an earlier run.
    series_uid: SeriesInstanceUID of DICOM, else empty.
  """

  case: str
  input: str
  status: str
  seconds: float = 0.0
  message: str = ''
  timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
  labels: Sequence[Mapping[str, Any]] = ()
  missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
  kept: bool = False
  series_uid: str = ''
