import gzip
import os
import pathlib
import re

import nibabel as nib
import numpy as np
import pytest

from input_pipeline.ct import dicom_series, volume
from input_pipeline.errors import UserError
from input_pipeline.files import inventory
from input_pipeline.sources import files, nifti_folder
from tests.input_pipeline.sources import layouts

NIFTI = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)).to_bytes()
DICOM = layouts.slice_bytes(np.zeros((4, 4), np.int16), z=0, number=1)
BARE = DICOM[132:]  # without preamble, 'DICM'


def names(files):
  return [file.name for file in files]


def reasons(files):
  return {file.name: file.reason for file in files}


def problems(files):
  return {file.name: file.problem for file in files}


def everything(held):
  return sorted(names(held.used) + names(held.failed) + names(held.left_out))


def test_every_file_is_used_left_out_or_failed(tmp_path):
  content = {
    'a.nii.gz': gzip.compress(NIFTI),
    'b.NII': NIFTI,
    'c.Nii.Gz': gzip.compress(NIFTI),
    'no_ending': NIFTI,
    'compressed.gz': gzip.compress(NIFTI),
    'notes.gz': gzip.compress(b'notes'),
    'scan.nrrd': b'NRRD0004',
    'scan.mgz': b'x',
    'empty.nii.gz': b'',
    'empty.dcm': b'',
    'empty.log': b'',
    'notes.txt': b'notes',
    'noise.bin': bytes(range(256)) * 5,
    'preview.png': b'\x89PNG',
    '.DS_Store': b'\0\0',
    '._a.nii.gz': b'\0\0',
    '__MACOSX/x.nii.gz': b'\0',
    '.git/config': b'x',
    'deep/er/d.nii.gz': gzip.compress(NIFTI),
    'study/IM1': DICOM,
    'study/IM2': BARE,
    'study/IM3': b'',
    'study/IM4': bytes(range(256)) * 5,
    'study/1.2.3.44': b'',
    'study/README': b'of the study',
    'study/LOCKFILE': b'',
    'study/1.2.840.77': DICOM,
    'study/1.2.841.5': bytes(range(256)),
    'study/DICOMDIR': DICOM,
    'study/s.DCM': DICOM,
    'pair.hdr': NIFTI[:348],
    'pair.img': bytes(99),
    'lone.img': bytes(99),
    'slices.zip': b'PK\x05\x06',
  }
  layouts.write_files(tmp_path, content)
  held = inventory.look(tmp_path, ('nifti', 'itk', 'dicom', 'zip'))
  listed = set(content) - {'__MACOSX/x.nii.gz', '.git/config'} | {'__MACOSX', '.git'}
  assert everything(held) == sorted(listed)
  assert {file.name: file.kind for file in held.used} == {
    'a.nii.gz': 'nifti', 'b.NII': 'nifti', 'c.Nii.Gz': 'nifti', 'no_ending': 'nifti',
    'compressed.gz': 'nifti', 'deep/er/d.nii.gz': 'nifti', 'pair.hdr': 'nifti',
    'study/IM1': 'dicom', 'study/IM2': 'dicom', 'study/s.DCM': 'dicom', 'slices.zip': 'zip',
    'study/1.2.840.77': 'dicom', 'scan.nrrd': 'itk',
  }  # fmt: skip
  assert set(problems(held.failed)) == {
    'scan.mgz', 'empty.nii.gz', 'empty.dcm', 'study/IM3', 'study/IM4', 'study/1.2.3.44',
    'study/1.2.841.5',
    'lone.img',
  }  # fmt: skip
  for name, problem in problems(held.failed).items():
    assert problem.startswith(f'{tmp_path / name}: ')
  assert reasons(held.left_out) == {
    'notes.gz': 'gzip without a scan', 'empty.log': 'empty', 'notes.txt': 'text',
    'noise.bin': 'unknown format', 'preview.png': 'picture', '.DS_Store': 'hidden',
    '._a.nii.gz': 'hidden', '__MACOSX': 'hidden', '.git': 'hidden', 'study/README': 'text',
    'study/LOCKFILE': 'empty',
    'study/DICOMDIR': 'DICOM directory', 'pair.img': 'voxels of a .hdr file',
  }  # fmt: skip
  assert 'hidden (2 folders, 2 files)' in held.notes()
  assert 'picture (1 file)' in held.notes()


