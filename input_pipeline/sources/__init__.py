"""Where scans come from: each source declares its cases, labels, licence and citation.

A source lists its cases without reading an image; `Case.load` reads one. Label maps hold the codes
of `anatomy`, which `labels` makes of a dataset's own. Supervision is per case: a class that a case
does not label is unknown there, not absent, and is never trained or scored.
"""

from input_pipeline.errors import suggest
from input_pipeline.sources import abdomen, regions, tumors
from input_pipeline.sources.base import (
  Case,
  Scan,
  Source,
  SourceError,
  in_template_order,
  restrict_table,
)
from input_pipeline.sources.chaos import CHAOS
from input_pipeline.sources.ircadb import IRCADB
from input_pipeline.sources.nifti_folder import NIFTI_FOLDER
from input_pipeline.sources.openkbp import OPENKBP, OPENKBP_PARTS, OPENKBP_PTV, OPENKBP_TUNE
from input_pipeline.sources.phantom import PHANTOM, PHANTOM_TUNE, phantom_cases
from input_pipeline.sources.rtstruct_folder import RTSTRUCT_FOLDER
from input_pipeline.sources.totalsegmentator import TOTALSEGMENTATOR

__all__ = [
  'SOURCES', 'Case', 'Scan', 'Source', 'SourceError', 'get_source', 'in_template_order',
  'phantom_cases', 'restrict_table',
]  # fmt: skip

_DATASETS = (*abdomen.DATASETS, *tumors.DATASETS, *regions.DATASETS)
SOURCES: dict[str, Source] = {
  source.name: source
  for source in (
    PHANTOM,
    PHANTOM_TUNE,
    NIFTI_FOLDER,
    RTSTRUCT_FOLDER,
    OPENKBP,
    OPENKBP_TUNE,
    OPENKBP_PTV,
    OPENKBP_PARTS,
    CHAOS,
    IRCADB,
    TOTALSEGMENTATOR,
    *(dataset.source() for dataset in _DATASETS),
  )
}


def get_source(name: str) -> Source:
  """The source of that name.

  Raises:
    SourceError: if there is none; the message lists the known ones.
  """
  if name not in SOURCES:
    raise SourceError(f'no source is called {name!r}; {suggest(name, sorted(SOURCES))}')
  return SOURCES[name]
