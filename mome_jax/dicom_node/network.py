"""C-STORE in and out, by pynetdicom: the extra `node`."""

import contextlib
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pynetdicom
from pynetdicom import evt

from mome_jax.dicom_node import folders
from mome_jax.dicom_node.settings import Destination, Settings
from mome_jax.errors import UserError

_SUCCESS, _NO_SPACE, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_VERIFICATION = '1.2.840.10008.1.1'  # C-ECHO
_CT = '1.2.840.10008.5.1.4.1.1.2'  # CT Image Storage; the frames of Enhanced CT are not read
# No '.' or '..': they name files and folders here.
_UID = re.compile(r'(?=.{1,64}$)\d+(\.\d+)*', re.ASCII)
_SPARE = 1 << 30  # bytes of the disk that stay free
_SECONDS = 60  # that a destination may take to answer, or a sender between two images
_SLOWEST = 1 << 17  # bytes a second of a line that results are sent over


class NodeError(UserError):
  """The node cannot start; the message says why."""


class SendError(Exception):
  """A destination did not take a result; the message says why."""


class Receiver:
  """Writes CT images to FOLDER/SERIES/IMAGE.dcm as they come, and knows which series are whole."""

  def __init__(self, settings: Settings, folder: pathlib.Path):
    """Begins to listen.

    Args:
      settings: of the node.
      folder: existing.

    Raises:
      NodeError: if the port is taken.
    """
    self._folder, self._wait = folder, settings.wait
    self._lock = threading.Lock()
    for part in folder.glob('*/.*'):  # of an image that was being written when an earlier run ended
      part.unlink()
    # What an earlier run has left is whole once `wait` is over.
    self._last = {path.name: time.monotonic() for path in folder.iterdir() if path.is_dir()}
    self._coming: dict[Any, set[str]] = {}  # open association -> series of its images
    entity = pynetdicom.AE(settings.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.callers)
    entity.add_supported_context(_VERIFICATION)
    entity.add_supported_context(_CT, _readable(pynetdicom.ALL_TRANSFER_SYNTAXES))
    entity.network_timeout = _SECONDS
    handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_CONN_CLOSE, self._closed)]
    try:
      self._server: Any = entity.start_server(
        (settings.host, settings.port), block=False, evt_handlers=handlers
      )
    except OSError as error:
      raise NodeError(
        f'{settings.host}:{settings.port}: cannot be listened on ({error.strerror}); change host '
        'or port'
      ) from error

  @property
  def port(self) -> int:
    """That is listened on."""
    return self._server.server_address[1]

  def close(self) -> None:
    """Stops listening; associations end."""
    self._server.shutdown()

  def whole(self) -> list[str]:
    """Series of which no image came for a while, the longest waiting first.

    While the association that sent them is open a while is a minute: a scanner sends images as they
    are reconstructed.
    """
    with self._lock:
      return sorted(filter(self._is_due, self._last), key=self._last.__getitem__)

  def _is_due(self, series: str) -> bool:
    open_ = any(series in coming for coming in self._coming.values())
    wait = max(self._wait, _SECONDS) if open_ else self._wait
    return time.monotonic() - self._last[series] >= wait

  def take(self, series: str, place: pathlib.Path) -> bool:
    """Moves a series out of the way of further images; False where one has just come.

    Raises:
      OSError: of the disk; the series is whole again after a while.
    """
    with self._lock:
      if not self._is_due(series):
        return False
      self._last[series] = time.monotonic()
      folders.move(self._folder / series, place)
      del self._last[series]
      return True

  def _store(self, event: Any) -> int:
    """Takes one image; the status of the answer."""
    series = str(event.dataset.get('SeriesInstanceUID', ''))
    image = str(event.request.AffectedSOPInstanceUID)
    if not _UID.fullmatch(series) or not _UID.fullmatch(image):
      return _NOT_UNDERSTOOD
    data = event.encoded_dataset()
    if shutil.disk_usage(self._folder).free < len(data) + _SPARE:
      return _NO_SPACE
    with self._lock:
      place = self._folder / series
      part = place / f'.{image}'
      try:
        place.mkdir(exist_ok=True)
        part.write_bytes(data)
        part.rename(place / f'{image}.dcm')
      except OSError:
        with contextlib.suppress(OSError):
          part.unlink(missing_ok=True)
          place.rmdir()  # unless others came before
        return _NO_SPACE
      self._last[series] = time.monotonic()
      self._coming.setdefault(event.assoc, set()).add(series)
    return _SUCCESS

  def _closed(self, event: Any) -> None:
    with self._lock:
      self._coming.pop(event.assoc, None)


def _readable(syntaxes: Sequence[str]) -> list[str]:
  """Those that can be decoded here: of others a sender may have a plainer form."""
  from pydicom.pixels import get_decoder
  from pydicom.uid import UID

  def is_readable(syntax: str) -> bool:
    try:
      return not UID(syntax).is_compressed or get_decoder(UID(syntax)).is_available
    except NotImplementedError:  # no decoder knows it
      return False

  return list(filter(is_readable, syntaxes))


def send(
  files: Sequence[pathlib.Path],
  destination: Destination,
  ae_title: str,
  *,
  stopped: Callable[[], bool] = lambda: False,
) -> None:
  """Sends DICOM files.

  Args:
    files: to send.
    destination: that takes them.
    ae_title: of this node.
    stopped: asked between files.

  Raises:
    SendError: if one was not taken.
  """
  import pydicom

  entity = pynetdicom.AE(ae_title)
  entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _SECONDS
  entity.connection_timeout = _SECONDS
  datasets = [pydicom.dcmread(path) for path in files]
  kinds = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID): None for one in datasets}
  for kind, stored in kinds:  # an association has 128 of them at most, and may send more files
    plain = [] if stored.is_compressed else [pydicom.uid.ImplicitVRLittleEndian]  # all must take it
    entity.add_requested_context(kind, [stored, *plain])
  where = f'{destination.ae_title} at {destination.host}:{destination.port}'
  try:
    link = entity.associate(destination.host, destination.port, ae_title=destination.ae_title)
  except OSError as error:  # no such host
    raise SendError(f'{where} cannot be reached ({error})') from error
  if not link.is_established:
    raise SendError(f'{where} does not answer, or refuses this node')
  try:
    for path, dataset in zip(files, datasets, strict=True):
      if stopped():
        raise SendError('the node was stopped')
      # It counts from before the first byte is sent.
      link.dimse_timeout = _SECONDS + path.stat().st_size / _SLOWEST
      try:
        status = link.send_c_store(dataset)
      except (ValueError, RuntimeError) as error:  # of its kind, or the connection has ended
        raise SendError(f'{where} does not take {path.name} ({error})') from error
      code = status.get('Status')
      # 0xBxxx: taken, with a remark.
      if code is None or (code != _SUCCESS and code >> 12 != 0xB):
        told = 'no answer' if code is None else f'status 0x{code:04X}'
        raise SendError(f'{where} does not take {path.name} ({told})')
  finally:
    link.release()
