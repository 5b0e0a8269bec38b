"""The page of a scan: what is in it, and what a browser without a network makes of it."""

import base64
import gzip
import hashlib
import json
import os
import pathlib
import re

import browser
import nibabel as nib
import numpy as np
import pytest

from input_pipeline.ct import volume
from mome_jax.inference.router_maps import RoutingMaps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.pictures.colours import colour_of
from mome_jax.predict import html_viewer, viewer_data

NAMES = ('liver', 'liver tumor', 'spleen', 'aorta', 'x</script><b>y')
NAME = 'a_name_without_any_space_in_it' * 4
SHAPE = (40, 32, 24)
SPACING = (5.0, 6.0, 8.0)
ASSETS = pathlib.Path(html_viewer.__file__).parents[1] / 'assets'


def make_case():
  """Liver with a tumor on the right, spleen on the left; free text names a box in front."""
  affine = np.array([[-5, 0, 0, 120], [0, -6, 0, 80], [0, 0, 8, -300], [0, 0, 0, 1.0]])
  hu = np.full(SHAPE, -1000, np.int16)
  hu[4:36, 4:28] = 40
  scan = volume.to_canonical(hu, affine)
  winner = np.zeros(SHAPE, np.uint8)
  over = np.zeros((*SHAPE, 8), bool)
  boxes = {0: np.s_[24:36, 8:24, 6:18], 1: np.s_[27:33, 12:20, 9:15], 2: np.s_[6:14, 8:16, 6:14],
           4: np.s_[16:22, 22:27, 2:22]}  # fmt: skip
  for k, box in boxes.items():
    winner[box] = k + 1
    over[(*box, k)] = True
  over[27:30, 12:20, 9:15, 0] = False  # half of the tumor is not liver
  return scan, Segmentation(NAMES, winner, np.packbits(over[..., :1], -1))


def make_routing():
  weights = np.zeros((5, 2, 20, 16, 12), np.uint8)
  weights[:, 0, :10], weights[:, 1, :10] = 255, 0
  weights[:, 0, 10:], weights[:, 1, 10:] = 51, 204
  return RoutingMaps(
    NAMES, ('5 mm', '10 mm'), weights, np.full((5, 20, 16, 12), 128, np.uint8),
    cell=np.array(SPACING) * 2, origin=(0.5 - (np.array(SHAPE) - 1) / 2) * SPACING,
    weight_sum=np.array([[6, 2], [1, 0], [0, 4], [0, 0], [2, 2]], float),
    entropy_sum=np.array([4, 1, 2, 0, 1], float), voxels=np.array([8, 1, 4, 0, 4], float),
  )  # fmt: skip


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  scan, segmentation = make_case()
  legend = [
    {'name': n, 'volume_ml': 10.0 * k, 'present': bool(segmentation.mask(n).any())}
    for k, n in enumerate(NAMES)
  ]
  path = tmp_path_factory.mktemp('viewer') / 'case_report.html'
  folder = f'/home/anna/scans of {"2026" * 20}'
  warnings = [f'{folder}/case.nii.gz: odd <i>header</i>', f'{NAME}_seg.dcm is not written']
  origin = {'step': 7, 'warnings': warnings, 'input': f'{folder}/case.nii.gz'}
  html_viewer.write(
    path, scan, segmentation, legend, title='case', origin=origin, routing=make_routing()
  )
  return path


@pytest.fixture(scope='module')
def data(page):
  text = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL).group(1)
  return json.loads(text)


def load(text):
  return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_the_library_is_the_recorded_one():
  code = gzip.decompress((ASSETS / 'niivue-0.69.0.umd.js.gz').read_bytes())
  assert hashlib.sha256(code).hexdigest() in (ASSETS / 'niivue-LICENSE.txt').read_text()


def test_no_local_path_is_in_the_page(page, data):
  assert data['warnings'] == ['case.nii.gz: odd <i>header</i>', f'{NAME}_seg.dcm is not written']
  assert '/home/anna' not in page.read_text()
  strip = html_viewer.without_folders
  for path, text, expected in (
    ('/a/b/ct', '/a/b/ct/I1: odd', 'ct/I1: odd'),
    ('/a/b/z.zip/DICOM', '/a/b/z.zip: odd', 'z.zip: odd'),
    ('b/x.nii', 'b/x.nii: 2 mm/voxel, "b/x.nii"', 'x.nii: 2 mm/voxel, "x.nii"'),
    ('b/x.nii', f'{os.getcwd()}/b/x.nii', 'x.nii'),
    ('../x.nii', '../x.nii: odd', 'x.nii: odd'),
    ('x.nii', 'x.nii: web/x.nii', 'x.nii: web/x.nii'),
  ):
    assert strip([text], path) == [expected]


