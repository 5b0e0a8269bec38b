"""The plugin in a real napari: masks lie on the scan, and are those of `predict`."""

import importlib
import json
import pathlib
import threading
import time

import nibabel as nib
import numpy as np
import pytest
from threshold import Threshold, save_scan

from input_pipeline.ct import volume
from input_pipeline.files import file_kinds
from mome_jax import shipped
from mome_jax.errors import UserError
from mome_jax.predict import predict
from mome_jax.predict.request import Options

pytest.importorskip('napari', reason='napari is not installed', exc_type=ModuleNotFoundError)
try:
  importlib.import_module('PyQt6.QtWidgets')
except ImportError as error:
  if 'cannot open shared object file' not in str(error):  # that is the system's, no fault of ours
    raise
  pytest.skip(f'Qt lacks a library: {error}', allow_module_level=True)

import napari  # noqa: E402
import npe2  # noqa: E402
from napari.components import ViewerModel  # noqa: E402
from napari.layers import Image, Labels, Layer  # noqa: E402
from napari_mome import answering, class_table, placement, read_scans  # noqa: E402
from napari_mome.panel import OTHER, SHIPPED  # noqa: E402
from napari_mome.prompt_line import PromptLine  # noqa: E402
from napari_mome.widget import PromptWidget  # noqa: E402
from qtpy.QtWidgets import QApplication, QFileDialog  # noqa: E402
from superqt.utils import WorkerBase  # noqa: E402

PLUGIN = pathlib.Path(__file__).parents[2] / 'integrations' / 'napari'
# A world whose axes grow to superior, posterior, left -> right, anterior, superior.
SPL = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
TURNED = [[0, 0, 3, -20], [-2, 0.1, 0, 30], [0.1, -4, 0, 60], [0, 0, 0, 1.0]]  # sagittal, oblique


@pytest.fixture(scope='module')
def app(draws):
  return QApplication.instance() or QApplication([])


@pytest.fixture(scope='module')
def plugin(app):
  """npe2 knows the plugin, as from its entry point."""
  manager = npe2.PluginManager.instance()
  manager.register(npe2.PluginManifest.from_file(PLUGIN / 'napari_mome' / 'napari.yaml'))
  yield manager
  manager.unregister('napari-mome')


@pytest.fixture
def viewer(plugin):
  """A viewer without a window."""
  yield ViewerModel()
  rest()


@pytest.fixture
def window(plugin, draws):
  """A viewer with its window, where that can be drawn."""
  made = napari.Viewer(show=False) if draws else ViewerModel()
  yield made
  rest()
  if draws:
    made.close()


def rest():
  """Lets threads end while what they tell is still there."""
  WorkerBase.await_workers(60_000)
  QApplication.processEvents()


