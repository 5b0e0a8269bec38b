"""Frames of a DICOM SEG."""

import tracemalloc

import numpy as np
import pydicom
import pytest
from pydicom import uid

from input_pipeline.ct import segments


def seg(masks):
  """A SEG of one segment; masks are (frames, rows, columns) bool."""
  ds = pydicom.Dataset()
  ds.SegmentationType, ds.SOPClassUID = 'BINARY', uid.SegmentationStorage
  ds.NumberOfFrames, ds.Rows, ds.Columns = masks.shape
  ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
  ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 1, 0, 0
  packed = np.packbits(masks.ravel(), bitorder='little').tobytes()
  ds.PixelData = packed + b'\0' * (len(packed) % 2)
  ds.file_meta = pydicom.dataset.FileMetaDataset()
  ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  named, shared = pydicom.Dataset(), pydicom.Dataset()
  named.ReferencedSegmentNumber = 1
  shared.SegmentIdentificationSequence = [named]
  ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], []
  for k in range(len(masks)):
    place, groups = pydicom.Dataset(), pydicom.Dataset()
    place.ImagePositionPatient = [0, 0, 3 * k]
    groups.PlanePositionSequence = [place]
    ds.PerFrameFunctionalGroupsSequence.append(groups)
  return ds


@pytest.mark.parametrize('shape', [(6, 8, 8), (7, 3, 5), (1, 4, 4)])  # also within bytes
def test_frames_are_those_that_were_packed(shape):
  masks = np.random.default_rng(0).random(shape) < 0.5
  found = list(segments.frames(seg(masks)))
  np.testing.assert_array_equal([mask for _, _, mask in found], masks)
  assert [place[2] for _, place, _ in found] == [3 * k for k in range(len(masks))]


def test_one_frame_is_unpacked_at_a_time():
  list(segments.frames(seg(np.ones((1, 8, 8), bool))))  # imports
  ds = seg(np.ones((200, 128, 128), bool))
  tracemalloc.start()
  assert all(mask.all() for _, _, mask in segments.frames(ds))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 20 * 128 * 128
