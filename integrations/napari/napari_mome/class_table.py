"""The table of classes: colour, name, volume, density, and what is odd about a mask."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from mome_jax.pictures.colours import palette

_COLUMNS = '', 'class', 'ml', 'mean HU', 'remarks'
_VERDICTS = {
  'near': 'not quite what the model knows',
  'unfamiliar': 'the model was not trained on it',
}


class ClassTable(QTableWidget):
  """A row for each class of an answer."""

  def __init__(self):
    super().__init__(0, len(_COLUMNS))
    self.setHorizontalHeaderLabels(_COLUMNS)
    self.verticalHeader().hide()
    self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    header = self.horizontalHeader()
    header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    header.setStretchLastSection(True)

  def show_rows(self, rows: Sequence[Mapping[str, Any]], experimental: Collection[str]) -> None:
    """Shows the rows of a legend; `experimental` are names of classes."""
    colours = palette([row['name'] for row in rows])
    self.setRowCount(len(rows))
    for number, row in enumerate(rows):
      hu = row['mean_hu']
      odd = remarks_on(row, experimental)
      size = row['volume_ml']
      millilitres = f'{size:.1g}' if 0 < size < 0.1 else f'{size:.1f}'
      texts = '', row['name'], millilitres, '' if hu is None else f'{hu:.0f}', odd
      for column, text in enumerate(texts):
        item = QTableWidgetItem(text)
        item.setToolTip(odd if column == len(texts) - 1 else f'asked for as "{row["prompt"]}"')
        if column in (2, 3):
          item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.setItem(number, column, item)
      self.item(number, 0).setBackground(QColor.fromRgbF(*map(float, colours[row['name']])))


def remarks_on(row: Mapping[str, Any], experimental: Collection[str]) -> str:
  """What is odd about a mask, in a few words."""
  told = ['experimental'] if row['name'] in experimental else []
  if row['verdict'] in _VERDICTS:
    told.append(_VERDICTS[row['verdict']])
  if row['removed_ml']:
    told.append(f'removed, not there: {row["reasons"][0]}')
  elif not row['present']:
    told.append('not there' if row['volume_ml'] else 'no voxel')
  elif row['plausible'] is False:
    told.append(f'implausible: {row["reasons"][0]}')
  if row['cut']:
    told.append('cut by the edge of the scan')
  return '; '.join(told)
