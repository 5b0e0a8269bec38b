"""Licence and citation in the metadata of a prepared source, written anew without its records."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from etils import epath

from input_pipeline import sources
from input_pipeline.bricks import records, shards
from input_pipeline.bricks.lasting import readable

_METADATA, _LICENCE = 'dataset_info.json', 'LICENSE'  # as TFDS calls them


def are_current(folder: epath.Path, source: sources.Source) -> bool:
  """Whether a prepared source has the licence and citation that it is to have now.

  Args:
    folder: of the prepared source.
    source: that says the terms.

  Raises:
    NotPreparedError: if its metadata are damaged.
  """
  return all(_terms(info) == _plain(source) for _, info in _metadata(folder))


def write(folder: epath.Path, source: sources.Source) -> None:
  """Writes them anew; arguments and errors as of `are_current`.

  Raises:
    OSError: if the disk refuses it.
  """
  licence, citation = _plain(source)
  for place, info in _metadata(folder):
    if licence:
      shards.write_bytes(place / _LICENCE, licence.encode())
    else:
      (place / _LICENCE).unlink(missing_ok=True)
    info |= {'redistributionInfo': {'license': licence}, 'citation': citation}
    if not citation:
      del info['citation']
    # Last, as it is what is compared.
    shards.write_bytes(place / _METADATA, json.dumps(info, indent=2).encode())


def _metadata(folder: epath.Path) -> Iterator[tuple[epath.Path, dict[str, Any]]]:
  """The folder of bricks, that of volumes, where they are, and what their metadata hold."""
  for kind in ('bricks', 'volumes'):
    place = folder / kind / records.VERSION
    if place.is_dir():
      with readable(place / _METADATA):
        info = dict(json.loads((place / _METADATA).read_text(encoding='utf-8')))
      yield place, info


def _terms(info: dict[str, Any]) -> tuple[str, str]:
  return info.get('redistributionInfo', {}).get('license', ''), info.get('citation', '')


def _plain(source: sources.Source) -> tuple[str, str]:
  """Licence and citation as TFDS stores them."""
  licence, citation = (textwrap.dedent(text).strip() for text in (source.licence, source.citation))
  return licence, citation
