// The viewer of a scan and its masks; NiiVue draws. Its hosts are the page that --report writes, which holds what it shows, and the
// page of `mome serve`, which calls showScan and showMasks. Volumes: 0 the scan, 1 the labels, 2 a routing map if one is chosen.
'use strict';
const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const WINDOWS = { 'Soft tissue': [40, 400], Lung: [-600, 1500], Bone: [300, 1500] };
const VIEWS = { Planes: 3, Axial: 0, Coronal: 1, Sagittal: 2, '3D': 4 };
const AXES = ['Sagittal', 'Coronal', 'Axial'];
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const NOTHING = { classes: [], codes: [[]], gaps: [], labels: null, routing: null };
let data = { ...NOTHING };
let gaps = new Set(); // between the stripes of what is not plausible
let visible = [];
const hidden = new Set(); // names that were switched off, also while other masks are shown
let labels = null;
let map = null;
let contours = false;

const nv = new niivue.Niivue({
  isRadiologicalConvention: true, sagittalNoseLeft: true, showAllOrientationMarkers: true, crosshairWidth: 0.6,
  crosshairColor: [0.35, 0.65, 1, 0.8], fontColor: [1, 1, 1, 1], fontSizeScaling: 0.3, multiplanarShowRender: 1, multiplanarPadPixels: 6,
  dragAndDropEnabled: false, logLevel: 'error', loadingText: '', backColor: [0.043, 0.051, 0.063, 1], show3Dcrosshair: false, isOrientCube: true,
  multiplanarLayout: 2,
});
const attached = nv.attachToCanvas($('canvas'));

// From base64, or {url}.
const load = (source, options) => (source.url
  ? niivue.NVImage.loadFromUrl({ url: source.url, name: 'volume.nii.gz', ...options })
  : niivue.NVImage.loadFromBase64({ base64: source, name: 'volume.nii.gz', ...options }));

// A voxel may lie in several classes (an organ and its tumor): the innermost one that is switched on is shown. Over a routing map
// only its class is, in white: two colour scales on top of each other could not be read.
function paint() {
  if (!labels) return;
  const routed = map ? Number($('routed').value) : null;
  const table = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  const classes = data.codes.map((inside) => inside.find((k) => (routed === null ? visible[k] : k === routed)));
  drawFaces(classes);
  data.codes.forEach((inside, code) => {
    const shown = classes[code];
    const colour = shown === undefined ? [0, 0, 0] : routed === null ? data.classes[shown].colour : [255, 255, 255];
    ['R', 'G', 'B'].forEach((channel, i) => table[channel].push(colour[i]));
    const gap = gaps.has(code) && routed === null && shown !== undefined && data.classes[shown].plausible === false;
    table.A.push(shown === undefined || gap ? 0 : routed === null ? 255 : 110);
    table.I.push(code);
    table.labels.push('');
  });
  labels.setColormapLabel(table);
  nv.updateGLVolume();
}

// Of each class all voxels, or those alone that touch another one; `classes` says which one is shown for each code.
function drawFaces(classes) {
  const { img } = labels;
  if (!contours && !labels.whole) return;
  labels.whole ??= img.slice();
  const { whole } = labels;
  img.set(whole);
  if (!contours) return;
  const [, width, height, depth] = labels.hdr.dims;
  const shown = Int16Array.from(classes, (k) => k ?? -1);
  const steps = [1, width, width * height];
  for (let z = 0, i = 0; z < depth; z++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const here = shown[whole[i]];
        if (here < 0 || x === 0 || y === 0 || z === 0 || x === width - 1 || y === height - 1 || z === depth - 1) continue;
        if (steps.every((step) => shown[whole[i - step]] === here && shown[whole[i + step]] === here)) img[i] = 0;
      }
    }
  }
}

function setWindow(level, width) {
  const scan = nv.volumes[0];
  scan.cal_min = level - width / 2;
  scan.cal_max = level + width / 2;
  nv.updateGLVolume();
  showWindow();
}

function showWindow() {
  const { cal_min: low, cal_max: high } = nv.volumes[0];
  const level = Math.round((low + high) / 2), width = Math.round(high - low);
  $('level').value = level;
  $('width').value = width;
  for (const button of $('windows').children) {
    const [l, w] = WINDOWS[button.textContent];
    button.ariaPressed = String(l === level && w === width);
  }
}

function setView(name) {
  nv.setSliceType(VIEWS[name]);
  showSkin();
  for (const button of $('views').children) button.ariaPressed = String(button.textContent === name);
}

// Alone in 3D, the organs are not veiled by the rest.
function showSkin() {
  nv.setOpacity(0, nv.opts.sliceType === VIEWS['3D'] && labels ? 0 : 1);
}

function setContours(on) {
  contours = on;
  $('contours').ariaPressed = String(on);
  paint();
}