IMPLICIT = b''.join(  # group 8 without types: ImageType, SOPClassUID
  element.to_bytes(2, 'little').join((b'\x08\0', len(text).to_bytes(4, 'little'))) + text
  for element, text in ((8, b'ORIGINAL'), (0x16, b'1.2.840.10008.5.1.4.1.1.2\0'))
)


@pytest.mark.parametrize('ending', ['.img', '.IMG', '.hdr', '.mha', '.jpg', '.TIF'])
@pytest.mark.parametrize('packed', [False, True])
def test_dicom_that_is_named_like_another_image(ending, packed, tmp_path):
  slices = {f'IM{n}{ending}': data for n, data in enumerate((DICOM, BARE, IMPLICIT))}
  damaged = {f'IM3{ending}': b'', f'IM4{ending}': bytes(range(256)) * 5}
  folder = tmp_path / ('a.zip' if packed else 'a')
  write = layouts.write_zip if packed else layouts.write_files
  write(folder, slices | damaged | {f'preview{ending}': b'x' * 99})
  held = inventory.look(folder, ('dicom',))
  assert names(held.used) == sorted(slices)
  assert set(problems(held.failed)) == set(damaged)
  assert problems(held.failed)[f'IM4{ending}'] == (
    f'{folder}/IM4{ending}: cannot be read as DICOM; copy it again'
  )
  assert names(held.left_out) == [f'preview{ending}']


@pytest.mark.parametrize('voxels', [np.full(400, 8, np.int32), np.array([8, *[0] * 400], np.int16)])
def test_voxels_that_begin_like_dicom(voxels, tmp_path):
  layouts.write_files(tmp_path, {'a.hdr': NIFTI[:348], 'a.img': voxels.tobytes()})
  held = inventory.look(tmp_path, ('nifti', 'dicom'))
  assert {file.name: file.kind for file in held.used} == {'a.hdr': 'nifti'}
  assert reasons(held.left_out) == {'a.img': 'voxels of a .hdr file'}


def test_a_picture_that_cannot_be_unpacked_is_left_out(tmp_path):
  path, picture = tmp_path / 'a.zip', b'\x89PNG' + bytes(range(200))
  layouts.write_zip(path, {'IM1': DICOM, 'a.png': picture})
  path.write_bytes(path.read_bytes().replace(picture, picture[::-1]))
  held = inventory.look(path, ('dicom',))
  assert (names(held.used), held.failed) == (['IM1'], ())
  assert reasons(held.left_out) == {'a.png': 'picture'}


def test_one_level_and_other_kinds_are_left_out_with_their_reason(tmp_path):
  layouts.write_files(tmp_path, {'a.nii': NIFTI, 'b.dcm': DICOM, 'c.dcm': b'', 'in/d.nii': NIFTI})
  held = inventory.look(tmp_path, ('nifti',), deep=False)
  assert names(held.used) == ['a.nii']
  assert not held.failed
  assert reasons(held.left_out) == {'b.dcm': 'DICOM', 'c.dcm': 'DICOM'}
  assert held.folders == (tmp_path / 'in',)
  skipped = inventory.look(tmp_path, ('nifti',), skip=lambda path: 'mine' * (path.name == 'in'))
  assert names(skipped.used) == ['a.nii']
  assert reasons(skipped.left_out)['in'] == 'mine'