def test_volumes_lie_where_the_scan_lies(data):
  scan, segmentation = make_case()
  image, labels = load(data['image']), load(data['labels'])
  np.testing.assert_allclose(image.affine, scan.geometry.canonical_affine)
  np.testing.assert_allclose(labels.affine, image.affine)
  np.testing.assert_allclose(image.get_fdata(), scan.array, atol=2)
  codes = np.asarray(labels.dataobj)
  for k, name in enumerate(NAMES):
    inside = np.isin(codes, [c for c, classes in enumerate(data['codes']) if k in classes])
    np.testing.assert_array_equal(inside, segmentation.mask(name))
  assert data['codes'][1:3] in ([[0], [1]], [[0], [1, 0]])
  centre = np.rint(np.linalg.inv(image.affine) @ [*data['classes'][2]['centre'], 1]).astype(int)
  assert segmentation.mask('spleen')[tuple(centre[:3])]


def test_routing_frames(data):
  frames = load(data['routing']['maps']['0'])
  assert frames.shape == (20, 16, 12, 4)  # two weights, trusted scale, entropy
  np.testing.assert_allclose(frames.affine[:3, :3], np.diag([10, 12, 16]))
  values = np.asarray(frames.dataobj)
  assert not values[0].any()  # air
  np.testing.assert_array_equal(values[5, 8, 6], [255, 1, 1, 128])
  np.testing.assert_allclose(values[15, 8, 6], [1 + 254 * 0.2, 204, 204, 128], atol=1)
  # The first cell holds the first two voxels of the scan along each axis.
  expected = load(data['image']).affine @ [0.5, 0.5, 0.5, 1]
  np.testing.assert_allclose(frames.affine[:3, 3], expected[:3])
  assert data['routing']['share'][0] == [0.75, 0.25]
  assert data['routing']['share'][3] == [None, None]
  assert sorted(data['routing']['maps']) == ['0', '1', '2', '4']


def test_large_scans_are_shown_coarser():
  scan = volume.Volume(np.zeros((600, 4, 4), np.int16), volume.to_canonical(
    np.zeros((600, 4, 4), np.int16), np.diag([1.0, 2, 3, 1])).geometry)  # fmt: skip
  step = np.maximum(scan.spacing, scan.spacing * scan.array.shape / 256)
  image = load(viewer_data.encoded(viewer_data.image(scan, step)))
  assert image.shape == (256, 4, 4)
  middle = lambda i: (i.affine @ [*((np.array(i.shape) - 1) / 2), 1])[:3]
  np.testing.assert_allclose(middle(image), [299.5, 3, 4.5], atol=1e-4)
  told = viewer_data._coarser(scan, step)
  assert told == 'Shown in voxels of 2.3 x 2 x 3 mm; those of the scan are 1 x 2 x 3 mm.'


# ---------------------------------------------------------------------------- in a browser
@pytest.fixture(scope='module')
def opened(page):
  if browser.find_chromium() is None:
    pytest.skip('no Chromium on this machine')
  with browser.chromium((1000, 640)) as chromium:
    chromium.open(page)
    yield chromium


def count(pixels, name):
  """Pixels of the stage that have the hue of a class; the legend's swatches are outside."""
  stage = pixels[:540, 390:].astype(float)
  ours = 0.5 * np.array(colour_of(name)) * 255 + 0.5 * 127.5  # half over mid grey
  return int((np.abs(stage - ours).max(-1) < 14).sum())


def click(page, name):
  page.run(f'document.querySelector(`input[aria-label="{name}"]`).click()')


def test_the_page_works_offline(opened):
  assert opened.run('document.body.dataset.ready') == 'true', opened.problems()
  assert [url.split('/')[-1] for url in opened.requests()] == ['case_report.html']
  assert not opened.problems()
  assert opened.run('document.querySelectorAll("b, i").length') == 0  # names stay text
  # Nothing can be sent, whatever the page contains.
  blocked = opened.run('fetch("http://127.0.0.1:9/").then(() => "sent", () => "blocked")')
  assert blocked == 'blocked'
  assert any('Content Security Policy' in json.dumps(p) for p in opened.problems())


def test_nothing_is_wider_than_the_side_bar(opened):
  assert opened.run('[...document.querySelectorAll("#warnings p")].length') == 2
  width = opened.run('document.querySelector("aside").clientWidth')
  assert opened.run('document.querySelector("aside").scrollWidth') == width
  edges = opened.run(
    '[...document.querySelectorAll("aside *")].map((e) => e.getBoundingClientRect().right)'
  )
  assert max(edges) <= width


READABLE = """(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const shown = (element) => {  // its background, over those of what it lies in
    const [r, g, b, a = 1] = numbers(getComputedStyle(element).backgroundColor);
    if (a === 1 || !element.parentElement) return [r, g, b];
    const below = shown(element.parentElement);
    return [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
  };
  const light = (colour) => colour.map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0.05);
  return [...document.querySelectorAll("aside *, #planes *, #where")].filter((element) =>
    element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3))
    .map((element) => {
      const ink = light(numbers(getComputedStyle(element).color)), ground = light(shown(element));
      return [Math.max(ink, ground) / Math.min(ink, ground), element.textContent];
    });
})()"""


