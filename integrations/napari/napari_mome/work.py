"""What runs beside the window: loading a model, and answering, with progress and an end."""

from collections.abc import Iterator

from qtpy.QtCore import QObject, Signal
from superqt.utils import FunctionWorker, GeneratorWorker

from napari_mome.answering import Answer, Desk, Question


class Cancelled(Exception):
  """The work was told to stop."""


class Listener(QObject):
  """Hears in the thread that works, and tells the window; see `open_scan.Listener`."""

  stage = Signal(str)
  windows = Signal(int, int)

  def __init__(self, worker: GeneratorWorker):
    super().__init__()
    self._worker = worker

  def check(self) -> None:
    """Raises Cancelled once the work is to end."""
    if self._worker.abort_requested:
      raise Cancelled

  def enter(self, stage: str) -> None:
    """Tells what is done from now on."""
    self.check()
    self.stage.emit(stage)

  def progress(self, done: int, total: int) -> None:
    """Tells how many windows of the stage are done."""
    self.check()
    self.windows.emit(done, total)


class Loading(FunctionWorker):
  """Returns its number and a desk.

  Args:
    number: of it.
    checkpoint: see `Desk`.
  """

  def __init__(self, number: int, checkpoint: str | None):
    super().__init__(lambda: (number, Desk(checkpoint)))


class Answering(GeneratorWorker):
  """Yields answers as they are finished; `quit` ends it at the next window.

  Args:
    desk: the model.
    question: what is asked.
  """

  def __init__(self, desk: Desk, question: Question):
    super().__init__(self._answers)
    self._desk, self._question = desk, question
    self.listener = Listener(self)

  def _answers(self) -> Iterator[Answer]:
    try:
      yield from self._desk.answer(self._question, self.listener)
    except Cancelled:
      return