def wait(condition, seconds=120):
  """Lets Qt work until something is so."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    QApplication.processEvents()
    time.sleep(0.01)


def dock(viewer, model=None):
  """The widget in a viewer, with its model loaded."""
  if model is None and hasattr(viewer, 'window'):
    _, widget = viewer.window.add_plugin_dock_widget('napari-mome')
  else:
    widget = PromptWidget(viewer, model)
  wait(widget.start.isEnabled)
  return widget


def ask(widget, text):
  widget.prompts.setText(text)
  widget.segment()
  wait(lambda: widget.start.isEnabled())


def picture(viewer):
  """(H, W, 3) int: the window as it is drawn."""
  for _ in range(20):
    QApplication.processEvents()
  return viewer.screenshot(canvas_only=False, flash=False)[..., :3].astype(int)


def texts(table):
  return [[table.item(y, x).text() for x in range(1, 5)] for y in range(table.rowCount())]


def on_file(layer, affine, to_ras=SPL):
  """(N, 3) voxel indices of a layer -> those of the file that its world was made of."""
  index = np.argwhere(np.ones(layer.data.shape, bool))
  corners = np.array([layer.data_to_world(p) for p in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))])
  world = corners[0] + index @ (corners[1:] - corners[0])
  patient = np.c_[world, np.ones(len(world))] @ to_ras.T
  inside = (patient @ np.linalg.inv(affine).T)[:, :3]
  np.testing.assert_allclose(inside, np.rint(inside), atol=1e-3)
  return index, np.rint(inside).astype(int)


def check_on_scan(layer, path, to_ras=SPL):
  """The labels of a layer are those of a file, voxel for voxel in the world."""
  image = nib.load(path)
  indices, on_disk = on_file(layer, image.affine, to_ras)
  labels, expected = np.asarray(layer.data), np.asarray(image.dataobj)
  np.testing.assert_array_equal(labels[tuple(indices.T)], expected[tuple(on_disk.T)])
  assert expected.any() and layer.data.size == expected.size


# ------------------------------------------------------------------------------- where things lie
def as_read(path):
  [layer] = read_scans.read(str(path))
  return Layer.create(*layer), 'SPL', SPL


def as_nibabel(path):
  image = nib.load(path)
  layer = Image(np.asarray(image.dataobj), affine=image.affine, name='CT')
  return layer, 'RAS', np.eye(4)


def as_itk(path):
  """Axes z, y, x of ITK's world, whose x grows to the left and y to posterior."""
  image = nib.load(path)
  lps = np.diag([-1, -1, 1, 1]) @ image.affine
  turned = lps[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
  return Image(np.asarray(image.dataobj).transpose(2, 1, 0), affine=turned, name='CT'), 'SPL', SPL


def in_metres(path):
  layer, world, to_ras = as_itk(path)
  thousandth = np.diag([1e-3, 1e-3, 1e-3, 1])
  affine = thousandth @ layer.affine.affine_matrix
  layer = Image(layer.data, affine=affine, name='CT', units=('m', 'm', 'm'))
  return layer, world, to_ras @ np.diag([1e3, 1e3, 1e3, 1])


@pytest.mark.parametrize('affine', [np.diag([-8, -7, 9, 1.0]), TURNED], ids=['LPS', 'oblique'])
@pytest.mark.parametrize('as_layer', [as_read, as_nibabel, as_itk, in_metres])
def test_masks_lie_on_the_scan_whatever_its_axes(tmp_path, as_layer, affine):
  path = save_scan(tmp_path / 'scan.nii.gz', affine=np.array(affine))
  layer, world, to_ras = as_layer(path)
  placed, scan = placement.place(layer, world), volume.read_image(path)
  np.testing.assert_array_equal(placed.loaded.volume.array, scan.array)  # what the model sees
  canonical = placed.loaded.volume.geometry.canonical_affine
  np.testing.assert_allclose(canonical, scan.geometry.canonical_affine, atol=1e-5)

  desk = answering.Desk(Threshold())
  *_, answer = desk.answer(answering.Question(layer, world, ['liver']), Silent())
  shown = answering.result_layer.layer_over(layer, answer.labels, answer.segmented.rows)
  predict(Threshold(), [path], tmp_path, ['liver'], options=Options(preview=False), progress=False)
  check_on_scan(shown, tmp_path / 'scan_seg.nii.gz', to_ras)


@pytest.mark.parametrize('turn', [(2, 0, 1), (1, 2, 0), (0, 1, 2)])
def test_a_file_tells_where_a_layer_of_another_reader_lies(viewer, tmp_path, turn):
  path = save_scan(tmp_path / 'scan.nii.gz', affine=np.array(TURNED))
  image, scan = nib.load(path), volume.read_image(path)
  array = np.asarray(image.dataobj).transpose(turn)[::-1]
  with npe2.DynamicPlugin('other') as other:

    @other.contribute.reader(filename_patterns=['*.nii.gz'])
    def get_reader(path):
      return lambda path: [(array, {'name': 'CT'}, 'image')]  # without any place

    [layer] = viewer.open(path, plugin='other')
  placed = placement.place(layer, 'LPS')
  np.testing.assert_array_equal(placed.loaded.volume.array, scan.array)
  np.testing.assert_array_equal(placed.on_layer(scan.array), array)
  np.testing.assert_array_equal(placed.from_layer(array), scan.array)
  expected = image.affine @ [*(np.argsort(turn) == 0) * (len(array) - 1), 1]
  np.testing.assert_allclose(placed.grid.affine @ [0, 0, 0, 1], expected, atol=1e-5)
  layer.data = array + 1  # it is not the file's any more
  with pytest.raises(UserError, match='nothing tells how large its voxels are'):
    placement.place(layer, 'LPS')


class Silent:
  """Hears of progress and does nothing."""

  check = enter = progress = staticmethod(lambda *told: None)


def ct(**more):
  return Image(np.linspace(-1000, 1000, 6 * 7 * 8).reshape(6, 7, 8), name='CT', **more)


@pytest.mark.parametrize(
  ('layer', 'world', 'reason'),
  [
    (lambda: ct(), 'SPL', 'nothing tells how large its voxels are; set layer.scale'),
    (lambda: ct(scale=(2, 1, 1)), 'SPR?', "world axes 'SPR?': expected three letters"),
    (lambda: ct(scale=(2, 1, 1)), 'SPS', "world axes 'SPS': expected three letters"),
    (lambda: ct(scale=(2, 1, 1), units=('s', 'mm', 'mm')), 'SPL', 'its unit second is no length'),
    (lambda: Image(np.zeros((2, 6, 7, 8)), name='CT'), 'SPL', 'CT: is of 4 axes'),
    (lambda: Image(np.zeros((6, 7, 8, 3)), rgb=True, name='CT'), 'SPL', 'CT: is a colour image'),
    (
      lambda: Image(np.arange(336.0).reshape(6, 7, 8) * 9, scale=(2, 1, 1), name='CT'),
      'SPL',
      'values 0..3015 are not HU (air -1000); subtract 1024',
    ),
  ],
)
def test_what_is_no_ct_is_refused_in_a_line(layer, world, reason):
  with pytest.raises(UserError) as caught:
    placement.place(layer(), world)
  assert reason in str(caught.value)


# ------------------------------------------------------------------------------- the window
def test_the_demo_scan_is_asked_three_times(window, draws, tmp_path):
  [image] = window.open_sample('napari-mome', 'head_neck')
  widget = dock(window)
  assert widget.images.currentData() is image and not widget.world.isEnabled()
  ask(widget, 'mandible, Parotid_L')
  first = widget.result
  height = round(first.world_to_data(window.dims.point)[0])
  assert first.data[height].any()  # the slice that was shown before has none
  prompts = ['mandible', 'Parotid_L']
  options = Options(preview=False)
  predict(widget.desk.model, [shipped.SCAN], tmp_path, prompts, options=options, progress=False)
  legend = json.loads((tmp_path / 'head_neck_seg.json').read_text())
  check_on_scan(first, tmp_path / 'head_neck_seg.nii.gz')
  rows = legend['labels']
  assert [row['name'] for row in rows] == ['mandible', 'left parotid']
  assert [row[:2] for row in texts(widget.table)] == [
    [row['name'], f'{row["volume_ml"]:.1f}'] for row in rows
  ]
  assert dict(zip(first.features['index'], first.features['class'], strict=True)) == {
    0: '',
    **{row['label']: row['name'] for row in rows},
  }
  np.testing.assert_allclose(
    first.colormap.color_dict[rows[0]['label']], (1, 0xA5 / 255, 0x1F / 255, 1), atol=1e-6
  )  # the mandible of COLOURS
  if draws:
    widget._go_to(0)
    shown = picture(window)
    first.visible = False
    change = (shown - picture(window)) @ (1, 0, -1)
    first.visible = True
    assert (change > 60).mean() > 0.001  # more red and less blue: the orange of the mandible

  # What the model was not trained on: the line of the command, and the last result stays.
  before = first.data.copy()
  ask(widget, 'liver')
  assert 'the model was not trained on this' in widget.notes.text()
  np.testing.assert_array_equal(first.data, before)
  widget.force.setChecked(True)
  sights = widget.desk.model.sights
  made = sights.made
  ask(widget, 'larynx, liver')
  assert widget.result is first and sights.made == made  # the backbone has not run again
  assert sights.reused > 0
  [larynx, liver] = texts(widget.table)
  assert larynx[0] == 'larynx' and liver[3].startswith('the model was not trained on it')
  assert 'cannot be trusted' in widget.notes.text()


def test_each_kind_of_file_that_is_read_is_offered(plugin):
  for ending in (*file_kinds.NIFTI_ENDINGS, *file_kinds.ITK_ENDINGS, '.zip'):
    offered = plugin.iter_compatible_readers([f'scan{ending}'])
    assert 'napari-mome' in {reader.plugin_name for reader in offered}, ending


@pytest.fixture
def boxes(viewer, tmp_path):
  """A viewer with a box of a scan, and the widget with a threshold in place of a model."""
  path = save_scan(tmp_path / 'scan.nii.gz', affine=np.array(TURNED))
  [image] = viewer.open(path, plugin='napari-mome')
  return image, dock(viewer, Threshold()), path


def test_the_world_that_was_chosen_for_a_layer_of_unknown_place_comes_back(boxes, viewer):
  read, widget, _ = boxes
  image = viewer.add_layer(ct(scale=(2, 1, 1)))
  widget.images.setCurrentText('CT')
  widget.world.setCurrentText('RAS')
  for layer, world in ((read, 'SPL'), (image, 'RAS'), (read, 'SPL'), (image, 'RAS')):
    widget.images.setCurrentIndex(widget.images.findData(layer))
    assert (widget.world.currentText(), widget.world.isEnabled()) == (world, layer is image)


def test_cancel_ends_at_the_next_window(viewer, tmp_path):
  path = save_scan(tmp_path / 'scan.nii.gz', (60, 60, 60), (3, 3, 3))
  started, told, windows = threading.Event(), threading.Event(), []

  def change(logits):
    windows.append(1)
    started.set()
    assert told.wait(60)
    return logits

  viewer.open(path, plugin='napari-mome')
  widget = dock(viewer, Threshold(change))
  widget.prompts.setText('liver')
  widget.segment()
  assert not widget.start.isEnabled()
  wait(started.is_set)
  assert widget.stop.isEnabled()
  widget.cancel()
  told.set()
  wait(widget.start.isEnabled)
  assert widget.result is None and not [x for x in viewer.layers if isinstance(x, Labels)]
  assert not widget.notes.text()
  stopped = len(windows)
  ask(widget, 'liver')
  assert widget.result.data.any() and len(windows) > 2 * stopped


def test_what_was_changed_by_hand_stays(boxes, viewer):
  _, widget, _ = boxes
  ask(widget, 'liver')
  first = widget.result
  first.data[:3] = 7
  painted = first.data.copy()
  ask(widget, 'liver')
  second = widget.result
  assert second is not first and (second.data[:3] != 7).all()
  np.testing.assert_array_equal(first.data, painted)
  widget.keep.setChecked(True)
  ask(widget, 'pineapple pizza')  # which is refused
  assert widget.result is second
  ask(widget, 'liver')
  assert widget.result not in (first, second) and len(viewer.layers) == 4


def test_two_phases_on_one_grid_have_a_layer_each(boxes, viewer, tmp_path):
  _, widget, _ = boxes
  ask(widget, 'liver')
  result, drawn = widget.result, widget.result.data.copy()
  other = save_scan(tmp_path / 'other.nii.gz', affine=np.array(TURNED), seed=1)
  [second] = viewer.open(other, plugin='napari-mome')
  widget.images.setCurrentIndex(widget.images.findData(second))
  ask(widget, 'liver')
  assert widget.result.name == 'other classes' and widget.result is not result
  np.testing.assert_array_equal(result.data, drawn)
  assert (widget.result.data != drawn).any()


def test_a_scan_that_changes_is_segmented_again(boxes):
  image, widget, _ = boxes
  ask(widget, 'liver')
  full = widget.result.data.copy()
  image.data[: len(image.data) // 2] = -1000  # in place
  ask(widget, 'liver')
  assert 0 < np.count_nonzero(widget.result.data) < np.count_nonzero(full)


def test_nothing_is_kept_of_a_scan_that_is_closed(boxes, viewer):
  image, widget, _ = boxes
  ask(widget, 'liver')
  assert image in widget.desk._open
  viewer.layers.remove(image)
  assert not widget.desk._open
  ask(widget, 'liver')
  assert 'there is no image layer' in widget.notes.text()


def test_labels_are_saved_on_the_grid_of_the_file_and_come_back(boxes, tmp_path):
  _, widget, path = boxes
  ask(widget, 'liver')
  out = tmp_path / 'out'
  predict(Threshold(), [path], out, ['liver'], options=Options(preview=False), progress=False)
  widget.save(tmp_path / 'mine_seg.nii.gz')
  ours, theirs = nib.load(tmp_path / 'mine_seg.nii.gz'), nib.load(out / 'scan_seg.nii.gz')
  np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
  assert ours.header.get_sform().tolist() == theirs.header.get_sform().tolist()
  row, expected = (
    json.loads(file.read_text())['labels'][0]
    for file in (tmp_path / 'mine_seg.json', out / 'scan_seg.json')
  )
  assert row == {name: value for name, value in expected.items() if name != 'mask'}
  [layer] = read_scans.read(str(tmp_path / 'mine_seg.nii.gz'))
  back = Layer.create(*layer)
  assert isinstance(back, Labels) and list(back.features['class']) == ['', 'liver']
  check_on_scan(back, out / 'scan_seg.nii.gz')
  widget.result.data[:3] = 7
  widget.save(tmp_path / 'mine_seg.nii.gz')
  assert not (tmp_path / 'mine_seg.json').exists() and 'changed by hand' in widget.notes.text()
  with pytest.raises(UserError, match='cannot be written'):
    widget.save(tmp_path / 'nowhere' / 'x.nii.gz')


def test_free_text_that_finds_nothing_is_told_with_what_it_may_be_like(boxes):
  _, widget, _ = boxes
  widget.force.setChecked(True)
  ask(widget, 'something dense, the hepatic organ')  # the threshold answers the first of a pass
  told = widget.notes.text()
  assert 'scan: nothing was found for "the hepatic organ"; it may be like "liver"' in told


def test_a_mask_that_was_removed_is_told_from_one_that_was_not_found(boxes):
  ask(boxes[1], 'liver')
  [found] = boxes[1].answer.segmented.rows
  none = found | {'volume_ml': 0.0, 'present': False, 'plausible': None, 'cut': None}
  assert class_table.remarks_on(none, ()) == 'no voxel'
  removed = none | {'removed_ml': 4.0, 'reasons': ['a speck']}
  assert class_table.remarks_on(removed, ()) == 'removed, not there: a speck'


def test_saving_takes_the_place_of_its_own_files_alone(boxes, tmp_path):
  _, widget, _ = boxes
  ask(widget, 'liver')
  for name, content, told in [
    ('ct.nii.gz', '{"Modality": "CT"}', 'is no legend of ct.nii.gz'),  # a BIDS sidecar
    ('ct.nii', '{"labels": []}', 'is no legend of ct.nii'),  # of ct.nii.gz, which lies there
  ]:
    (tmp_path / 'ct.nii.gz').write_bytes(b'a scan')
    (tmp_path / 'ct.json').write_text(content)
    with pytest.raises(UserError, match=told):
      widget.save(tmp_path / name)
    assert (tmp_path / 'ct.nii.gz').read_bytes() == b'a scan'
    assert (tmp_path / 'ct.json').read_text() == content
  widget.save(tmp_path / 'new')
  with pytest.raises(UserError, match='new_seg.nii.gz: lies there already'):
    widget.save(tmp_path / 'new')
  widget.save(tmp_path / 'new_seg.nii.gz')  # as its dialog has asked
  widget.result.data[:3] = 7
  with pytest.raises(UserError, match='is no legend of new_seg.nii'):
    widget.save(tmp_path / 'new_seg.nii')  # it would go with the legend of the other one
  names = {'ct.json', 'ct.nii.gz', 'new_seg.json', 'new_seg.nii.gz', 'scan.nii.gz'}
  assert {path.name for path in tmp_path.iterdir()} == names


def test_without_a_scan_a_line_says_so(viewer):
  widget = dock(viewer, Threshold())
  ask(widget, 'liver')
  assert 'there is no image layer' in widget.notes.text()


def test_a_folder_without_a_model_is_told(viewer, tmp_path, monkeypatch):
  widget = dock(viewer, Threshold())
  folders = [str(tmp_path), '']  # the second dialog is cancelled
  monkeypatch.setattr(QFileDialog, 'getExistingDirectory', lambda *told: folders.pop(0))
  for _ in range(2):
    widget.models.setCurrentText(OTHER)
    widget.models.activated.emit(widget.models.currentIndex())
    wait(widget.bar.isHidden)
    assert str(tmp_path) in widget.notes.text()
    assert not widget.start.isEnabled()
    assert widget.models.currentText() == str(tmp_path)
  assert not folders


def test_the_model_that_answers_is_the_one_that_is_shown(viewer, tmp_path):
  model = Threshold()
  widget = dock(viewer, model)
  assert widget.models.currentText() == 'in memory: threshold'
  widget.load_model(tmp_path)  # there is no model, and before that is known comes another one
  assert widget.models.currentText() == str(tmp_path)
  widget.models.setCurrentText('in memory: threshold')
  widget.models.activated.emit(widget.models.currentIndex())
  wait(widget.start.isEnabled)
  wait(widget.bar.isHidden)
  assert widget.desk.model is model and not widget.notes.text()
  names = [widget.models.itemText(number) for number in range(widget.models.count())]
  assert names == [SHIPPED, 'in memory: threshold', str(tmp_path), OTHER]


def test_prompts_are_completed(app):
  line = PromptLine()
  line.set_phrases(['left parotid', 'right parotid', 'mandible', 'left parotid gland'])
  line.setText('mandible, PAROT, larynx')
  line.setCursorPosition(len('mandible, PAR'))
  assert line.suggestions() == ['left parotid', 'right parotid', 'left parotid gland']
  line.complete('right parotid')
  assert line.text() == 'mandible, right parotid, larynx'
  line.setText('m')
  line.complete(line.suggestions()[-1])
  assert line.text() == 'mandible'
