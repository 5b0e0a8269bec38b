// The page of `mome serve`: opens scans, asks for masks, and has the viewer (viewer.js) show them; archive.js makes one file
// of a folder, prompt_line.js is where one types. All it knows comes from api/.
'use strict';
const KINDS = {
  'seg.nii.gz': 'labels (NIfTI)', 'masks.zip': 'a mask a class', 'seg.json': 'JSON', 'seg.dcm': 'DICOM SEG', 'rtstruct.dcm': 'RTSTRUCT',
  'preview.png': 'picture', 'report.html': 'report page',
};
const PAUSE = 200; // ms between two looks at a job
const query = new URLSearchParams(location.search);
const beside = query.has('set'); // this page is the second pane of another
const [scanBefore, setBefore] = location.hash.slice(1).split('/').map(Number); // that were shown when it was reloaded
let model = null;
let scan = null; // as of api/scans
let set = null; // the one that is shown
let watched = null; // a mark of the one watch that goes on
let wait = Promise.resolve(); // what is drawn is drawn in order
const asking = new Set(); // what the server has not answered yet

async function reach(address, options) {
  try {
    const answer = await fetch(address, options);
    $('gone').hidden = true;
    return answer;
  } catch { // a server that is gone, or a file that cannot be read any more
    const answers = await fetch('api/model').then(() => true, () => false);
    $('gone').hidden = answers;
    throw new Error(answers ? 'what was to be sent cannot be read, or the connection broke; try again' : 'the server does not answer');
  }
}

async function call(path, options = {}) {
  const answer = await reach(`api/${path}`, options);
  if (answer.status === 204) return null;
  const told = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(told.error), { canForce: told.can_force });
  return told;
}

const post = (path, body) => call(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body ?? {}) });
const remove = (path) => call(path, { method: 'DELETE' });
const here = () => `scans/${scan.scan}`;
const isHere = (place) => scan !== null && here() === place; // a late answer may be of a scan that was left
const inOrder = (work) => { wait = wait.then(work, work); return wait; };

function complain(text, ...more) {
  $('error').replaceChildren(text ?? '', ...more);
  $('error').hidden = !text;
  if (text && !scan) $('open').append($('error'));
  else $('prompt').closest('section').insertBefore($('error'), $('work'));
}

const trying = (work) => async (...given) => {
  complain(null);
  try {
    await work(...given);
  } catch (error) {
    complain(error.message || String(error));
  }
};

// ---------------------------------------------------------------------------- scans
async function send(files, name) {
  const single = files.filter((file) => /^[^.].*\.(nii|nii\.gz|zip|nrrd|mha|tar)$/i.test(file.name));
  let rest = files.filter((file) => !single.includes(file));
  if (single.length) { // sent alone, what lies beside them (the .json of dcm2niix) would be a fault
    const scans = await Promise.all(rest.map((file) => !file.name.startsWith('.') && isScan(file).catch(() => true)));
    rest = rest.filter((file, n) => scans[n]);
  }
  const sent = [...single.map((file) => [file.name, file]), ...(rest.length === 1 ? [[rest[0].name, rest[0]]] : []),
    ...(rest.length > 1 ? [[`${name ?? 'series'}.tar`, archive(rest)]] : [])];
  if (!sent.length) throw new Error('nothing in it; drop NIfTI, a DICOM .zip, or the files of a DICOM series');
  const problems = []; // what is wrong with one does not cost the others
  for (const [title, content] of sent) {
    busy(`reading ${title}`);
    try {
      problems.push(...await opened(await call(`scans?name=${encodeURIComponent(title)}`, { method: 'POST', body: content })));
    } catch (error) {
      problems.push(error.message);
    } finally {
      busy(null);
    }
  }
  complain(problems.join('; '));
}

// Shows the first scan of an answer; what was wrong with others.
async function opened(told) {
  await listScans();
  await choose(told.scans[0].scan);
  return told.problems;
}

function busy(text) {
  document.body.style.cursor = text ? 'progress' : '';
  $('hint').textContent = text ? `${text} …` : scan ? '' : 'Drop a scan here.';
}

async function listScans() {
  const { scans } = await call('scans');
  $('scans').replaceChildren(...scans.map((one) => {
    const size = `${one.shape.join(' × ')} voxels of ${one.spacing_mm.map((mm) => Number(mm.toFixed(2))).join(' × ')} mm`;
    const pick = make('button', { onclick: trying(() => choose(one.scan)), ariaPressed: String(one.scan === scan?.scan) }, one.title, make('small', {}, size));
    const close = make('button', { title: 'close', ariaLabel: `close ${one.title}`, onclick: trying(() => closeScan(one.scan)) }, '×');
    return make('div', { className: 'item' }, pick, close);
  }));
  return scans;
}

