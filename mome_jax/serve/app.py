"""Answers requests: the page, and the JSON API of `openapi`."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mome_jax import __version__
from mome_jax.errors import UserError, one_line
from mome_jax.predict import html_viewer, viewer_data
from mome_jax.predict.find_scans import ScanFiles
from mome_jax.predict.verdicts import UnfamiliarError
from mome_jax.serve import answers, downloads, openapi, uploads
from mome_jax.serve.answers import Answerer
from mome_jax.serve.compute import BusyError, Job, Line
from mome_jax.serve.scans import GoneError, PromptSet, Scan, Scans, find
from mome_jax.text.prompts import parse_prompts

_STATUS = {uploads.TooLargeError: 413, BusyError: 429, GoneError: 404}
_TICK = 0.1  # seconds between looks at a job whose progress is told
_SILENCE = 15.0  # seconds after which a stream says that it is alive
_LONGEST = 1 << 20  # bytes of a JSON body
_KEEP_MORE = 'start the server with a larger --keep-scans'
_STYLES = 'viewer.css', 'serve.css'
_SCRIPTS = 'viewer.js', 'archive.js', 'prompt_line.js', 'serve.js'


@dataclasses.dataclass(eq=False)
class Desk:
  """What the server works with.

  Attributes:
    answerer: the model.
    scans: that are open.
    line: of work.
    inputs: scans of the folder that it was started with, by name.
    limit: bytes of what is sent.
    stopping: set when the server ends; streams end with it.
  """

  answerer: Answerer
  scans: Scans
  line: Line
  inputs: dict[str, ScanFiles]
  limit: int
  stopping: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
  reading: anyio.CapacityLimiter | None = None  # one scan is read at a time

  def close(self, scan: Scan) -> None:
    """What ends with a scan."""
    for job in self.line.of(scan=scan.number):
      job.cancel()
    with contextlib.suppress(BusyError):
      self.line.add(lambda job: self.answerer.forget(scan.key), purpose='forget')


async def _in_thread(work: Callable, *arguments: Any) -> Any:
  return await anyio.to_thread.run_sync(work, *arguments)


async def _body(request: Request) -> dict[str, Any]:
  """The JSON object that was sent."""
  content = b''
  async for chunk in request.stream():
    content += chunk
    if len(content) > _LONGEST:
      raise uploads.TooLargeError('the request is larger than 1 MB')
  try:
    value = json.loads(content or b'{}')
  except ValueError as error:
    raise UserError(f'the request is no JSON ({one_line(error)})') from error
  if not isinstance(value, dict):
    raise UserError('the request is no JSON object')
  return value


def _number(request: Request, name: str) -> int:
  return int(request.path_params[name])


# ---------------------------------------------------------------------------- the model, the page
async def page(request: Request) -> Response:
  """The page."""
  style = '<link rel="icon" href="data:,">\n' + ''.join(
    f'<link rel="stylesheet" href="{name}">\n' for name in _STYLES
  )
  scripts = ''.join(f'<script src="{name}"></script>\n' for name in ('niivue.js', *_SCRIPTS))
  text = html_viewer.page(style, html_viewer.asset('serve.html'), scripts)
  return Response(text, media_type='text/html')


async def asset(request: Request) -> Response:
  """A file of the page."""
  name = request.path_params['name']
  if name == 'niivue.js':
    return Response(await _in_thread(html_viewer.niivue), media_type='text/javascript')
  if name not in (*_STYLES, *_SCRIPTS):
    raise GoneError(f'{name}: no such file')
  kind = 'text/css' if name.endswith('.css') else 'text/javascript'
  return Response(html_viewer.asset(name), media_type=kind)


async def document(request: Request) -> Response:
  """The description of the API."""
  return JSONResponse(openapi.document())


async def model(request: Request) -> Response:
  """The model, its classes, and what scans can be chosen."""
  desk: Desk = request.app.state.desk
  predictor = desk.answerer.model
  config = predictor.config
  classes = [
    {
      'name': name,
      'synonyms': list(predictor.template.get(name).synonyms),
      'experimental': name in config.experimental,
    }
    for name in config.classes
  ]
  return JSONResponse(
    {
      'version': __version__,
      'checkpoint': ' + '.join(pathlib.PurePath(one.path).name for one in predictor.members),
      'step': predictor.step,
      'classes': classes,
      'inputs': list(desk.inputs),
      'max_upload_bytes': desk.limit,
    }
  )


async def judge(request: Request) -> Response:
  """What prompts would be taken for."""
  desk: Desk = request.app.state.desk
  prompts = _prompts((await _body(request)).get('prompts'))
  return JSONResponse({'prompts': await _in_thread(desk.answerer.judge, prompts or [])})


def _prompts(value: Any) -> list[str] | None:
  """Prompts as text with commas, or as a list; None where a request says nothing."""
  if value is None:
    return None
  if isinstance(value, str):
    return parse_prompts(value)
  if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
    return value
  raise UserError(f'prompts is {value!r}; expected text with commas, or a list of texts')


def _switch(body: Mapping[str, Any], name: str) -> bool:
  value = body.get(name, False)
  if not isinstance(value, bool):
    raise UserError(f'{name} is {value!r}; expected true or false')
  return value


def _forced(body: Mapping[str, Any]) -> bool | list[str]:
  """Whether prompts are asked for though the model was not trained on them, or which ones."""
  value = body.get('force', False)
  if isinstance(value, list) and all(isinstance(one, str) for one in value):
    return value
  if not isinstance(value, bool):
    raise UserError(f'force is {value!r}; expected true, false, or a list of prompts')
  return value


# ---------------------------------------------------------------------------- scans
async def list_scans(request: Request) -> Response:
  """The scans that are open."""
  return JSONResponse({'scans': [scan.told() for scan in request.app.state.desk.scans.all()]})


async def post_scan(request: Request) -> Response:
  """Opens what is sent, or a scan of the folder that the server was started with."""
  desk: Desk = request.app.state.desk
  if request.headers.get('content-type', '').startswith('application/json'):
    name = (await _body(request)).get('input')
    if not isinstance(name, str) or name not in desk.inputs:
      raise GoneError(f'{name}: is not in the folder of --input')
    parts = [(desk.inputs[name], uploads.plain(name))]
    return await _open(desk, parts, [])
  name = request.query_params.get('name', 'scan')
  size = request.headers.get('content-length', '')
  if size.isdecimal() and int(size) > desk.limit:
    raise uploads.TooLargeError(
      f'{name}: is larger than {desk.limit / 1e9:g} GB; start the server with a larger --max-upload'
    )
  folder = desk.scans.new_folder()
  try:
    path = await uploads.save(request.stream(), folder, name, desk.limit)
    path = await _in_thread(uploads.unpack, path, name, desk.limit)
    parts, notes = await _in_thread(find, path, uploads.title_of(name))
    return await _open(desk, parts, notes)
  except BaseException:
    shutil.rmtree(folder, ignore_errors=True)
    raise


async def _open(
  desk: Desk, parts: Sequence[tuple[ScanFiles, str]], notes: Sequence[str]
) -> Response:
  """Opens scans; what is wrong with one does not cost the others."""
  if desk.reading is None:
    desk.reading = anyio.CapacityLimiter(1)
  opened, problems = [], list(notes)
  most = desk.scans.most
  if left := [title for _, title in parts[most:]]:
    names = ', '.join(left)
    problems.append(
      f'{names}: not opened, as {most} scans are kept; send fewer at a time, or {_KEEP_MORE}'
    )
  for files, title in parts[:most]:
    try:
      scan, closed = await anyio.to_thread.run_sync(
        desk.scans.open, files, title, desk.answerer.request(None), limiter=desk.reading
      )
      opened.append(scan.told())
      problems += [
        f'{one}: closed for {title}, as {most} scans are kept; for more, {_KEEP_MORE}'
        for one in closed
      ]
    except UserError as error:
      problems.append(one_line(error))
  if not opened:
    raise UserError('; '.join(problems))
  return JSONResponse({'scans': opened, 'problems': problems}, 201)


async def get_scan(request: Request) -> Response:
  """A scan that is open."""
  return JSONResponse(_scan(request).told())


async def delete_scan(request: Request) -> Response:
  """Forgets a scan."""
  await _in_thread(request.app.state.desk.scans.close, _number(request, 'scan'))
  return Response(status_code=204)


async def image(request: Request) -> Response:
  """The scan as it is shown."""
  return Response(_scan(request).image, media_type='application/gzip')


async def view(request: Request) -> Response:
  """What the viewer is told of a scan."""
  scan = _scan(request)
  head = viewer_data.head(scan.loaded.volume, scan.step, scan.title)
  return JSONResponse({**head, 'warnings': list(scan.notes)})


def _scan(request: Request) -> Scan:
  return request.app.state.desk.scans.get(_number(request, 'scan'))


# ---------------------------------------------------------------------------- prompts
async def post_prompts(request: Request) -> Response:
  """Asks for masks."""
  desk: Desk = request.app.state.desk
  scan, body = _scan(request), await _body(request)
  prompts, forced = _prompts(body.get('prompts')), _forced(body)
  as_written = _switch(body, 'as_written')
  if forced and isinstance(forced, list):
    others = [text for text in prompts or () if text not in forced]
    await _in_thread(functools.partial(desk.answerer.check, others, as_written=as_written))
  asked = desk.answerer.request(prompts, force=bool(forced), as_written=as_written)
  read = await _in_thread(desk.answerer.read_prompts, asked)
  one = PromptSet(next(scan.numbers), asked, read)
  job = desk.line.add(
    lambda job: desk.answerer.answer(scan, one, job), scan=scan.number, set=one.number
  )
  one.job = job.number
  scan.sets[one.number] = one
  try:
    desk.scans.get(scan.number)
  except GoneError:  # closed while its prompts were read
    job.cancel()
    raise
  return JSONResponse({**scan.set_told(one), **_told(desk, job)}, 202)


async def get_set(request: Request) -> Response:
  """A set of prompts, with the volumes of its masks."""
  scan = _scan(request)
  return JSONResponse(scan.set_told(scan.get_set(_number(request, 'set'))))


async def delete_set(request: Request) -> Response:
  """Forgets a set of prompts, and cancels its job."""
  desk: Desk = request.app.state.desk
  scan = _scan(request)
  one = scan.get_set(_number(request, 'set'))
  for job in desk.line.of(scan=scan.number, set=one.number):
    job.cancel()
  await _in_thread(scan.drop, one)  # it waits for a file that is being written
  return Response(status_code=204)


async def set_view(request: Request) -> Response:
  """What the viewer is told of the masks that are finished."""
  scan = _scan(request)
  one = scan.get_set(_number(request, 'set'))
  if one.view is None or one.segmented is None:  # the masks come after their view
    raise UserError(
      f'{scan.title}: no mask of prompts {one.number} is finished; wait for their job'
    )
  warnings = [*one.asked.notes, *answers.warnings_of(scan, one)]
  return JSONResponse({**one.view, 'warnings': warnings})


async def post_routing(request: Request) -> Response:
  """Asks which scales are trusted where."""
  desk: Desk = request.app.state.desk
  scan = _scan(request)
  one = scan.get_set(_number(request, 'set'))
  downloads.check_done(scan, one)
  job = desk.line.add(
    lambda job: desk.answerer.explain(scan, one, job), scan=scan.number, set=one.number
  )
  return JSONResponse(_told(desk, job), 202)


async def get_mask(request: Request) -> Response:
  """The mask of one class."""
  scan = _scan(request)
  one = scan.get_set(_number(request, 'set'))
  path = await _in_thread(downloads.mask, scan, one, request.path_params['name'])
  return _download(path, f'{scan.title}_{path.name.partition("_")[2]}')


async def get_file(request: Request) -> Response:
  """A file as `predict` writes it."""
  scan = _scan(request)
  one, kind = scan.get_set(_number(request, 'set')), request.path_params['kind']
  path = await _in_thread(downloads.of_kind, scan, one, kind)
  return _download(path, f'{scan.title}_{kind}')


def _download(path: pathlib.Path, name: str) -> Response:
  plain = ''.join(c if c.isascii() else '_' for c in name)  # which curl -J alone reads
  names = f'filename="{plain}"; filename*=UTF-8\'\'{urllib.parse.quote(name)}'
  headers = {'content-disposition': f'attachment; {names}'}
  return FileResponse(path, media_type='application/octet-stream', headers=headers)


# ---------------------------------------------------------------------------- jobs
def _told(desk: Desk, job: Job) -> dict[str, Any]:
  return {**job.told(), 'before': desk.line.before(job) if job.state == 'waiting' else 0}


def _job(request: Request) -> Job:
  number = _number(request, 'job')
  job = request.app.state.desk.line.get(number)
  if job is None:
    raise GoneError(f'no job {number}')
  return job


async def get_job(request: Request) -> Response:
  """How far a job is."""
  return JSONResponse(_told(request.app.state.desk, _job(request)))


async def delete_job(request: Request) -> Response:
  """Cancels a job."""
  job = _job(request)
  job.cancel()
  return JSONResponse(_told(request.app.state.desk, job))


async def events(request: Request) -> Response:
  """The states of a job as server-sent events, until it is over."""
  desk: Desk = request.app.state.desk
  job = _job(request)

  async def states() -> AsyncIterator[str]:
    told, silent = '', 0.0
    while not desk.stopping.is_set():
      over, text = job.is_over, json.dumps(_told(desk, job))
      if text != told:
        yield f'data: {text}\n\n'
        told, silent = text, 0.0
      if over:
        return
      if silent > _SILENCE:
        yield ': still here\n\n'
        silent = 0.0
      await asyncio.sleep(_TICK)
      silent += _TICK

  return StreamingResponse(states(), media_type='text/event-stream')


# ---------------------------------------------------------------------------- together
ROUTES = [
  Route('/', page),
  Route('/api/openapi.json', document),
  Route('/api/model', model),
  Route('/api/judge', judge, methods=['POST']),
  Route('/api/scans', list_scans),
  Route('/api/scans', post_scan, methods=['POST']),
  Route('/api/scans/{scan:int}', get_scan),
  Route('/api/scans/{scan:int}', delete_scan, methods=['DELETE']),
  Route('/api/scans/{scan:int}/image.nii.gz', image),
  Route('/api/scans/{scan:int}/view', view),
  Route('/api/scans/{scan:int}/prompts', post_prompts, methods=['POST']),
  Route('/api/scans/{scan:int}/sets/{set:int}', get_set),
  Route('/api/scans/{scan:int}/sets/{set:int}', delete_set, methods=['DELETE']),
  Route('/api/scans/{scan:int}/sets/{set:int}/view', set_view),
  Route('/api/scans/{scan:int}/sets/{set:int}/routing', post_routing, methods=['POST']),
  Route('/api/scans/{scan:int}/sets/{set:int}/masks/{name:path}', get_mask),
  Route('/api/scans/{scan:int}/sets/{set:int}/files/{kind}', get_file),
  Route('/api/jobs/{job:int}', get_job),
  Route('/api/jobs/{job:int}', delete_job, methods=['DELETE']),
  Route('/api/jobs/{job:int}/events', events),
  Route('/{name}', asset),
]


async def _explain(request: Request, error: Exception) -> Response:
  status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
  if isinstance(error, UnfamiliarError):
    text = f'{error.what}; masks of anything else cannot be trusted'
    return JSONResponse({'error': one_line(text), 'can_force': True}, status)
  return JSONResponse({'error': one_line(error)}, status)


async def _refuse(request: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  return JSONResponse({'error': f'{request.url.path}: {error.detail}'}, error.status_code)


async def _left(request: Request, error: Exception) -> Response:
  """Of whoever has gone while sending; nobody reads it."""
  return Response(status_code=499)


async def _fault(request: Request, error: Exception) -> Response:
  """A fault of this program, whose traceback the server prints."""
  return JSONResponse({'error': f'{type(error).__name__}: {one_line(error)}'}, 500)


def make_app(desk: Desk, on_start: Callable[[], object] = lambda: None) -> Starlette:
  """The app.

  Args:
    desk: what it works with.
    on_start: called when it is about to answer.
  """

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[None]:
    on_start()
    yield
    desk.stopping.set()

  app = Starlette(
    routes=ROUTES,
    exception_handlers={
      UserError: _explain,
      HTTPException: _refuse,
      ClientDisconnect: _left,
      Exception: _fault,
    },
    lifespan=lifespan,
  )
  app.router.redirect_slashes = False  # it would lead out of what is behind the token
  app.state.desk = desk
  return app
