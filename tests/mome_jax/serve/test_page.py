"""The page of the server in a real browser: from dropping a scan to a server that stops."""

import re
import shutil
import threading

import browser
import desks
import nibabel as nib
import numpy as np
import pytest
from desks import TOKEN
from threshold import Threshold, patch, save_scan

from mome_jax.pictures.colours import colour_of

SIZE = (1200, 760)
SIDE = 390  # where the side bar ends


class Gate:
  """Lets the network pass unless it is shut."""

  def __init__(self):
    self.open = threading.Event()
    self.open.set()

  def __call__(self, logits):
    assert self.open.wait(120)
    return logits


@pytest.fixture(scope='module')
def gate():
  return Gate()


@pytest.fixture(scope='module')
def scan(tmp_path_factory):
  """A box of soft tissue in air."""
  array = np.full((40, 48, 40), -1000, np.int16)
  array[10:30, 12:36, 10:30] = 60
  path = tmp_path_factory.mktemp('scans') / 'patient.nii.gz'
  nib.save(nib.Nifti1Image(array, np.diag([5, 5, 5, 1])), path)
  return path


@pytest.fixture(scope='module')
def server(tmp_path_factory, gate):
  if browser.find_chromium() is None:
    pytest.skip('no Chromium on this machine')
  folder = tmp_path_factory.mktemp('temporary')
  with desks.desk(Threshold(gate), folder) as desk, desks.serving(desk) as (address, stop):
    yield address, stop
    gate.open.set()


@pytest.fixture(scope='module')
def page(server):
  with browser.chromium(SIZE) as page:
    page.open(server[0])
    yield page


def count(page, name):
  """Pixels of the stage that have the hue of a class."""
  hue = np.array(colour_of(name)) * 255
  stage = page.screenshot()[:600, SIDE:].astype(float)
  part = stage - stage.min(-1, keepdims=True)  # without the grey below it
  part /= np.maximum(part.max(-1, keepdims=True), 1)
  pure = (hue - hue.min()) / np.ptp(hue)
  saturated = np.ptp(stage, axis=-1) > 40
  return int((saturated & (np.abs(part - pure).max(-1) < 0.25)).sum())


def drop_another(page, scan, folder):
  """Drops a copy of a scan; the numbers of the scan that was shown and of this one, `other`."""
  first, path = page.run('scan.scan'), folder / 'other.nii.gz'
  shutil.copy(scan, path)
  page.drop(700, 300, path)
  page.until('scan.title === "other" && $("title").textContent === "other"')
  return first, page.run('scan.scan')


def ask(page, text):
  page.run('$("prompt").focus()')
  page.type(text)
  page.press('Enter', 13)


def until_stuck(page, prompts):
  """Waits until windows of prompts have come to the gate."""
  page.until(f'/^{prompts}: .* windows$/.test($("job-stage").textContent)')


def shown(page):
  return page.run('data.classes.map((row) => row.name).join(", ")')


def test_a_scan_is_seen_when_it_is_dropped(page, scan):
  assert page.run('$("ask").hidden')
  page.drop(700, 300, scan)
  page.until('nv.volumes.length === 1 && !$("ask").hidden')
  page.until('!$("hint").textContent')
  assert page.run('$("title").textContent') == 'patient'
  assert '40 × 48 × 40' in page.run('$("scans").textContent')
  assert np.ptp(page.screenshot()[:600, SIDE:], axis=(0, 1)).min() > 100  # not all of one grey
  assert not page.problems()


def test_words_are_completed_and_judged(page):
  page.run('$("prompt").focus()')
  page.type('live')
  assert page.run('$("offers").firstChild.textContent') == 'liver'
  page.press('ArrowDown', 40)
  page.press('Enter', 13)
  assert page.run('$("prompt").value') == 'liver'
  page.until('$("meaning").textContent === "liver: known"')
  page.type(', pineapple pizza')
  page.until('$("meaning").textContent.includes("unknown to the model")')
  page.press('Enter', 13)
  page.until('!!$("force")')
  assert 'the model was not trained on this' in page.run('$("error").textContent')
  page.run('$("prompt").value = ""; complain(null)')