async function closeScan(number) {
  await remove(`scans/${number}`);
  if (scan?.scan === number) {
    unwatch();
    closeBeside();
    scan = set = null;
    await showMasks(null);
    for (const volume of [...nv.volumes]) nv.removeVolume(volume);
    $('title').textContent = $('about').textContent = '';
    showWarnings([]);
    refresh();
  }
  const left = await listScans();
  if (!scan && left.length) await choose(left[0].scan);
}

async function choose(number) {
  const next = await call(`scans/${number}`);
  if (scan?.scan !== number) closeBeside();
  unwatch();
  scan = next;
  set = null;
  const place = here();
  await inOrder(async () => {
    if (!isHere(place)) return;
    const view = await call(`${place}/view`);
    if (isHere(place)) await showScan({ ...view, image: { url: `api/${place}/image.nii.gz` } });
  });
  await listScans();
  if (!isHere(place)) return;
  const last = scan.sets[scan.sets.length - 1];
  if (last) await showSet(last.set);
  refresh();
  if (!beside) $('prompt').focus();
}

// ---------------------------------------------------------------------------- prompts
async function ask(prompts, force = false) {
  const before = $('add').checked && set ? set.prompts.filter((text) => !prompts.includes(text)) : [];
  const all = [...before, ...prompts];
  const text = $('prompt').value, place = here(), question = JSON.stringify([place, all, force]);
  if (asking.has(question)) return; // Enter was pressed twice
  asking.add(question);
  try {
    // What was forced before is asked for again, which forces none of the rest.
    const told = await post(`${place}/prompts`, { prompts: all, force: force || (set?.force ? before : false) });
    if ($('prompt').value === text) { // what was typed meanwhile stays
      $('prompt').value = $('meaning').textContent = '';
      offer([]);
    }
    if (!isHere(place)) return;
    await reload();
    if (isHere(place)) await showSet(told.set);
  } catch (error) {
    if (isHere(place)) complain(error.message, ...(error.canForce ? [make('button', { id: 'force', onclick: trying(() => { complain(null); return ask(prompts, true); }) }, 'ask all the same')] : []));
  } finally {
    asking.delete(question);
  }
}

async function reload() {
  const place = here();
  const told = await call(place);
  if (!isHere(place)) return;
  scan = told;
  refresh();
}

async function showSet(number) {
  unwatch();
  const place = here();
  const told = await call(`${place}/sets/${number}`);
  if (!isHere(place)) return;
  set = told;
  refresh();
  if (told.labels.length) await drawSet();
  else if (!nv.volumes[1]) await inOrder(() => showMasks(null));
  if (told.done) return;
  const job = await call(`jobs/${told.job}`).catch(() => null); // long forgotten
  if (job && set === told) watch(told.job);
}

async function drawSet() {
  const { set: number } = set, place = here();
  await inOrder(async () => {
    if (!isHere(place) || set?.set !== number) return;
    const first = !data.classes.length;
    const told = await call(`${place}/sets/${number}/view`);
    if (!isHere(place)) return;
    await showMasks(told);
    showWarnings(told.warnings);
    if (first) goToLargest();
    $('heard').textContent = data.classes.map(inWords).join(', ');
    document.body.dataset.shown = data.classes.map((row) => row.name).join(', ');
  });
  refresh();
  if (beside) showNames();
}

function unwatch() {
  watched = null;
  $('work').hidden = true;
  $('job-stage').textContent = '';
}

// Asks again and again: a stream would hold one of the six connections that a browser has to a server, for all its pages.
async function watch(number) {
  const own = watched = {};
  let shown = 0;
  $('work').hidden = false;
  $('done').style.width = 0;
  $('cancel').onclick = trying(() => remove(`jobs/${number}`));
  while (own === watched) {
    let job;
    try {
      job = await call(`jobs/${number}`);
    } catch {
      if (own !== watched) return;
      unwatch();
      call('model').then(() => set && showSet(set.set)).catch(() => {});
      return;
    }
    if (own !== watched) return;
    const percent = job.windows ? (100 * job.windows_done) / job.windows : 0;
    $('done').style.width = `${percent}%`;
    $('track').ariaValueNow = String(Math.round(percent));
    $('job-stage').textContent = job.state === 'waiting' ? `waiting for ${job.before} before it`
      : `${job.stage}${job.windows ? `: ${job.windows_done} of ${job.windows} windows` : ''}`;
    const over = ['done', 'failed', 'cancelled'].includes(job.state);
    if (over) unwatch();
    if (job.ready.length > shown || over) {
      shown = job.ready.length;
      await trying(() => finished(job, over))();
    }
    if (job.state === 'failed') complain(job.message);
    await new Promise((done) => { setTimeout(done, PAUSE); });
  }
}

