"""The parts of the dock widget and how they are laid out; what they do stands in `widget`."""

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
  QCheckBox,
  QComboBox,
  QFormLayout,
  QHBoxLayout,
  QLabel,
  QProgressBar,
  QPushButton,
  QVBoxLayout,
  QWidget,
)

from mome_jax.inference.model import Model
from napari_mome.class_table import ClassTable
from napari_mome.prompt_line import PromptLine

SHIPPED, OTHER = 'the one of the package', 'a folder ...'
WORLDS = {
  'SPL': 'z, y, x of ITK, DICOM and this plugin',
  'RAS': 'x, y, z of nibabel',
  'SAR': 'z, y, x of nibabel',
  'LPS': 'x, y, z of ITK and DICOM',
}


class Panel(QWidget):
  """The parts, from top to bottom.

  Attributes:
    images, world, models, prompts: what is asked, of what.
    force, keep: ask also for what the model was not trained on; in a layer of its own.
    start, stop, stage, bar: the work.
    notes, table, write: the answer.
  """

  def __init__(self) -> None:
    super().__init__()
    self.images = QComboBox()
    self.world = QComboBox()
    self.world.setEditable(True)
    for code, meaning in WORLDS.items():
      self.world.addItem(code)
      self.world.setItemData(self.world.count() - 1, meaning, Qt.ItemDataRole.ToolTipRole)
    self.world.setToolTip(
      "Where the axes of napari's world grow to, a letter each: R or L, A or P, S or I.\n"
      + '\n'.join(f'{code}: {meaning}' for code, meaning in WORLDS.items())
      + '\nNot needed where the file of the layer has its voxels: then the file tells.'
    )
    self.models = QComboBox()
    self.models.addItems([SHIPPED, OTHER])
    self._model: str | Model | None = None
    self.prompts = PromptLine()
    self.force = QCheckBox('ask also for what the model was not trained on (--force)')
    self.keep = QCheckBox('keep the last result: a layer of its own')
    self.start, self.stop = QPushButton('Segment'), QPushButton('Cancel')
    self.stage, self.bar = QLabel(), QProgressBar()
    self.notes = QLabel()
    self.notes.setWordWrap(True)
    self.notes.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    self.table = ClassTable()
    self.write = QPushButton('Save NIfTI ...')
    self._lay_out()

  @property
  def model(self) -> str | Model | None:
    """That is shown; None is the one of the package."""
    return self._model

  def show_model(self, model: str | Model | None) -> None:
    """Shows which model is asked; a new one is added to the list."""
    self._model = model
    data = [self.models.itemData(number) for number in range(self.models.count() - 1)]
    if model not in data:
      name = f'in memory: {model.path}' if isinstance(model, Model) else model
      self.models.insertItem(len(data), name, model)
      data.append(model)
    self.models.setCurrentIndex(data.index(model))

  def _lay_out(self) -> None:
    form = QFormLayout()
    form.addRow('CT', self.images)
    form.addRow('world axes', self.world)
    form.addRow('model', self.models)
    form.addRow('prompts', self.prompts)
    buttons, progress = QHBoxLayout(), QHBoxLayout()
    for layout, parts in ((buttons, (self.start, self.stop)), (progress, (self.stage, self.bar))):
      for part in parts:
        layout.addWidget(part)
    page = QVBoxLayout(self)
    page.addLayout(form)
    page.addWidget(self.force)
    page.addWidget(self.keep)
    page.addLayout(buttons)
    page.addLayout(progress)
    page.addWidget(self.notes)
    page.addWidget(self.table, 1)
    page.addWidget(self.write)
