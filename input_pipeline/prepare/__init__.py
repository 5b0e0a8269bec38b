"""From a download to records on disk: `python -m input_pipeline.prepare`, or `prepare(...)`.

`command` reads the options, `check` verifies a download and writes nothing, `preparation` converts
the cases. A `request` says what is asked for, and what that comes to beside what is `prepared`
already; `disk_space` how much room it takes.
"""

from input_pipeline.prepare.command import main, make_parser
from input_pipeline.prepare.preparation import check_disk, counted, prepare
from input_pipeline.prepare.prepared import PrepareError

__all__ = ['PrepareError', 'check_disk', 'counted', 'main', 'make_parser', 'prepare']