def test_every_text_can_be_read(opened):
  """By the contrast that WCAG asks for (AA), of classes that are not there too."""
  contrasts = opened.run(READABLE)
  assert {'aorta', '100 %', 'Soft tissue'} <= {text for _, text in contrasts}
  assert not [(ratio, text) for ratio, text in contrasts if ratio < 4.5]


def test_a_keyboard_sees_where_it_is(opened):
  opened.press('Tab', 9)
  outline = lambda what: opened.run(
    f'({what}.focus(), getComputedStyle(document.activeElement).outlineStyle)'
  )
  name = 'document.querySelector("#classes td.name button")'
  for what in ('$("canvas")', name, '$("views").children[1]', '$("opacity")'):
    assert outline(what) != 'none', what
  opened.run('document.activeElement.blur()')


def test_sides_are_radiological_and_toggles_work(opened):
  opened.run('setView("Axial"); goTo(data.classes[1].centre)')
  before = opened.screenshot()
  liver, spleen = count(before, 'liver'), count(before, 'spleen')
  assert liver > 1000 and spleen > 500 and count(before, 'liver tumor') > 500
  columns = lambda name: np.nonzero(np.abs(
    before[:540, 390:].astype(float) - (127.5 * np.array(colour_of(name)) + 63.75)
  ).max(-1) < 14)[1].mean()  # fmt: skip
  assert columns('liver') < columns('spleen')  # the patient's right is on the left
  click(opened, 'spleen')
  without = opened.screenshot()
  assert count(without, 'spleen') < spleen / 50
  assert count(without, 'liver') == pytest.approx(liver, rel=0.02)
  click(opened, 'spleen')
  # The half of the tumor that is liver too becomes liver where the tumor is switched off.
  tumor = count(before, 'liver tumor')
  click(opened, 'liver tumor')
  after = opened.screenshot()
  assert count(after, 'liver tumor') < tumor / 50
  assert count(after, 'liver') > liver * 1.02
  click(opened, 'liver tumor')


def test_windows_opacity_and_scrolling(opened):
  opened.run('setView("Axial"); goTo(data.classes[0].centre)')
  soft = opened.screenshot()
  opened.run('[...document.querySelectorAll("#windows button")][1].click()')
  assert opened.run('[nv.volumes[0].cal_min, nv.volumes[0].cal_max]') == [-1350, 150]
  assert np.abs(opened.screenshot().astype(int) - soft).max(-1)[:540, 390:].mean() > 5
  opened.run('[...document.querySelectorAll("#windows button")][0].click()')
  opened.run('$("opacity").value = 0; $("opacity").oninput()')
  assert count(opened.screenshot(), 'liver') < 50
  opened.run('$("opacity").value = 0.5; $("opacity").oninput()')
  slice_before = opened.run('Number($("slice2").value)')
  opened.wheel(690, 270, 120)
  opened.screenshot()
  assert opened.run('Number($("slice2").value)') != slice_before


def test_routing_map_is_drawn(opened):
  opened.run('setView("Axial"); goTo(data.classes[0].centre)')
  before = opened.screenshot()
  opened.run('$("routed").value = "0", showMap()')
  with_map = opened.screenshot()
  assert np.abs(with_map.astype(int) - before).max(-1)[:540, 390:].mean() > 5
  assert opened.run('$("high").textContent') == '10 mm'
  assert '75 %' in opened.run('document.querySelector("#routing tbody").textContent')
  opened.run('$("routed").value = "", showMap()')
  assert np.abs(opened.screenshot().astype(int) - before).mean() < 0.5


@pytest.mark.parametrize(
  ('row', 'expected'),
  [
    ({'prompt': 'Liver', 'taken_as': 'class', 'verdict': 'known'}, ''),
    ({'prompt': 'hepar', 'taken_as': 'synonym', 'verdict': 'known'}, 'asked for as hepar'),
    ({'prompt': 'liver', 'taken_as': 'class', 'verdict': 'unfamiliar'}, 'unknown to the model'),
    (
      {'prompt': 'hepar', 'also': ['LIVER'], 'taken_as': 'synonym', 'verdict': 'unfamiliar'},
      'asked for as hepar, unknown to the model',
    ),
    ({'prompt': 'fat', 'taken_as': 'free', 'verdict': 'known'}, 'free text'),
    ({'prompt': 'fat', 'taken_as': 'free', 'verdict': 'near'},
     'free text, near to what the model knows'),
  ],
)  # fmt: skip
def test_the_page_says_what_was_asked_and_whether_the_model_knows_it(row, expected):
  assert viewer_data._asked({'name': 'liver', **row}) == expected
