"""Fabricated downloads: the folder layouts of the datasets, filled with a small box of a body."""

import contextlib
import io
import zipfile

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom import dataset, uid
from scipy import ndimage

SHAPE = (24, 16, 12)  # canonical voxels: right, anterior, superior
SPACING = (8.0, 8.0, 6.0)
_options = {'count': 0, 'seed': None}


@contextlib.contextmanager
def patients(count, seed):
  """Within it, datasets that may have any number of cases have so many, of different patients."""
  before = dict(_options)
  _options.update(count=count, seed=seed)
  yield
  _options.update(before)


def texture(shape, number):
  """Tissue of a patient: a smooth random field, 150 HU strong."""
  rng = np.random.default_rng([_options['seed'], number])
  field = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
  return 150 * field / field.std()


def body(values, number=0):
  """A body with two boxes per label value: the first on the right, the second on the left.

  Returns HU and label (24, 16, 12), and value -> slices of its (right, left) box.
  """
  image = np.full(SHAPE, -1000, np.int16)
  image[1:23, 1:15], image[11:13, 2, :] = 40, 500
  if _options['seed'] is not None:
    image[1:23, 1:15] += texture((22, 14, SHAPE[2]), number).astype(np.int16)
  label, boxes = np.zeros(SHAPE, np.uint8), {}
  for i, value in enumerate(values):
    cell = (slice(2 + 3 * (i % 4), 4 + 3 * (i % 4)), slice(1 + 2 * (i // 4), 3 + 2 * (i // 4)))
    boxes[value] = ((slice(15, 20), *cell), (slice(4, 9), *cell))
    for box in boxes[value]:
      label[box] = value
  return image, label, boxes


def nifti(path, array, axes='LPS'):
  """Writes a canonical array with its axes in another order; equal world coordinates."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = nib.Nifti1Image(array, np.diag([*SPACING, 1.0]))
  turned = nib.orientations.ornt_transform(
    nib.orientations.axcodes2ornt('RAS'), nib.orientations.axcodes2ornt(axes)
  )
  nib.save(image.as_reoriented(turned), path)


def slice_bytes(pixels, *, z, number, series='1.2.3', hu=True, geometry=True):
  """A DICOM file of (columns, rows) pixels, columns to the left and rows to posterior (LPS)."""
  ds = dataset.Dataset()
  ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, f'{series}.{number}'
  ds.SeriesInstanceUID, ds.Modality, ds.InstanceNumber = series, 'CT', number
  ds.Columns, ds.Rows = pixels.shape
  ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
  ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
  if geometry:
    ds.PixelSpacing = [SPACING[1], SPACING[0]]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-100, -50, z]
  if hu:
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1024
    pixels = (pixels.astype(int) + 1024) // 2
  ds.PixelData = np.ascontiguousarray(pixels.T).astype('<u2').tobytes()
  ds.file_meta = dataset.FileMetaDataset()
  ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
  ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
  buffer = io.BytesIO()
  ds.save_as(buffer, enforce_file_format=True)
  return buffer.getvalue()


def dicom_files(image, name, *, hu=True, series='1.2.3', geometry=True):
  """File name -> content of a canonical scan, numbered from the head down."""
  lps = image[::-1, ::-1]
  count = image.shape[2]
  return {
    name.format(count - 1 - k): slice_bytes(
      lps[..., k],
      z=k * SPACING[2],
      number=count - 1 - k,
      hu=hu,
      series=series,
      geometry=geometry,
    )
    for k in range(count)
  }


def write_files(folder, content):
  for name, data in content.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_zip(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in content.items():
      archive.writestr(name, data)


def pairs(image, label, count=3, axes='LPS'):
  """Writer of a dataset of NIfTI pairs with names from (image, label) patterns of a number."""

  def write(folder, values):
    for i in range(1, (_options['count'] or count) + 1):
      scan, organs, boxes = body(values, i)
      nifti(folder / image.format(i), scan, axes)
      nifti(folder / label.format(i), organs, axes)
    return boxes

  return write


def pancreas_ct(folder, values):
  for i in range(1, (_options['count'] or 2) + 1):
    scan, organs, boxes = body(values, i)
    inside = folder / f'Pancreas-CT/PANCREAS_{i:04d}/11-24-2015/Pancreas-{i}'
    write_files(inside, dicom_files(scan, '{:03d}.dcm', series=f'1.2.{i}'))
    label = nib.Nifti1Image(organs[::-1, ::-1], _dicom_affine())
    path = folder / f'label_tcia_multiorgan/label{i:04d}.nii.gz'
    path.parent.mkdir(exist_ok=True)
    nib.save(label, path)
  return boxes


def _dicom_affine():
  affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
  affine[:3, 3] = 100, 50, 0
  return affine


def chaos(folder, values):
  for i in range(1, (_options['count'] or 2) + 1):
    scan, organs, boxes = body(values, i)
    patient = folder / f'Train_Sets/CT/{i}'
    write_files(patient / 'DICOM_anon', dicom_files(scan, 'i{:04d},0000b.dcm'))
    (patient / 'Ground').mkdir()
    for k in range(SHAPE[2]):
      picture = Image.fromarray((organs[::-1, ::-1, k].T > 0).astype(np.uint8) * 255)
      picture.save(patient / 'Ground' / f'liver_GT_{SHAPE[2] - 1 - k:03d}.png')
  mri = folder / 'Train_Sets/MR/1/T1DUAL/DICOM_anon/InPhase'
  write_files(mri, {'IMG-0004-00001.dcm': b'no CT'})
  return boxes


IRCADB = {
  1: 'liver', 2: 'rightkidney', 3: 'leftkidney', 4: 'spleen', 5: 'gallbladder', 6: 'stomach',
  7: 'pancreas', 8: 'lungs', 9: 'bone', 10: 'livertumor01', 11: 'livercyst',
}  # fmt: skip


def ircadb(folder, values):
  """One patient in zip archives as downloaded, one unpacked."""
  _, organs, boxes = body(values)
  masks = {}
  for value, name in IRCADB.items():
    mask = np.where(organs == value, 255, 0)
    slices = dicom_files(mask, 'image_{}', hu=False, geometry=False)
    masks |= {f'MASKS_DICOM/{name}/{file}': data for file, data in slices.items()}
  for i in (1, 2):
    scan = dicom_files(body(values, i)[0], 'image_{}')
    patient = folder / f'3Dircadb1/3Dircadb1.{i}'
    slices = {f'PATIENT_DICOM/{k}': v for k, v in scan.items()}
    for name, content in (('PATIENT_DICOM', slices), ('MASKS_DICOM', masks)):
      if i == 1:
        write_zip(patient / f'{name}.zip', content)
      else:
        write_files(patient, content)
  return boxes


TOTALSEGMENTATOR = {
  1: 'spleen', 2: 'kidney_right', 3: 'lung_upper_lobe_left', 4: 'lung_lower_lobe_left',
  5: 'small_bowel', 6: 'inferior_vena_cava', 7: 'urinary_bladder', 8: 'femur_left',
  9: 'lung_upper_lobe_right',
}  # fmt: skip


def totalsegmentator(folder, values):
  root = folder / 'Totalsegmentator_dataset_v201'
  for i in range(3):
    scan, organs, boxes = body(values, i)
    nifti(root / f's000{i}/ct.nii.gz', scan)
    for value, name in TOTALSEGMENTATOR.items():
      nifti(root / f's000{i}/segmentations/{name}.nii.gz', (organs == value).astype(np.uint8))
  rows = ['s0000;30;train', 's0001;40;val', 's0002;50;test']
  (root / 'meta.csv').write_text('\n'.join(['image_id;age;split', *rows]))
  return boxes


def kits(folder, values):
  for i in range(_options['count'] or 3):
    scan, organs, boxes = body(values, i)
    # Its first axis runs from the feet to the head.
    nifti(folder / f'kits21/data/case_0000{i}/imaging.nii.gz', scan, 'IPL')
    nifti(folder / f'kits21/data/case_0000{i}/aggregated_OR_seg.nii.gz', organs, 'IPL')
  return boxes


def kits23(folder, values):
  """The repository after its download; each annotation of a cyst has a file, too."""
  write = pairs(
    'dataset/case_0000{}/imaging.nii.gz', 'dataset/case_0000{}/segmentation.nii.gz', axes='IPL'
  )
  boxes = write(folder, values)
  (folder / 'dataset/kits23.json').write_text('[]')
  cyst = 'dataset/case_00001/instances/cyst_instance-1_annotation-1.nii.gz'
  nifti(folder / cyst, body(values)[1], 'IPL')
  return boxes


def decathlon(task, prefix):
  image = f'{task}/imagesTr/{prefix}_{{:03d}}.nii.gz'
  write = pairs(image, image.replace('images', 'labels'), axes='RAS')

  def with_junk(folder, values):
    boxes = write(folder, values)
    (folder / task / 'imagesTr' / f'._{prefix}_001.nii.gz').write_bytes(b'macOS')
    nifti(folder / task / 'imagesTs' / f'{prefix}_009.nii.gz', body(values)[0])
    return boxes

  return with_junk


def amos(folder, values):
  """Of men, as its table of patients says."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = ''.join(f'{number},M\n' for number in range(500))
  (folder / 'labeled_data_meta_0000_0599.csv').write_text(f"amos_id,Patient's Sex\n{rows}")
  layout = pairs('amos22/imagesTr/amos_{:04d}.nii.gz', 'amos22/labelsTr/amos_{:04d}.nii.gz')
  return layout(folder, values)


LAYOUTS = {
  'btcv': pairs(
    'RawData/Training/img/img{:04d}.nii.gz', 'label_btcv_multiorgan/label{:04d}.nii.gz'
  ),
  'pancreas_ct': pancreas_ct,
  'chaos': chaos,
  'lits': pairs('Training Batch 1/volume-{}.nii', 'Training Batch 1/segmentation-{}.nii'),
  'kits': kits,
  'kits23': kits23,
  'ircadb': ircadb,
  'word': pairs(
    'WORD-V0.1.0/imagesTr/word_{:04d}.nii.gz', 'WORD-V0.1.0/labelsTr/word_{:04d}.nii.gz'
  ),
  'abdomenct_1k': pairs(
    'AbdomenCT-1K-ImagePart1/Case_{:05d}_0000.nii.gz', 'Mask/Case_{:05d}.nii.gz'
  ),
  'amos22': amos,
  'msd_liver': decathlon('Task03_Liver', 'liver'),
  'msd_lung': decathlon('Task06_Lung', 'lung'),
  'msd_pancreas': decathlon('Task07_Pancreas', 'pancreas'),
  'msd_hepatic_vessel': decathlon('Task08_HepaticVessel', 'hepaticvessel'),
  'msd_spleen': decathlon('Task09_Spleen', 'spleen'),
  'msd_colon': decathlon('Task10_Colon', 'colon'),
  'ct_org': pairs('OrganSegmentations/volume-2{}.nii.gz', 'OrganSegmentations/labels-2{}.nii.gz'),
  'abdomenct_12organ': pairs('img/Organ12_{:04d}_0000.nii.gz', 'label/Organ12_{:04d}.nii.gz'),
  'totalsegmentator': totalsegmentator,
  'thorax': pairs('LIDC-IDRI-{:04d}_ct.nii.gz', 'LIDC-IDRI-{:04d}_seg.nii.gz'),
  'chest_abdomen': pairs('scan-{}_ct.nii.gz', 'scan-{}_totalseg117.nii.gz'),
  'totalsegmentator_sample': pairs(
    'example_ct.nii.gz', 'example_seg_fast_force_split.nii.gz', count=1, axes='RAS'
  ),
  'sarcoma': pairs('STS_{:03d}_CT_image.nii.gz', 'STS_{:03d}_CT_mask.nii.gz'),
}
