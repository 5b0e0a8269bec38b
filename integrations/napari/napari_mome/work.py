"""What runs beside the window: loading a model, and answering, with progress and an end."""

import threading
from collections.abc import Iterator

from qtpy.QtCore import QObject, Signal
from superqt.utils import FunctionWorker, GeneratorWorker

from mome_jax.errors import UserError
from mome_jax.inference.model import Model
from napari_mome.answering import Answer, Desk, Question


class Cancelled(Exception):
  """The work was told to stop."""


class Listener(QObject):
  """Hears in the thread that works, and tells the window; see `open_scan.Listener`.

  Attributes:
    stop: set once the work is to end.
  """

  stage = Signal(str)
  windows = Signal(int, int)

  def __init__(self) -> None:
    super().__init__()
    self.stop = threading.Event()

  def check(self) -> None:
    """Raises Cancelled once the work is to end."""
    if self.stop.is_set():
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
  """Returns its number and a desk, or why there is none.

  Args:
    number: of it.
    model: see `Desk`.
  """

  def __init__(self, number: int, model: str | Model | None):
    super().__init__(_load, number, model)


def _load(number: int, model: str | Model | None) -> tuple[int, Desk | UserError]:
  try:
    return number, Desk(model)
  except UserError as error:
    return number, error


class Answering(GeneratorWorker):
  """Yields answers as they are finished; `quit` ends it at the next window.

  Args:
    desk: the model.
    question: what is asked.
  """

  def __init__(self, desk: Desk, question: Question):
    self.listener = Listener()
    super().__init__(_answers, desk, question, self.listener)

  def quit(self) -> None:
    """Ends it at the next window."""
    self.listener.stop.set()
    super().quit()


# NOTE: no method of the worker: both would hold each other, and end in whichever thread collects.
def _answers(desk: Desk, question: Question, listener: Listener) -> Iterator[Answer]:
  try:
    yield from desk.answer(question, listener)
  except Cancelled:
    return
  except UserError:
    if not listener.stop.is_set():  # otherwise nobody asks any more
      raise