def test_a_screen_reader_is_told_which_word_is_marked(page):
  def told():
    """Whether the list is open, and the word that is marked, as assistive technology sees it."""
    line = page.send('DOM.querySelector', nodeId=root, selector='#prompt')['nodeId']
    [line, *_] = page.send('Accessibility.getPartialAXTree', nodeId=line)['nodes']
    held = {one['name']: one['value'] for one in line['properties']}
    active = held.get('activedescendant', {}).get('relatedNodes', [])
    words = [page.run(f'$("{one["idref"]}").firstChild.textContent') for one in active]
    assert words == page.run(
      '[...document.querySelectorAll("#offers [aria-selected=true]")].map('
      '(one) => one.firstChild.textContent)'
    )
    return held['expanded']['value'], words

  page.send('Accessibility.enable')
  root = page.send('DOM.getDocument')['root']['nodeId']
  page.run('$("prompt").focus()')
  page.type('l')
  assert told() == (True, [])
  page.press('ArrowDown', 40)
  assert told() == (True, ['liver'])
  page.press('ArrowDown', 40)
  last = told()[1]
  assert last and last != ['liver']
  page.type('i')  # a new list
  assert told() == (True, [])
  page.press('Escape', 27)
  assert told() == (False, [])
  page.run('$("prompt").value = $("meaning").textContent = ""')
  page.send('Accessibility.disable')


def test_masks_appear_with_their_volumes(page):
  ask(page, 'liver')
  page.until('document.body.dataset.shown === "liver"')
  assert page.run('$("work").hidden')
  millilitres = float(page.run('$("classes").tBodies[0].rows[0].cells[2].textContent'))
  assert millilitres == pytest.approx(page.run('set.labels[0].volume_ml'), abs=0.05)
  assert millilitres > 100
  assert count(page, 'liver') > 3000


def test_a_screen_reader_is_told_of_finished_masks(page):
  page.send('Accessibility.enable')
  root = page.send('DOM.getDocument')['root']['nodeId']
  part = page.send('DOM.querySelector', nodeId=root, selector='#heard')['nodeId']
  [part, *_] = page.send('Accessibility.getPartialAXTree', nodeId=part)['nodes']
  page.send('Accessibility.disable')
  held = {one['name']: one['value']['value'] for one in part['properties']}
  assert not part['ignored'] and held['live'] == 'polite'
  millilitres = page.run('set.labels[0].volume_ml.toFixed(1)')
  assert page.run('$("heard").textContent') == f'liver {millilitres} ml'
  assert page.run('inWords({...data.classes[0], plausible: false})').endswith(', not plausible')
  removed = page.run('inWords({...data.classes[0], present: false, removed_ml: 4})')
  assert removed == 'liver: removed, not there'
  sizes = '[0.0004, 0.04, 0.097, 0.14, 12.34].map((volume_ml) => millilitres({ volume_ml }))'
  assert page.run(f'{sizes}.join()') == '0.0004,0.04,0.1,0.1,12.3'


def test_enter_of_an_input_method_asks_for_nothing(page):
  page.run('window.asked = []; window.before = ask; ask = async (prompts) => asked.push(prompts)')
  page.run('$("prompt").value = "肝"')
  for composing in ('true', 'false'):
    options = f'{{key: "Enter", bubbles: true, isComposing: {composing}}}'
    page.run(f'$("prompt").dispatchEvent(new KeyboardEvent("keydown", {options})) && 0')
  assert page.run('asked') == [['肝']]
  page.run('ask = before; $("prompt").value = ""')


def test_enter_pressed_twice_asks_once(page):
  sets = page.run('scan.sets.length')
  page.run('Promise.all([ask(["spleen"]), ask(["spleen"])])')
  page.until('document.body.dataset.shown === "liver, spleen"')
  assert page.run('call(here()).then((told) => told.sets.length)') == sets + 1
  page.run('undo()')
  page.until('document.body.dataset.shown === "liver"')


def test_what_is_shown_can_be_changed(page):
  full = count(page, 'liver')
  page.run('document.querySelector(`input[aria-label="liver"]`).click()')
  assert count(page, 'liver') < full / 50
  page.run('document.querySelector(`input[aria-label="liver"]`).click()')
  page.run('$("contours").click()')
  assert 0 < count(page, 'liver') < full * 0.7
  page.run('$("contours").click()')
  page.run('$("opacity").value = 0; $("opacity").oninput()')
  assert count(page, 'liver') < full / 50
  page.run('$("opacity").value = 0.5; $("opacity").oninput()')
  page.run('setView("3D")')
  assert count(page, 'liver') > 1000  # the skin does not hide it
  page.run('setView("Planes")')
  assert count(page, 'liver') == pytest.approx(full, rel=0.02)


