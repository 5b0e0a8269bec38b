"""The dock widget: a scan, a model, prompts; masks with their volumes."""

import html
import os
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np
from napari.layers import Image, Labels
from napari.utils.notifications import notification_manager
from napari.viewer import Viewer
from qtpy.QtWidgets import QFileDialog

from input_pipeline.ct import volume
from mome_jax.errors import UserError, one_line
from mome_jax.inference.model import Model
from mome_jax.text.prompts import parse_prompts
from napari_mome import placement, result_layer
from napari_mome.answering import Answer, Desk, Question
from napari_mome.panel import OTHER, Panel
from napari_mome.work import Answering, Loading

_ERROR = '#e5534b'  # to be read on light and dark


class PromptWidget(Panel):
  """Asks a model for masks of an image layer.

  Args:
    napari_viewer: whose layers these are.
    model: see `Desk`.

  Attributes:
    desk: the model, once it is loaded.
    answer: the last one.
    result: the layer that shows it.
  """

  def __init__(self, napari_viewer: Viewer, model: str | os.PathLike | Model | None = None):
    super().__init__()
    self.viewer = napari_viewer
    self.desk: Desk | None = None
    self.answer: Answer | None = None
    self.result: Labels | None = None
    self._drawn = 0  # checksum of what was written into the layer
    self._loading = 0  # number of the model that is loaded last
    self._loads = 0  # that have not ended
    self._world = placement.WORLD  # of layers that do not know where they lie, as it was chosen
    self._is_apart = False  # the answer that comes goes into a layer of its own
    self._worker: Answering | None = None
    self._connect()
    self._list_images()
    self.load_model(model)

  # ------------------------------------------------------------------------- what users do
  def load_model(self, model: str | os.PathLike | Model | None) -> None:
    """Loads a model beside the window, and shows which; see `Desk`."""
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    self.cancel()
    self.show_model(model)
    self.desk = None
    self._loading += 1
    self._loads += 1
    self._tell([])
    self._wait_for('loading the model')
    worker = Loading(self._loading, model)
    worker.returned.connect(self._have_model)
    worker.errored.connect(self._explain)  # a fault of this program, of whichever model
    worker.finished.connect(self._end_loading)
    worker.start()

  def segment(self) -> None:
    """Asks for what is written on the line."""
    if self.desk is None or self._worker is not None:
      return
    try:
      question = self._question()
    except UserError as error:
      self._explain(error)
      return
    self._tell([])
    self._worker = worker = Answering(self.desk, question)
    worker.listener.stage.connect(self._wait_for)
    worker.listener.windows.connect(self._progress)
    worker.yielded.connect(self._show)
    worker.errored.connect(self._explain)
    worker.finished.connect(self._end)
    self._is_apart = self.keep.isChecked()
    self._wait_for('reading the scan')
    worker.start()

  def cancel(self) -> None:
    """Ends what is computed, at the next window."""
    if self._worker is not None:
      self._worker.quit()
      self._wait_for('cancelling')

  def save(self, path: str | os.PathLike) -> None:
    """Writes the labels as they are shown to a NIfTI file on the scan's own grid.

    Their legend goes into a JSON file beside it, unless they were changed by hand: its volumes are
    those of what the model has made. A file of labels that lies there is replaced with its legend.

    Args:
      path: of it; a name without an ending gets '_seg.nii.gz'.

    Raises:
      UserError: if they cannot be written, or would take the place of anything else.
    """
    if self.answer is None or self.result is None:
      raise UserError('there is nothing to save; ask for something')
    path = pathlib.Path(path)
    if not path.name.endswith(volume.ENDINGS):
      path = path.with_name(f'{path.name}{result_layer.ENDING}')
      if path.exists():  # nobody was asked about this name
        raise UserError(f'{path}: lies there already; to replace it, give its whole name')
    answer, labels = self.answer, np.asarray(self.result.data)
    geometry, array = answer.segmented.scan.volume.geometry, answer.placed.from_layer(labels)
    if self._is_changed():
      result_layer.write(path, array, geometry, None)
      self._tell([f'{path.name}: written as changed by hand, without a legend of volumes'])
      return
    told = {'input': answer.segmented.name, **answer.origin, 'warnings': list(answer.notes)}
    legend = {**told, 'labels': list(answer.segmented.rows)}
    result_layer.write(path, array, geometry, legend)
    self._tell([f'{path.name}: written, with its legend beside it', *answer.notes])

  # ------------------------------------------------------------------------- what follows
  def _connect(self) -> None:
    self.start.clicked.connect(self.segment)
    self.prompts.returnPressed.connect(self.segment)
    self.stop.clicked.connect(self.cancel)
    self.write.clicked.connect(self._choose_file)
    self.models.activated.connect(self._choose_model)
    self.images.currentIndexChanged.connect(self._follow_image)
    self.table.cellClicked.connect(lambda row, _: self._go_to(row))
    events = self.viewer.layers.events
    for event in (events.inserted, events.removed, events.reordered):
      event.connect(self._list_images)

  def _list_images(self, event=None) -> None:
    """The image layers, the uppermost first; what was chosen stays so."""
    layers = [layer for layer in reversed(self.viewer.layers) if isinstance(layer, Image)]
    chosen = self.images.currentData()
    self.images.blockSignals(True)
    self.images.clear()
    for layer in layers:
      self.images.addItem(layer.name, layer)
    if chosen in layers:
      self.images.setCurrentIndex(layers.index(chosen))
    self.images.blockSignals(False)
    self._follow_image()

  def _follow_image(self) -> None:
    """Layers of this plugin tell themselves where they lie."""
    layer = self.images.currentData()
    knows = layer is not None and placement.SCAN in layer.metadata
    if self.world.isEnabledTo(self):
      self._world = self.world.currentText()
    self.world.setEnabled(not knows)
    self.world.setCurrentText(placement.WORLD if knows else self._world)
    self._rest()

  def _question(self) -> Question:
    layer = self.images.currentData()
    if layer is None:
      raise UserError('there is no image layer; open a CT, such as File > Open Sample > MoME-JAX')
    text = self.prompts.text().strip().rstrip(',')
    prompts = parse_prompts(text) if text else None
    return Question(layer, self.world.currentText(), prompts, self.force.isChecked())

  def _have_model(self, loaded: tuple[int, Desk | UserError]) -> None:
    number, result = loaded
    if number != self._loading:  # another one was asked for since
      return
    if isinstance(result, UserError):
      self._explain(result)
      return
    self.desk = result
    self.prompts.set_phrases(result.phrases())

  def _show(self, answer: Answer) -> None:
    """Shows masks that are finished: in the layer of the last answer, or a new one."""
    image, rows = answer.question.layer, answer.segmented.rows
    if image not in self.viewer.layers:
      self.cancel()
      return
    layer = result_layer.layer_over(image, answer.labels, rows)
    if self._can_redraw(image, layer) and not self._is_apart:
      result_layer.redraw(self.result, layer)
      is_new = False
    else:
      self.result = self.viewer.add_layer(layer)
      is_new, self._is_apart = True, False
    self._drawn = zlib.crc32(np.ascontiguousarray(self.result.data))
    self.answer = answer
    self.table.show_rows(rows, self.desk.model.config.experimental if self.desk else ())
    self._tell(answer.notes)
    present = [number for number, row in enumerate(rows) if row['volume_ml']]
    if is_new and present and not self._is_seen():
      self._go_to(present[0])

  def _is_seen(self) -> bool:
    """Whether there is a label in what the viewer shows."""
    dims, labels = self.viewer.dims, np.asarray(self.result.data)
    if dims.ndisplay == 3 or dims.ndim != labels.ndim:
      return True
    middle = self.result.world_to_data(dims.point)
    where: list[int | slice] = [slice(None)] * labels.ndim
    for axis in dims.not_displayed:
      where[axis] = int(np.clip(np.rint(middle[axis]), 0, labels.shape[axis] - 1))
    return bool(labels[tuple(where)].any())

  def _can_redraw(self, image: Image, layer: Labels) -> bool:
    """Whether the last result may go for another: of the same image, and not changed by hand."""
    last = self.result
    return (
      last is not None
      and self.answer is not None
      and self.answer.question.layer is image
      and last in self.viewer.layers
      and last.data.shape == layer.data.shape
      and np.allclose(placement.to_world(last), placement.to_world(layer))
      and not self._is_changed()
    )

  def _is_changed(self) -> bool:
    return zlib.crc32(np.ascontiguousarray(self.result.data)) != self._drawn

  def _go_to(self, number: int) -> None:
    """Shows the middle of the mask of a row."""
    if self.answer is None or self.result is None:
      return
    row = self.answer.segmented.rows[number]
    self.result.selected_label = row['label']
    voxels = np.nonzero(np.asarray(self.result.data) == row['label'])
    if voxels[0].size:
      middle = self.result.data_to_world([np.median(axis) for axis in voxels])
      self.viewer.dims.set_point(range(3), middle)

  # ------------------------------------------------------------------------- dialogs
  def _choose_model(self) -> None:
    if self.models.currentText() != OTHER:
      self.load_model(self.models.currentData())
      return
    folder = QFileDialog.getExistingDirectory(self, 'Model folder, or workdir of a training')
    if folder:
      self.load_model(folder)
    else:
      self.show_model(self.model)

  def _choose_file(self) -> None:
    name = '' if self.answer is None else f'{self.answer.segmented.name}{result_layer.ENDING}'
    path, _ = QFileDialog.getSaveFileName(self, 'Labels', name, 'NIfTI (*.nii.gz *.nii)')
    if path:
      try:
        self.save(path)
      except UserError as error:
        self._explain(error)

  # ------------------------------------------------------------------------- what is told
  def _wait_for(self, stage: str) -> None:
    self.stage.setText(stage)
    self.bar.setRange(0, 0)
    self.stage.show()
    self.bar.show()
    self.stop.setEnabled(self._worker is not None)
    self.start.setEnabled(False)

  def _progress(self, done: int, total: int) -> None:
    self.bar.setRange(0, total)
    self.bar.setValue(done)

  def _end(self) -> None:
    self._worker = None
    self._rest()

  def _end_loading(self) -> None:
    self._loads -= 1
    self._rest()

  def _rest(self) -> None:
    """Offers what can be done now."""
    if self._worker is None and self.desk is not None:
      self.desk.forget_all_but(self.viewer.layers)
    if self._worker is None and not self._loads:
      self.stage.hide()
      self.bar.hide()
    self.stop.setEnabled(self._worker is not None)
    self.start.setEnabled(self._worker is None and self.desk is not None)
    self.write.setEnabled(self.answer is not None and self._worker is None)

  def _explain(self, error: BaseException) -> None:
    """A line of what the user can mend; what else went wrong is reported by napari."""
    if isinstance(error, UserError):
      text = html.escape(one_line(error), quote=False)
      self.notes.setText(f'<span style="color:{_ERROR}">{text}</span>')
      self.notes.show()
    else:
      notification_manager.receive_error(type(error), error, error.__traceback__)

  def _tell(self, lines: Sequence[str]) -> None:
    self.notes.setText('<br>'.join(html.escape(line, quote=False) for line in lines))
    self.notes.setVisible(bool(lines))
