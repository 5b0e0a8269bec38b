// Files that are dropped on the page of `mome serve`: which may be scans, and many as one that can be sent.
'use strict';
// Names of what the server takes, or says how to convert.
const SCANS = /\.(dcm|dicom|ima|hdr|img|mhd|nhdr|z?raw|mgz|mgh|mnc|nii\.\w+)$/i;
const BLOCK = 512; // bytes, of a tar archive
const LONGEST = 100; // bytes of a path in its header

// The files in a dropped folder, each with its path.
async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => { entry.file(done, failed); });
    return [Object.assign(file, { droppedAs: entry.fullPath.slice(1) })];
  }
  const reader = entry.createReader();
  const files = [];
  for (;;) { // a few at a time
    const some = await new Promise((done, failed) => { reader.readEntries(done, failed); });
    if (!some.length) return files;
    for (const one of some) files.push(...await filesOf(one));
  }
}

const pathOf = (file) => file.droppedAs || file.webkitRelativePath || file.name;

// Whether a file beside scans may be one, too: by its name, or DICOM by its first bytes.
async function isScan(file) {
  if (SCANS.test(file.name)) return true;
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 132).arrayBuffer()));
  return head.slice(128) === 'DICM' || /^([\x02\x08]\0|\0[\x02\x08])/.test(head); // the latter without preamble
}

const filled = (size) => new Uint8Array((BLOCK - (size % BLOCK)) % BLOCK);

function tarHeader(path, size, kind) {
  const header = new Uint8Array(BLOCK);
  const put = (text, at) => header.set(new TextEncoder().encode(text), at);
  header.set(path.slice(0, LONGEST));
  put('0000644', 100);
  put('0000000', 108);
  put('0000000', 116);
  put(size.toString(8).padStart(11, '0'), 124);
  put('00000000000', 136);
  put('        ', 148);
  put(kind, 156);
  put('ustar', 257);
  put('00', 263);
  put(`${header.reduce((a, b) => a + b, 0).toString(8).padStart(6, '0')}\0 `, 148);
  return header;
}

// A tar archive of some files under their paths; their content is not copied.
function archive(files) {
  const text = new TextEncoder();
  const parts = [];
  for (const file of files) {
    const path = text.encode(pathOf(file));
    if (path.length > LONGEST) { // as GNU tar does: a file before it holds its path
      parts.push(tarHeader(text.encode('././@LongLink'), path.length, 'L'), path, filled(path.length));
    }
    parts.push(tarHeader(path, file.size, '0'), file, filled(file.size));
  }
  return new Blob([...parts, new Uint8Array(2 * BLOCK)]);
}
