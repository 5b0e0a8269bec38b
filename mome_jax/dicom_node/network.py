"""C-STORE in and out, by pynetdicom: the extra `node`."""

import contextlib
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mome_jax.dicom_node import folders
from mome_jax.dicom_node.settings import Destination, Settings
from mome_jax.errors import UserError

_SUCCESS, _NO_SPACE, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_CT = ('1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.5.1.4.1.1.2.1')  # CT and Enhanced CT
# No '.' or '..': they name files and folders here.
_UID = re.compile(r'(?=.{1,64}$)\d+(\.\d+)*', re.ASCII)
_SPARE = 1 << 30  # bytes of the disk that stay free
_SECONDS = 60  # that a destination may take to answer


class NodeError(UserError):
  """The node cannot start; the message says why."""


class SendError(Exception):
  """A destination did not take a result; the message says why."""


def library() -> ModuleType:
  """pynetdicom; NodeError with the command that installs it where it is not there."""
  try:
    import pynetdicom
  except ImportError as error:
    raise NodeError("needs pynetdicom: pip install 'mome-jax[node]'") from error
  return pynetdicom


class Receiver:
  """Writes CT images to FOLDER/SERIES/IMAGE.dcm as they come, and knows which series are whole."""

  def __init__(self, settings: Settings, folder: pathlib.Path):
    """Begins to listen.

    Args:
      settings: of the node.
      folder: existing.

    Raises:
      NodeError: if the port is taken, or pynetdicom is missing.
    """
    net = library()
    self._folder, self._wait = folder, settings.wait
    self._lock = threading.Lock()
    for part in folder.glob('*/.*'):  # of an image that was being written when an earlier run ended
      part.unlink()
    # What an earlier run has left is whole once `wait` is over.
    self._last = {path.name: time.monotonic() for path in folder.iterdir() if path.is_dir()}
    entity = net.AE(settings.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.callers)
    entity.add_supported_context(net.sop_class.Verification)
    for uid in _CT:
      entity.add_supported_context(uid, net.ALL_TRANSFER_SYNTAXES)
    handlers = [(net.evt.EVT_C_STORE, self._store)]
    try:
      self._server = entity.start_server(
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
    """Series of which no image came for a while, the longest waiting first."""
    with self._lock:
      now = time.monotonic()
      due = [name for name, last in self._last.items() if now - last >= self._wait]
      return sorted(due, key=self._last.__getitem__)

  def take(self, series: str, place: pathlib.Path) -> bool:
    """Moves a series out of the way of further images; False where one has just come.

    Raises:
      OSError: of the disk; the series is whole again after a while.
    """
    with self._lock:
      now = time.monotonic()
      if now - self._last[series] < self._wait:
        return False
      self._last[series] = now
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
    return _SUCCESS


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

  net = library()
  entity = net.AE(ae_title)
  entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _SECONDS
  entity.connection_timeout = _SECONDS
  datasets = [pydicom.dcmread(path) for path in files]
  for dataset in datasets:
    entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
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