function goTo(mm) {
  nv.scene.crosshairPos = nv.mm2frac(mm);
  nv.createOnLocationChange();
  nv.drawScene();
}

const millilitres = ({ volume_ml: volume }) => (volume < 0.1 ? Number(volume.toPrecision(1)).toString() : volume.toFixed(1)); // 0.0 would say that there is nothing

function toggle(k, on) {
  visible[k] = on;
  hidden[on ? 'delete' : 'add'](data.classes[k].name);
}

function showClasses() {
  const body = $('classes').tBodies[0];
  body.replaceChildren();
  data.classes.forEach((row, k) => {
    const box = make('input', { type: 'checkbox', checked: visible[k], disabled: !row.present, ariaLabel: row.name });
    box.onchange = () => { toggle(k, box.checked); paint(); };
    const swatch = make('span', { className: 'swatch' });
    swatch.style.background = `rgb(${row.colour})`;
    const name = make('button', { onclick: () => row.centre && goTo(row.centre) }, swatch, row.name);
    const told = [row.asked, row.cut ? 'cut by the end of the field of view' : ''].filter(Boolean);
    const notes = told.map((text) => make('small', {}, text));
    if (row.plausible === false) {
      notes.push(make('small', { className: 'doubt', title: row.doubts.join('; ') }, `not plausible: ${row.doubts[0]}`));
      swatch.classList.add('striped');
    } else if (row.removed_ml) {
      notes.push(make('small', { className: 'doubt', title: row.doubts.join('; ') }, `removed: ${row.doubts.slice(0, 2).join('; ')}`));
    }
    body.append(make('tr', { className: row.present ? '' : 'absent' }, make('td', {}, box), make('td', { className: 'name' }, name, ...notes),
      make('td', {}, row.present ? millilitres(row) : '–'),
      make('td', {}, row.unsure === null ? '–' : `${Math.round(100 * row.unsure)} %`)));
  });
  const all = (value) => {
    body.querySelectorAll('input:enabled').forEach((box) => { box.checked = value; });
    data.classes.forEach((row, k) => { if (row.present) toggle(k, value); });
    paint();
  };
  $('all').onclick = () => all(true);
  $('none').onclick = () => all(false);
}

function showPlanes() {
  $('planes').replaceChildren();
  AXES.forEach((name, axis) => {
    const count = nv.volumes[0].dimsRAS[axis + 1];
    const slider = make('input', { type: 'range', min: 0, max: count - 1, step: 1, id: `slice${axis}` });
    slider.oninput = () => {
      nv.scene.crosshairPos[axis] = (Number(slider.value) + 0.5) / count;
      nv.createOnLocationChange();
      nv.drawScene();
    };
    $('planes').prepend(make('label', {}, make('span', { id: `number${axis}` }), slider));
  });
}

function showLocation(location) {
  if (!location.values[0] || !$('slice0')) return;
  AXES.forEach((name, axis) => {
    const count = nv.volumes[0].dimsRAS[axis + 1];
    const index = Math.min(count - 1, Math.max(0, Math.floor(nv.scene.crosshairPos[axis] * count)));
    $(`slice${axis}`).value = index;
    $(`number${axis}`).textContent = `${name} ${index + 1} / ${count}`;
  });
  const inside = data.codes[Math.round(location.values[1]?.value ?? 0)] ?? [];
  const [x, y, z] = location.mm;
  const side = (value, plus, minus) => `${Math.abs(value).toFixed(0)} mm ${value >= 0 ? plus : minus}`;
  $('where').textContent = [
    `${side(x, 'right', 'left')}, ${side(y, 'anterior', 'posterior')}, ${side(z, 'superior', 'inferior')}`,
    `${Math.round(location.values[0].value)} HU`, inside.map((k) => data.classes[k].name).join(' in '),
  ].filter(Boolean).join('   ·   ');
}

let turns = 0; // of maps

function dropMap() {
  if (map) nv.removeVolume(map);
  map = null;
  return ++turns;
}

async function showMap() {
  const k = $('routed').value, frame = Number($('quantity').value), turn = dropMap();
  $('legend').hidden = k === '';
  if (k === '') return paint();
  const { scales, maps } = data.routing;
  const next = await load(maps[k], { colormap: 'routing', opacity: 0.55, cal_min: 0, cal_max: 255, frame4D: frame });
  if (turn !== turns) return; // something else was chosen meanwhile
  map = next;
  nv.addVolume(map);
  paint();
  const isScale = frame === scales.length;
  $('low').textContent = isScale ? scales[0] : '0 %';
  $('high').textContent = isScale ? scales[scales.length - 1] : '100 %';
}