def test_further_prompts_are_added_compared_and_undone(page):
  ask(page, 'spleen')
  page.until('document.body.dataset.shown === "liver, spleen"')
  assert page.run('$("classes").tBodies[0].rows[1].cells[2].textContent') == '–'
  page.run('$("beside").value = $("beside").options[1].value; $("beside").onchange()')
  page.until('$("second")?.contentDocument?.body?.dataset.ready')
  page.until('$("second").contentDocument.body.dataset.shown === "liver"')
  page.run('goTo([0, 0, 0])')
  assert page.until(
    '[...$("second").contentWindow.nv.scene.crosshairPos].every('
    '(v, i) => Math.abs(v - nv.scene.crosshairPos[i]) < 1e-3)'
  )
  page.run('$("level").focus()')
  undo = 'dispatchEvent(new KeyboardEvent("keydown", {key: "z", ctrlKey: true, bubbles: true}))'
  page.run(f'$("level").{undo}')  # of the number
  assert shown(page) == 'liver, spleen'
  page.run(f'$("second").contentDocument.body.{undo}')  # of the page, not of its second pane
  page.until('document.body.dataset.shown === "liver" && scan.sets.length === 1')
  assert page.run('$("second").contentDocument.body.dataset.shown') == 'liver'
  page.run('$("beside").value = ""; $("beside").onchange()')


def test_what_is_dropped_on_the_second_pane_is_opened_by_the_page(page, scan, tmp_path):
  page.run('$("beside").value = $("beside").options[1].value; $("beside").onchange()')
  page.until('$("second")?.contentDocument?.body?.dataset.shown === "liver"')
  shutil.copy(scan, tmp_path / 'third.nii.gz')
  page.drop(1000, 300, tmp_path / 'third.nii.gz')
  page.until('$("title").textContent === "third" && !$("second")')
  page.run('closeScan(scan.scan)')
  page.until('$("title").textContent === "patient" && document.body.dataset.shown === "liver"')