def test_links_are_followed_once_and_broken_ones_fail(tmp_path):
  real, folder = tmp_path / 'real', tmp_path / 'folder'
  layouts.write_files(real, {'x/a.nii': NIFTI, 'b.nii': NIFTI})
  folder.mkdir()
  for name, target in {
    'scan.nii': '../real/b.nii', 'study': '../real', 'again': '../real/x', 'up': '..',
    'gone.nii.gz': '../annex/gone', 'gone': 'nowhere', 'gone.txt': 'nowhere', 'self': 'self',
  }.items():  # fmt: skip
    os.symlink(target, folder / name)
  os.symlink('../folder', real / 'back')
  held = inventory.look(folder, ('nifti',))
  assert names(held.used) == ['again/a.nii', 'scan.nii', 'study/b.nii']
  assert set(names(held.failed)) == {'gone.nii.gz', 'gone', 'self'}
  assert problems(held.failed)['gone.nii.gz'] == (
    f'{folder}/gone.nii.gz: a link to ../annex/gone, which is not there; get that file'
  )
  seen = 'link to a folder that is looked at'
  assert reasons(held.left_out) == {
    'gone.txt': 'cannot be opened', 'study/back': seen, 'study/x': seen, 'up': seen,
  }  # fmt: skip


def test_what_cannot_be_opened_fails(tmp_path, monkeypatch):
  layouts.write_files(tmp_path, {'a.nii': NIFTI, 'notes.txt': b'x', 'in/b.nii': NIFTI})
  os.mkfifo(tmp_path / 'pipe.nii')  # opening it would wait for ever

  def refuse(*_, **__):
    raise PermissionError(13, 'Permission denied')

  scandir = os.scandir
  monkeypatch.setattr(pathlib.Path, 'open', refuse)
  monkeypatch.setattr(os, 'scandir', lambda p: refuse() if p == tmp_path / 'in' else scandir(p))
  held = inventory.look(tmp_path, ('nifti',))
  assert not held.used
  assert set(names(held.failed)) == {'a.nii', 'in', 'pipe.nii'}
  for name in ('a.nii', 'in'):
    assert 'cannot be opened (Permission denied)' in problems(held.failed)[name]
  assert reasons(held.left_out) == {'notes.txt': 'cannot be opened'}


def test_a_folder_that_cannot_be_listed_is_a_mistake_with_its_fix(tmp_path, monkeypatch):
  layouts.write_files(tmp_path, {'imagesTr/a.nii': NIFTI, 'dataset.json': b'{"labels": {}}'})

  def refuse(path):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(os, 'scandir', refuse)
  folder = tmp_path / 'imagesTr'
  message = f'{folder}: cannot be opened (Permission denied); change its permissions or copy'
  for call, kind in (
    (lambda: inventory.look(folder, ('nifti',)), inventory.FolderError),
    (lambda: dicom_series.find_series(folder), volume.VolumeError),
    (lambda: nifti_folder.nifti_folder_cases(str(tmp_path)), UserError),
  ):
    with pytest.raises(kind, match=re.escape(message)):
      call()
  monkeypatch.setattr(os, 'listdir', refuse)
  with pytest.raises(UserError, match='cannot be listed .Permission denied.; change its perm'):
    files.entries(folder)
  gone = tmp_path / 'gone.zip'
  gone.symlink_to('nowhere')
  with pytest.raises(inventory.FolderError, match='a link to nowhere, which is not there'):
    inventory.look(gone, ('dicom',))


@pytest.mark.parametrize(
  ('stems', 'cases'),
  [
    (['x_0000', 'y_0000'], ['x', 'y']),
    (['x_0000', 'x_0001'], ['x_0000', 'x_0001']),
    (['case_0201'], ['case_0201']),
    (['case_0201', 'case_0000'], ['case_0201', 'case_0000']),
    (['x', 'x_0000'], ['x', 'x_0000']),
    (['_0000', '0000'], ['_0000', '0000']),
    (['ct_001_0000', 'ct_0010_0000'], ['ct_001', 'ct_0010']),
  ],
)
def test_the_channel_of_nnunet(stems, cases):
  assert inventory.case_names(stems) == dict(zip(stems, cases, strict=True))


def test_second_channels():
  assert inventory.further_channels(['x_0000', 'x_0001', 'y_0000', 'z_0201']) == ['x_0001']
  assert not inventory.further_channels([f'case_{n:04d}' for n in range(12)])
  assert not inventory.further_channels(['case_0001', 'case_0002'])