async function finished(job, over) {
  const place = here();
  const isShown = () => isHere(place) && set?.set === job.set; // another one may be by now
  if (over) await reload();
  if (!isShown()) return;
  const told = await call(`${place}/sets/${job.set}`);
  if (!isShown()) return;
  set = told;
  refresh();
  if (set.labels.length) await drawSet();
  else if (over) await undo();
}

async function undo() {
  const { set: number } = set, place = here();
  await remove(`${place}/sets/${number}`);
  const told = await call(place);
  if (!isHere(place)) return;
  unwatch();
  scan = told;
  const last = scan.sets[scan.sets.length - 1];
  set = null;
  if (last) await showSet(last.set);
  else {
    await inOrder(() => showMasks(null));
    showWarnings(scan.warnings);
  }
  refresh();
}

async function explain() {
  const job = await post(`${here()}/sets/${set.set}/routing`);
  watch(job.job);
}

// ---------------------------------------------------------------------------- what there is to do
const told = (one) => `${one.set}: ${one.names.join(', ')}`;

function refresh() {
  $('ask').hidden = !scan;
  document.body.classList.toggle('ask-first', !scan);
  $('hint').textContent = scan ? '' : 'Drop a scan here.';
  if (!set) $('heard').textContent = '';
  if (!beside) history.replaceState(null, '', location.pathname + (scan ? `#${scan.scan}/${set?.set ?? ''}` : ''));
  const sets = scan?.sets ?? [];
  $('sets').replaceChildren(...(sets.length > 1 ? sets : []).map((one) => make('div', { className: 'item' }, make('button', {
    ariaPressed: String(one.set === set?.set), onclick: trying(() => showSet(one.set)) }, told(one)))));
  $('history').hidden = !set;
  const old = $('beside').value;
  $('beside').replaceChildren(make('option', { value: '' }, 'one pane'),
    ...sets.filter((one) => one.done).map((one) => make('option', { value: one.set }, `beside ${told(one)}`)));
  $('beside').value = sets.some((one) => String(one.set) === old) ? old : '';
  if ($('beside').value !== old) showBeside();
  $('downloads').hidden = !set?.done;
  if (set?.done) {
    const kinds = Object.entries(KINDS).filter(([kind]) => scan.series_uid || !kind.endsWith('.dcm'));
    $('kinds').replaceChildren(...kinds.map(([kind, text]) => make('a', {
      href: `api/${here()}/sets/${set.set}/files/${kind}`, download: '', onclick: trying(download) }, text)));
  }
  $('explain').hidden = !set?.done || Boolean(data.routing);
}