def test_files_are_saved(page, scan, tmp_path):
  page.send('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
  assert page.run('[...$("kinds").children].map((a) => a.textContent)') == [
    'labels (NIfTI)', 'a mask a class', 'JSON', 'picture', 'report page']  # fmt: skip
  page.run('$("kinds").children[0].click()')
  page.until('document.body.dataset.saved === "patient_seg.nii.gz"')
  path = tmp_path / 'patient_seg.nii.gz'
  page.until(f'{str(path.exists()).lower()} || true')
  for _ in range(100):
    if path.exists():
      break
    page.run('new Promise((done) => setTimeout(done, 50))')
  labels = np.asarray(nib.load(path).dataobj)
  assert labels.shape == (40, 48, 40) and labels.any()


def test_a_page_that_is_reloaded_shows_what_it_showed(page, server, scan, tmp_path):
  first, newer = drop_another(page, scan, tmp_path)
  page.run(f'choose({first})')
  page.run('ask(["spleen"])')
  page.until('document.body.dataset.shown === "liver, spleen"')
  page.run('showSet(scan.sets[0].set)')
  page.until('document.body.dataset.shown === "liver"')
  place = page.run('location.hash')
  page.send('Page.navigate', url='about:blank')
  page.open(server[0] + place)
  assert page.run('[$("title").textContent, scan.sets.length]') == ['patient', 2]
  page.until('document.body.dataset.shown === "liver" && set.set === scan.sets[0].set')
  page.run(f'remove(`${{here()}}/sets/${{scan.sets[1].set}}`).then(() => closeScan({newer}))')
  page.run('reload()')


def test_a_bad_file_is_explained_and_costs_nothing(page, tmp_path):
  path = save_scan(tmp_path / 'bad.nii')
  patch(path, 80, np.float32(0).tobytes())
  patch(path, 252, np.int16([0, 0]).tobytes())
  page.drop(700, 300, path)
  page.until('!$("error").hidden')
  told = page.run('$("error").textContent')
  assert told.startswith('bad: ') and 'assume-spacing' in told
  assert page.run('$("title").textContent') == 'patient' and shown(page) == 'liver'


def test_a_bad_file_does_not_cost_those_that_are_dropped_with_it(page, scan, tmp_path):
  before = page.run('call("scans").then(({ scans }) => scans.length)')
  bad = tmp_path / 'bad.nii'
  bad.write_bytes(b'no scan')
  good = tmp_path / 'second.nii.gz'
  shutil.copy(scan, good)
  page.drop(700, 300, bad, good)
  page.until('$("title").textContent === "second" && !$("error").hidden')
  assert page.run('$("error").textContent').startswith('bad: ')
  assert page.run('call("scans").then(({ scans }) => scans.length)') == before + 1
  page.run('closeScan(scan.scan)')
  page.until('$("title").textContent === "patient"')


def test_the_same_file_can_be_chosen_again(page):
  for name in ('files', 'folder'):
    page.run(f"""(() => {{
      const list = new DataTransfer();
      list.items.add(new File(['no scan'], 'a.nii'));
      $('{name}').files = list.files;
      return $('{name}').onchange();
    }})()""")
    assert page.run(f'$("{name}").files.length') == 0
    assert 'a: ' in page.run('$("error").textContent')
  page.run('$("inputs").append(make("option", { value: "gone" }, "gone"))')
  page.run('($("inputs").value = "gone", $("inputs").onchange())')
  assert page.run('$("inputs").value') == ''
  assert 'is not in the folder of --input' in page.run('$("error").textContent')
  page.run('$("inputs").lastChild.remove(); complain(null)')


def test_two_tabs_share_scans_and_the_line(page, server, gate):
  other = page.another(SIZE)
  other.open(server[0])
  other.until('document.body.dataset.shown === "liver"')
  gate.open.clear()
  page.run('$("add").checked = false')
  ask(page, 'a, b')  # not names of the model: forced, they need the network
  page.until('!!$("force")')
  page.run('$("force").click()')
  until_stuck(page, 'a, b')
  other.run('$("add").checked = false')
  ask(other, 'c')
  other.until('!!$("force")')
  other.run('$("force").click()')
  other.until('$("job-stage").textContent === "waiting for 1 before it"')
  gate.open.set()
  page.until('document.body.dataset.shown === "a, b"')
  other.until('document.body.dataset.shown === "c"')
  other.close()


def test_what_was_forced_before_forces_nothing_else(page):
  page.run('$("add").checked = true')
  ask(page, 'f')  # beside a and b
  page.until('!!$("force")')
  assert '"f"' in page.run('$("error").textContent') and shown(page) == 'a, b'
  page.run('complain(null); $("prompt").value = ""; $("add").checked = false')


def test_what_is_typed_meanwhile_stays(page):
  page.run('(() => { const asked = ask(["spleen"]); $("prompt").value = "li"; return asked; })()')
  page.until('document.body.dataset.shown === "spleen"')
  assert page.run('$("prompt").value') == 'li'
  page.run('$("prompt").value = ""')


def test_a_late_answer_for_a_scan_that_was_left_is_dropped(page, scan, tmp_path):
  first, other = drop_another(page, scan, tmp_path)
  page.run(f'choose({first})')
  page.run(f'Promise.all([ask(["spleen", "liver"]), choose({other})])')
  assert page.run('scan.title') == page.run('$("title").textContent') == 'other'
  assert page.run('set') is None and page.run('data.classes.length') == 0
  assert page.run('$("error").hidden')
  page.run(f'choose({first})')
  page.until('document.body.dataset.shown === "spleen, liver"')
  page.run(f'closeScan({other})')


def test_work_can_be_cancelled(page, gate):
  gate.open.clear()
  ask(page, 'd')
  page.until('!!$("force")')
  page.run('$("force").click()')
  until_stuck(page, 'd')
  assert page.run('[$("track").role, $("track").ariaValueNow]') == ['progressbar', '0']
  # As many pages: a browser has six connections to a server, whatever the number of its pages.
  soon = 'Promise.race([call("model"), new Promise((done) => setTimeout(done, 10000, null))])'
  assert page.run(f'[...Array(8)].map(() => watch(set.job)) && {soon}')
  page.run('$("cancel").onclick()')  # waits for the server, before the gate lets it finish
  gate.open.set()
  page.until('$("work").hidden && document.body.dataset.shown !== "d" && set && set.done')
  assert 'd' not in page.run('$("sets").textContent').split(': ')


def test_a_server_that_stops_is_told(page, server, gate):
  address, stop = server
  assert TOKEN in address
  before = shown(page)
  gate.open.clear()
  ask(page, 'e')
  page.until('!!$("force")')
  page.run('$("force").click()')
  until_stuck(page, 'e')
  stop()
  page.until('!$("gone").hidden')
  assert 'server has stopped' in page.run('$("gone").textContent')
  assert shown(page) == before  # what was made stays
  gate.open.set()
  page.run('($("prompt").value = "liver", $("meaning").textContent = "g: known", judgeSoon())')
  page.until('!$("meaning").textContent')
  assert not [event for event in page.events if event['method'] == 'Runtime.exceptionThrown']
  page.run('$("kinds").children[0].click()')
  page.until('$("error").textContent === "the server does not answer"')


def test_no_two_parts_of_the_page_have_one_name(tmp_path):
  with desks.desk(Threshold(), tmp_path) as desk, desks.client(desk) as client:
    names = re.findall(r'\bid="([^"]+)"', client.get('').text)
  assert len(names) == len(set(names)) > 20
