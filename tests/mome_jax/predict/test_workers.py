"""Scans in worker threads: what is told of them."""

from mome_jax.predict import workers


def test_the_path_of_a_scan_is_said_once():
  notes = ['a/b.nii: odd spacing', 'a/b.nii: DOES NOT LOOK LIKE CT', 'preview: no space']
  told = 'a/b.nii: odd spacing; DOES NOT LOOK LIKE CT; preview: no space'
  assert workers.joined(notes, 'a/b.nii') == told
  assert workers.joined(notes[2:], 'a/b.nii') == notes[2] and workers.joined([], 'a') == ''
