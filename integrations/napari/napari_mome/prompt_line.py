"""A line of prompts between commas, completed from what a model knows."""

from collections.abc import Sequence

from qtpy.QtCore import QStringListModel, Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QCompleter, QLineEdit


class PromptLine(QLineEdit):
  """Completes the prompt in which the cursor is; Tab or Enter takes over what is chosen."""

  def __init__(self):
    super().__init__()
    self.setPlaceholderText('mandible, left parotid; empty: all not experimental')
    self._phrases = QStringListModel(self)
    self._completer = QCompleter(self._phrases, self)
    self._completer.setWidget(self)
    self._completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
    self._completer.setFilterMode(Qt.MatchFlag.MatchContains)
    self._completer.activated[str].connect(self.complete)
    self.textEdited.connect(self._suggest)

  def set_phrases(self, phrases: Sequence[str]) -> None:
    """Offers phrases, in this order."""
    self._phrases.setStringList(phrases)

  def suggestions(self) -> list[str]:
    """What is offered for the prompt in which the cursor is."""
    _, prefix, _ = self._parts()
    self._completer.setCompletionPrefix(prefix.strip())
    model = self._completer.completionModel()
    return [model.index(row, 0).data() for row in range(model.rowCount())]

  def complete(self, phrase: str) -> None:
    """Puts a phrase in place of the prompt in which the cursor is."""
    before, prompt, after = self._parts()
    space = ' ' if before else ''
    self.setText(f'{before}{space}{phrase}{after}')
    self.setCursorPosition(len(before) + len(space) + len(phrase))

  def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802, as Qt names it
    popup = self._completer.popup()
    taking = Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Tab
    if popup.isVisible() and event.key() in taking and popup.currentIndex().isValid():
      event.ignore()  # the list takes it
      return
    super().keyPressEvent(event)

  def _suggest(self) -> None:
    _, prompt, _ = self._parts()
    if prompt.strip() and self.suggestions():
      self._completer.complete()
    else:
      self._completer.popup().hide()

  def _parts(self) -> tuple[str, str, str]:
    """What is before, in and after the prompt in which the cursor is."""
    text, at = self.text(), self.cursorPosition()
    start = text.rfind(',', 0, at) + 1
    end = text.find(',', at)
    end = len(text) if end < 0 else end
    return text[:start], text[start:end], text[end:]
