"""What a result was made from: whether a later run would make the same."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mome_jax.inference.model import Model
from mome_jax.inference.segmenter import Segmenter
from mome_jax.plausibility.record import Record
from mome_jax.predict import find_scans
from mome_jax.predict.request import Request, Target

_NETWORK = ('model', 'text', 'classes', 'new_classes')  # of a config
# What earlier versions did not note, as they did it.
_LATER = {'tta': False, 'keep_absent': True}
_NAMES = {
  'scan': 'another scan',
  'weights': 'other weights',
  'network': 'another network',
  'text': 'another text model',
  'looks': 'another record of plausibility',
}  # of what is too long to be told


def of_request(
  request: Request,
  predictor: Model,
  segmenter: Segmenter,
  targets: Sequence[Target],
  *,
  weights: str,
  records: Sequence[Record],
) -> dict[str, Any]:
  """All that decides which voxel belongs to which class, and what is said of the masks.

  It leaves the scan out, and holds values fit for JSON.

  Args:
    request: what is asked for.
    predictor: the model.
    segmenter: that the request asked of it.
    targets: K, what its prompts ask for. Classes that only compete with them have the texts that
      the network was trained with.
    weights: `predictor.fingerprint()`.
    records: that judge the masks.
  """
  config = predictor.config.to_dict()
  return {
    'weights': weights,
    'network': _network(predictor),
    'text': predictor.text_fingerprint([target.text for target in targets]),
    'looks': _looks(records),
    'dtype': (config.get('model') or {}).get('dtype'),
    'spacing': segmenter.settings.spacing,
    'hu_windows': segmenter.settings.hu_windows,
    'window': segmenter.settings.tiling.window,
    'overlap': segmenter.settings.tiling.overlap,
    'postprocess': segmenter.settings.rules,
    'tta': segmenter.settings.tta,
    'keep_absent': request.keep_absent,
    'assume_spacing': request.assume_spacing,
    'volume': request.volume_number,
  }


def _network(predictor: Model) -> str:
  """SHA-256 of what the networks are, hexadecimal; of several, whatever their order."""
  digests = []
  for member in predictor.members:
    config = member.config.to_dict()
    text = _plain({key: config.get(key) for key in _NETWORK})
    digests.append(_digest(text))
  first, *others = sorted(digests)
  return _digest(''.join([first, *others])) if others else first


def _looks(records: Sequence[Record]) -> str:
  """SHA-256 of some records, hexadecimal; without `few` that of versions that knew none."""
  fields = [dataclasses.asdict(record) for record in records]
  return _digest(_plain([{k: v for k, v in one.items() if k != 'few' or v} for one in fields]))


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def of_scan(scan: find_scans.ScanFiles) -> str:
  """SHA-256 of the content of a scan's files, hexadecimal, whatever they are called.

  Raises:
    OSError, VolumeError: if one cannot be read.
  """
  return hashlib.sha256(b''.join(sorted(find_scans.digests(scan)))).hexdigest()


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """One phrase for each value of `now` that the earlier description lacks or has otherwise."""
  phrases = []
  earlier = {**_LATER, **earlier}
  if now.get('looks') == _looks(()):  # then nothing is removed
    earlier['keep_absent'] = now.get('keep_absent')
  for key, value in now.items():
    before, after = _plain(earlier.get(key)), _plain(value)
    if key not in earlier or json.loads(before) != json.loads(after):  # 3 and 3.0 are one
      phrases.append(_NAMES.get(key) or f'{key} {before}, now {after}')
  return phrases


def _plain(value: Any) -> str:
  return json.dumps(value, sort_keys=True, default=str)
