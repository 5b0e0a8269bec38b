r"""A label map as an RT Structure Set, and back by other programs.

  python -m tests.benchmarks.rtstruct_round_trip make CT.nii.gz LABELS.nii.gz FOLDER
  python tests/benchmarks/rtstruct_round_trip.py read FOLDER rt_utils   # or platipy
  python -m tests.benchmarks.rtstruct_round_trip score FOLDER

`make` writes FOLDER/series (square slices: rt_utils and platipy mix up rows and columns of others)
and FOLDER/rt.dcm with an ROI a label value; `read` runs where the other program is installed, which
may be another environment; `score` prints the Dice of each.
"""

import pathlib
import sys

import numpy as np

HIGH = {'rt_utils': (1, 0, 2), 'platipy': (2, 1, 0)}  # their axes to (columns, rows, slices)


def make(ct: str, labels: str, folder: str) -> None:
  """Writes series, structure set and the masks in it."""
  from input_pipeline.ct import dicom, volume
  from mome_jax.pictures.colours import palette
  from mome_jax.predict import rtstruct
  from mome_jax.predict.request import Target
  from tests.helpers.dicom_slices import as_series

  place = pathlib.Path(folder)
  place.mkdir(parents=True)
  scan, organs = volume.read_image(ct), volume.read_labels(labels)
  width, height, _ = scan.array.shape
  turn = np.array([[-1, 0, 0, width - 1], [0, -1, 0, height - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
  pads = [(0, max(width, height) - n) for n in (width, height)] + [(0, 0)]
  square = lambda array, fill: np.pad(array[::-1, ::-1], pads, constant_values=fill)
  affine = scan.geometry.canonical_affine @ turn  # to the left, posterior and superior
  as_series(place / 'series', volume.to_canonical(square(scan.array, volume.AIR), affine))
  series, values = dicom.read_series(place / 'series'), square(organs.array, 0)

  class Labels:
    def mask(self, name: str) -> np.ndarray:
      mask = values == int(name.removeprefix('label '))
      return volume.to_canonical(mask, series.volume.geometry.affine).array

  names = [f'label {value}' for value in np.unique(values) if value]
  targets = [Target(number, name, name, name) for number, name in enumerate(names, 1)]
  rtstruct.write(place / 'rt.dcm', series, Labels(), targets, palette(names))
  np.savez_compressed(place / 'masks.npz', values=values)


def read(folder: str, program: str) -> None:
  """Lets another program fill the contours."""
  place = pathlib.Path(folder)
  if program == 'rt_utils':
    from rt_utils import RTStructBuilder

    built = RTStructBuilder.create_from(str(place / 'series'), str(place / 'rt.dcm'))
    masks = {name: built.get_roi_mask_by_name(name) for name in built.get_roi_names()}
  else:
    import pydicom
    import SimpleITK as sitk
    from platipy.dicom.io import rtstruct_to_nifti

    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place / 'series')))
    filled, names = rtstruct_to_nifti.transform_point_set_from_dicom_struct(
      image, pydicom.dcmread(place / 'rt.dcm')
    )
    masks = {name.replace('_', ' '): sitk.GetArrayFromImage(mask)
             for name, mask in zip(names, filled, strict=True)}  # fmt: skip
  turned = {name: mask.transpose(HIGH[program]) > 0 for name, mask in masks.items()}
  np.savez_compressed(place / f'{program}.npz', **turned)


def score(folder: str) -> None:
  """Prints the Dice of this package's reader and of every program that has read."""
  from input_pipeline.ct import dicom, structure_set

  place = pathlib.Path(folder)
  values = np.load(place / 'masks.npz')['values']
  names = [f'label {value}' for value in np.unique(values) if value]
  geometry = dicom.read_series(place / 'series').volume.geometry
  readers = {'mome_jax': structure_set.read_masks(place, 'rt.dcm', geometry, names)}
  readers |= {name: np.load(place / f'{name}.npz') for name in HIGH
              if (place / f'{name}.npz').exists()}  # fmt: skip
  for reader, masks in readers.items():
    dice = []
    for name in names:
      mask = values == int(name.removeprefix('label '))
      dice.append(2 * (mask & masks[name]).sum() / (mask.sum() + masks[name].sum()))
    exact = sum(value == 1 for value in dice)
    print(f'{reader}: {len(dice)} structures, {exact} exact, Dice at least {min(dice):.4f}, '
          f'mean {np.mean(dice):.4f}')  # fmt: skip


if __name__ == '__main__':
  {'make': make, 'read': read, 'score': score}[sys.argv[1]](*sys.argv[2:])
