"""Which fields a user's `dataset.json` may have: none is passed over without a word."""

import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import suggest
from input_pipeline.sources import files
from input_pipeline.sources.base import SourceError

_OF_BOTH = ('new_classes', 'ignored', 'supervised', 'missing_is', 'absent', 'patients', 'splits')
_TERMS = ('licence', 'license', 'citation', 'reference')
_OF_CONTOURS = ('rois', 'partial', 'structure_set')
_FOR_PEOPLE = ('name', 'description')
# What nnU-Net and the Decathlon write, compared without case; some of it `nnunet` reads.
_OF_NNUNET = frozenset({
  'labels', 'channel_names', 'modality', 'file_ending', 'dataset', 'name', 'dataset_name',
  'description', 'release', 'relase', 'version', 'date', 'author', 'authors', 'contact', 'url',
  'tensorimagesize', 'numtraining', 'numvalidation', 'numtest', 'training', 'validation', 'test',
  'regions_class_order', 'overwrite_image_reader_writer', 'image_reader_writer', 'converted_by',
})  # fmt: skip


def check_contours(index: Mapping[str, Any], path: pathlib.Path) -> None:
  """SourceError, which names all, if one of `rtstruct_folder` has a field that it does not know.

  Args:
    index: content of the file.
    path: of the file.
  """
  known = (*_OF_CONTOURS, *_OF_BOTH, *_TERMS, *_FOR_PEOPLE)
  if unknown := [name for name in index if name not in known]:
    hints = dict.fromkeys(suggest(name, known) for name in unknown)
    raise SourceError(f'{path}: unknown fields {unknown}; {" ".join(hints)}')


def check_label_maps(index: Mapping[str, Any], path: pathlib.Path) -> None:
  """As `check_contours`, of `nifti_folder`, which may have any field that is like none of ours.

  Fields of the other layout are refused, too: who writes `partial` means it.
  """
  if others := [name for name in _OF_CONTOURS if name in index]:
    raise SourceError(
      f'{path}: fields of rtstruct_folder, which label maps do not have: {", ".join(others)}; '
      'take them out. Voxels of slices where not everything was labelled get the label "ignore"'
    )
  hints = {name: suggest(name, _OF_BOTH).partition('known:')[0] for name in _unread(index)}
  if near := [name for name, hint in hints.items() if hint]:
    told = ' '.join(dict.fromkeys(hints[name].strip() for name in near))
    raise SourceError(f'{path}: unknown fields {near}; {told} If not, take them out')


def tell_unread(index: Mapping[str, Any], path: pathlib.Path) -> None:
  """Notes the fields of a `dataset.json` of `nifti_folder` that mean nothing here or to nnU-Net."""
  if unread := _unread(index):
    files.note(f'{path}: fields that are not read: {", ".join(unread)}')


def _unread(index: Mapping[str, Any]) -> list[str]:
  known = {*_OF_BOTH, *_TERMS}
  return [name for name in index if name not in known and name.casefold() not in _OF_NNUNET]