// By hand, so that what is wrong is told on the page and not saved as a file.
async function download(event) {
  event.preventDefault();
  const link = event.currentTarget;
  document.body.style.cursor = 'progress';
  try {
    const answer = await reach(link.href);
    if (!answer.ok) throw new Error((await answer.json()).error);
    const name = decodeURIComponent(/filename\*=UTF-8''(.+)$/.exec(answer.headers.get('content-disposition'))[1]);
    const url = URL.createObjectURL(await answer.blob());
    make('a', { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    document.body.dataset.saved = name;
  } finally {
    document.body.style.cursor = '';
  }
}

// The second pane is this page again, in a frame, that follows the first one.
let follower = null;
const drawScene = nv.drawScene.bind(nv);
nv.drawScene = (...given) => {
  const result = drawScene(...given);
  if (follower?.volumes.length && nv.volumes.length) follow();
  return result;
};

function follow() {
  nv.doSync2d(follower);
  nv.doSync3d(follower);
  nv.doSyncCalMin(follower);
  nv.doSyncCalMax(follower);
  if (follower.opts.sliceType !== nv.opts.sliceType) follower.setSliceType(nv.opts.sliceType);
  else follower.drawScene();
  follower.createOnLocationChange();
}

function showBeside() {
  $('second')?.remove();
  follower = null;
  const number = $('beside').value;
  if (!number) return;
  const frame = make('iframe', { id: 'second', src: `?scan=${scan.scan}&set=${number}`, title: 'second pane' });
  frame.onload = () => frame.contentWindow.started.then(() => {
    if (frame !== $('second')) return;
    follower = frame.contentWindow.nv;
    nv.drawScene();
  });
  document.body.append(frame);
}

function closeBeside() {
  $('beside').value = '';
  showBeside();
}

const inWords = (row) => (row.present ? `${row.name} ${millilitres(row)} ml${row.plausible === false ? ', not plausible' : ''}` : `${row.name}: ${row.removed_ml ? 'removed, not there' : 'not found'}`);

function showNames() {
  $('names').replaceChildren(...data.classes.map((row) => {
    const swatch = make('i', { className: 'swatch' });
    swatch.style.background = `rgb(${row.colour})`;
    return make('span', {}, swatch, inWords(row));
  }));
}

// ---------------------------------------------------------------------------- start
function listen() {
  $('choose').onclick = () => $('files').click();
  $('choose-folder').onclick = () => $('folder').click();
  const taken = (id) => { // a browser tells nothing of what is chosen twice in a row, unless it is emptied
    const files = [...$(id).files];
    $(id).value = '';
    return files;
  };
  $('files').onchange = trying(() => send(taken('files')));
  $('folder').onchange = trying(() => {
    const files = taken('folder');
    return send(files, files[0]?.webkitRelativePath.split('/')[0]);
  });
  $('inputs').onchange = trying(async () => {
    const name = $('inputs').value;
    if (!name) return;
    $('inputs').value = '';
    busy(`reading ${name}`);
    try {
      complain((await opened(await post('scans', { input: name }))).join('; '));
    } finally {
      busy(null);
    }
  });
  const first = beside ? window.parent : window; // what is dropped on the second pane, or undone there, is the first one's
  // Before the canvas has them: the viewer's library keeps what is dragged over it to itself.
  const early = (kind, work) => document.addEventListener(kind, (event) => {
    event.preventDefault();
    event.stopPropagation();
    work(event);
  }, true);
  early('dragover', () => first.document.body.classList.add('over'));
  early('dragleave', () => first.document.body.classList.remove('over'));
  early('drop', (event) => first.dropped(event));
  $('prompt').oninput = () => { complete(); judgeSoon(); };
  $('prompt').onkeydown = keys;
  $('prompt').onblur = () => offer([]);
  $('send').onclick = trying(() => typed().length && ask(typed()));
  const usual = model.classes.filter((one) => !one.experimental);
  $('send-all').onclick = trying(() => ask((usual.length ? usual : model.classes).map((one) => one.name)));
  $('undo').onclick = trying(undo);
  $('beside').onchange = showBeside;
  $('explain').onclick = trying(explain);
  document.onkeydown = (event) => first.pressed(event);
}

window.dropped = trying(async (event) => {
  document.body.classList.remove('over');
  // All is taken before anything is waited for: the list is empty afterwards.
  const dropped = [...event.dataTransfer.items].filter((item) => item.kind === 'file')
    .map((item) => [item.getAsFile(), item.webkitGetAsEntry()]);
  const files = [];
  for (const [file, entry] of dropped) files.push(...(entry?.isDirectory ? await filesOf(entry) : [file]));
  const folders = dropped.filter(([, entry]) => entry?.isDirectory);
  await send(files, folders.length === 1 ? folders[0][1].name : undefined);
});

window.pressed = (event) => {
  const edits = event.target.matches('#prompt, [type=number]'); // these undo what is typed
  if (event.key === 'z' && (event.ctrlKey || event.metaKey) && set && !edits) {
    event.preventDefault();
    trying(undo)();
  }
};

async function begin() {
  await attached;
  model = await call('model');
  phrases = model.classes.flatMap(({ name, synonyms }) => [[name, name], ...synonyms.map((text) => [text.toLowerCase(), name])]);
  $('inputs').hidden = !model.inputs.length;
  $('inputs').append(make('option', { value: '' }, 'choose a scan of the folder'), ...model.inputs.map((name) => make('option', { value: name }, name)));
  listen();
  const scans = await listScans();
  if (beside) {
    document.body.classList.add('beside');
    await choose(Number(query.get('scan')));
    await showSet(Number(query.get('set')));
  } else if (scans.length) {
    const { scan: number, sets } = scans.find((one) => one.scan === scanBefore) ?? scans[scans.length - 1];
    await choose(number);
    if (number === scanBefore && set?.set !== setBefore && sets.some((one) => one.set === setBefore)) await showSet(setBefore);
  }
  refresh();
  document.body.dataset.ready = 'true';
}

$('stage').append(make('p', { id: 'hint', role: 'status' }), make('div', { id: 'names' }));
const started = begin().catch(failed);
window.started = started;
window.nv = nv;
