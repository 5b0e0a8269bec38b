"""A headless Chromium, driven over its debugging protocol."""

import base64
import contextlib
import io
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request

import numpy as np
import websocket
from PIL import Image

_FLAGS = ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--use-gl=angle',
          '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--hide-scrollbars',
          '--remote-debugging-port=0', '--remote-allow-origins=*', '--no-first-run',
          '--disable-extensions', '--disable-background-networking')  # fmt: skip
PATIENCE = 240  # seconds; WebGL without a GPU is slow on a busy machine


def find_chromium():
  """The path of a Chromium, or None."""
  names = ('chromium', 'chromium-browser', 'google-chrome')
  return next(filter(None, map(shutil.which, names)), None)


class Page:
  """An open page."""

  def __init__(self, host, target):
    self._host = host
    self._connection = websocket.create_connection(target['webSocketDebuggerUrl'], timeout=PATIENCE)
    self._numbers = itertools.count(1)
    self.events = []

  def send(self, method, **parameters):
    number = next(self._numbers)
    self._connection.send(json.dumps({'id': number, 'method': method, 'params': parameters}))
    while True:
      answer = json.loads(self._connection.recv())
      if answer.get('id') == number:
        assert 'error' not in answer, answer
        return answer['result']
      self.events.append(answer)

  def run(self, script):
    """The value of a JavaScript expression; promises are awaited."""
    result = self.send('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def open(self, path):
    for domain in ('Network', 'Page', 'Runtime', 'Log'):
      self.send(f'{domain}.enable')
    is_address = str(path).startswith('http://')
    self.send('Page.navigate', url=path if is_address else pathlib.Path(path).resolve().as_uri())
    self.until('document.body && document.body.dataset.ready')

  def until(self, script):
    """The value of an expression, once it is true."""
    end = time.monotonic() + PATIENCE
    while not (value := self.run(script)):
      assert time.monotonic() < end, (script, self.problems())
      time.sleep(0.1)
    return value

  def another(self, size=(1400, 900)):
    """Another page of the same browser."""
    request = urllib.request.Request(f'http://{self._host}/json/new?about:blank', method='PUT')
    with urllib.request.urlopen(request) as answer:
      page = Page(self._host, json.load(answer))
    page.resize(size)
    return page

  def resize(self, size):
    self.send(
      'Emulation.setDeviceMetricsOverride',
      width=size[0], height=size[1], deviceScaleFactor=1, mobile=False,
    )  # fmt: skip

  def close(self):
    """Closes the page, and with the last one the browser."""
    with contextlib.suppress(websocket.WebSocketException, OSError):
      self.send('Page.close')
    self._connection.close()

  def requests(self):
    """URLs asked for, without those inside the page itself."""
    urls = [e['params']['request']['url'] for e in self.events
            if e['method'] == 'Network.requestWillBeSent']  # fmt: skip
    return [url for url in urls if not url.startswith(('data:', 'blob:'))]

  def problems(self):
    """What the console complains about."""
    kinds = ('Runtime.exceptionThrown', 'Log.entryAdded')
    return [e['params'] for e in self.events if e['method'] in kinds]

  def screenshot(self, path=None):
    """(rows, columns, 3) uint8 of what is visible, once it is drawn."""
    self.run('new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')
    png = base64.b64decode(self.send('Page.captureScreenshot', format='png')['data'])
    if path:
      pathlib.Path(path).write_bytes(png)
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))

  def type(self, text):
    self.send('Input.insertText', text=text)

  def press(self, key, code):
    """A key by its name and number."""
    for kind in ('keyDown', 'keyUp'):
      text = {'text': '\r'} if key == 'Enter' and kind == 'keyDown' else {}
      self.send('Input.dispatchKeyEvent', type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, **text)  # fmt: skip

  def drop(self, x, y, *paths):
    """Drags files and folders from the desktop to a place."""
    data = {'items': [], 'files': [str(path) for path in paths], 'dragOperationsMask': 1}
    for kind in ('dragEnter', 'dragOver', 'drop'):
      self.send('Input.dispatchDragEvent', type=kind, x=x, y=y, data=data)

  def wheel(self, x, y, delta):
    self.send('Input.dispatchMouseEvent', type='mouseWheel', x=x, y=y, deltaX=0, deltaY=delta)


@contextlib.contextmanager
def chromium(size=(1400, 900)):
  """A page in a fresh browser without a network."""
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    process = subprocess.Popen(
      [find_chromium(), *_FLAGS, f'--window-size={size[0]},{size[1]}',
       f'--user-data-dir={profile}', 'about:blank'],
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
      for line in process.stderr:
        address = re.search(r'ws://([^/]+)/', line)
        if address:
          break
      host = address.group(1)
      with urllib.request.urlopen(f'http://{host}/json') as answer:
        target = next(t for t in json.load(answer) if t['type'] == 'page')
      page = Page(host, target)
      page.resize(size)
      yield page
      page.close()
    finally:
      process.terminate()
      try:
        process.wait(20)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