function showRouting() {
  $('routing').hidden = !data.routing;
  if (!data.routing) return;
  const { scales, share, entropy, maps } = data.routing;
  const [head, body] = [$('routing').querySelector('thead'), $('routing').querySelector('tbody')];
  for (const part of [$('routed'), $('quantity'), head, body]) part.replaceChildren();
  $('legend').hidden = true;
  $('bar').style.background = `linear-gradient(90deg, ${VIRIDIS.map((c) => `rgb(${c})`).join(', ')})`;
  const steps = VIRIDIS.map((_, i) => (i === 0 ? 1 : Math.round((255 * i) / (VIRIDIS.length - 1))));
  const channel = (i) => [VIRIDIS[0][i], ...VIRIDIS.map((c) => c[i])];
  nv.addColormap('routing', { R: channel(0), G: channel(1), B: channel(2), A: [0, ...steps.map(() => 255)], I: [0, ...steps] });
  $('routed').append(make('option', { value: '' }, 'no map'));
  for (const k of Object.keys(maps)) $('routed').append(make('option', { value: k }, data.classes[k].name));
  const quantities = [['trusted scale', scales.length], ['router entropy', scales.length + 1], ...scales.map((s, i) => [`weight of ${s}`, i])];
  for (const [name, frame] of quantities) $('quantity').append(make('option', { value: frame }, name));
  $('routed').onchange = $('quantity').onchange = showMap;
  head.append(make('tr', {}, ...['', ...scales, 'entropy'].map((text) => make('th', {}, text))));
  data.classes.forEach((row, k) => {
    if (!(k in maps) || share[k][0] === null) return;
    const cells = [...share[k], entropy[k]].map((value, i) => {
      const cell = make('td', {}, `${Math.round(100 * value)} %`);
      cell.style.background = i < scales.length ? `rgba(88, 166, 255, ${0.5 * value})` : `rgba(255, 166, 87, ${0.4 * value})`;
      return cell;
    });
    const name = make('button', { onclick: () => { $('routed').value = k; showMap(); if (row.centre) goTo(row.centre); } }, row.name);
    body.append(make('tr', {}, make('td', { className: 'name' }, name), ...cells));
  });
}

// The scan alone; the controls of an earlier one keep their place.
async function showScan(scan) {
  await attached;
  for (const volume of [...nv.volumes]) nv.removeVolume(volume);
  labels = map = null;
  turns += 1;
  data = { ...NOTHING, ...scan };
  document.title = `${data.title} – MoME-JAX`;
  $('title').textContent = data.title;
  $('about').textContent = data.about ?? '';
  if (data.coarser) $('about').append(...(data.about ? [make('br')] : []), data.coarser);
  showWarnings(data.warnings);
  nv.addVolume(await load(data.image, { colormap: 'gray', cal_min: -160, cal_max: 240 }));
  showPlanes();
  showMaskControls();
  setView(data.thin ? 'Axial' : 'Planes'); // a few slices are strips from the side
  showWindow();
  nv.createOnLocationChange();
}

function showWarnings(texts) {
  $('warnings').replaceChildren(...texts.map((text) => make('p', {}, `Note: ${text}`)));
}

function showMaskControls() {
  gaps = new Set(data.gaps);
  visible = data.classes.map((row) => row.present && !hidden.has(row.name));
  showClasses();
  showRouting();
}

// Masks of the scan that is shown, in place of those before; null for none.
async function showMasks(masks) {
  const next = masks && await load(masks.labels, { opacity: Number($('opacity').value) });
  dropMap();
  if (labels) nv.removeVolume(labels);
  labels = next;
  Object.assign(data, NOTHING, masks);
  showMaskControls();
  if (labels) nv.addVolume(labels);
  paint();
  showSkin();
  nv.createOnLocationChange();
}

function goToLargest() {
  const largest = data.classes.filter((row) => row.centre).sort((a, b) => b.volume_ml - a.volume_ml)[0];
  if (largest) goTo(largest.centre);
}

for (const [name, [level, width]] of Object.entries(WINDOWS)) {
  $('windows').append(make('button', { onclick: () => setWindow(level, width) }, name));
}
for (const name of Object.keys(VIEWS)) $('views').append(make('button', { onclick: () => setView(name) }, name));
$('level').onchange = $('width').onchange = () => setWindow(Number($('level').value), Math.max(1, Number($('width').value)));
$('opacity').oninput = () => labels && nv.setOpacity(1, Number($('opacity').value));
$('contours').onclick = () => setContours(!contours);
nv.onLocationChange = showLocation;
nv.onIntensityChange = showWindow;

function failed(error) {
  const needs = make('canvas').getContext('webgl2') ? '' : ' It needs a browser with WebGL 2.';
  $('stage').append(make('p', { id: 'failed' }, `The viewer could not start (${error.message}).${needs}`));
  document.body.dataset.ready = 'failed';
}

async function showEmbedded(page) {
  await showScan(page);
  await showMasks(page);
  goToLargest();
  document.body.dataset.ready = 'true';
}

if ($('data')) showEmbedded(JSON.parse($('data').textContent)).catch(failed);
