"""The description of the JSON API: an OpenAPI 3.1 document."""

from typing import Any

from mome_jax import __version__
from mome_jax.serve import downloads

_TEXT = {'type': 'string'}
_YES_NO = {'type': 'boolean'}
_COUNT = {'type': 'integer', 'minimum': 0}
_TEXTS = {'type': 'array', 'items': _TEXT}


def _object(**properties: Any) -> dict[str, Any]:
  return {'type': 'object', 'properties': properties, 'required': list(properties)}


def _list(kind: str) -> dict[str, Any]:
  return {'type': 'array', 'items': _ref(kind)}


def _ref(kind: str) -> dict[str, Any]:
  return {'$ref': f'#/components/schemas/{kind}'}


SCHEMAS: dict[str, Any] = {
  'Error': {
    'type': 'object',
    'properties': {
      'error': {**_TEXT, 'description': 'One line: what is wrong, and the fix.'},
      'can_force': {**_YES_NO, 'description': 'Whether it is answered with "force": true.'},
    },
    'required': ['error'],
  },
  'Model': _object(
    version=_TEXT,
    checkpoint=_TEXT,
    step={'type': ['integer', 'null']},
    classes={'type': 'array', 'items': _object(name=_TEXT, synonyms=_TEXTS, experimental=_YES_NO)},
    inputs={**_TEXTS, 'description': 'Scans of the folder that the server was started with.'},
    max_upload_bytes=_COUNT,
  ),
  'Judgement': _object(
    name=_TEXT,
    prompt=_TEXT,
    taken_as={'enum': ['class', 'synonym', 'free']},
    verdict={'enum': ['known', 'near', 'unfamiliar']},
    familiarity={'type': 'number', 'minimum': 0, 'maximum': 1},
  ),
  'Scan': _object(
    scan=_COUNT,
    title=_TEXT,
    shape={'type': 'array', 'items': _COUNT},
    spacing_mm={'type': 'array', 'items': {'type': 'number'}},
    series_uid=_TEXT,
    warnings=_TEXTS,
    sets=_list('PromptSet'),
  ),
  'PromptSet': _object(
    set=_COUNT,
    scan=_COUNT,
    prompts=_TEXTS,
    force=_YES_NO,
    names={**_TEXTS, 'description': 'Of the masks.'},
    notes=_TEXTS,
    job=_COUNT,
    done=_YES_NO,
    labels={
      'type': 'array',
      'items': {'type': 'object'},
      'description': 'Of the masks that are finished, as in NAME_seg.json: volume_ml, mean_hu, ...',
    },
  ),
  'Job': _object(
    job=_COUNT,
    state={'enum': ['waiting', 'running', 'done', 'failed', 'cancelled']},
    stage=_TEXT,
    windows_done=_COUNT,
    windows=_COUNT,
    ready={**_TEXTS, 'description': 'Names of the masks that can be shown.'},
    message={**_TEXT, 'description': 'Why it failed.'},
    before={**_COUNT, 'description': 'Jobs that it waits for.'},
  ),
}


def _json(schema: dict[str, Any], text: str) -> dict[str, Any]:
  return {'description': text, 'content': {'application/json': {'schema': schema}}}


def _bytes(text: str, kind: str = 'application/octet-stream') -> dict[str, Any]:
  return {'description': text, 'content': {kind: {}}}


def _operation(summary: str, status: int, answer: dict[str, Any], **more: Any) -> dict[str, Any]:
  refused = _json(_ref('Error'), 'What is wrong, and the fix.')
  return {'summary': summary, **more, 'responses': {str(status): answer, '4XX': refused}}


def _sent(schema: dict[str, Any]) -> dict[str, Any]:
  return {'content': {'application/json': {'schema': schema}}}


def _parameter(name: str, schema: dict[str, Any], place: str = 'path') -> dict[str, Any]:
  return {'name': name, 'in': place, 'required': place == 'path', 'schema': schema}


_PROMPTS = {'anyOf': [_TEXT, _TEXTS, {'type': 'null'}],
            'description': 'Text with commas, or a list; null: all not experimental.'}  # fmt: skip
_SCAN = {
  'content': {
    'application/octet-stream': {
      'schema': {'description': 'NIfTI, a .zip of DICOM, or a .tar of the files of a series.'}
    },
    'application/json': {
      'schema': {**_object(input=_TEXT), 'description': 'One of the inputs of the model.'}
    },
  }
}


_FORCED = {'anyOf': [_YES_NO, _TEXTS],
           'description': 'Whether, or for which prompts, unfamiliar ones are asked for all the '
                          'same.'}  # fmt: skip
_ASKED = {'type': 'object', 'properties': {'prompts': _PROMPTS, 'force': _FORCED,
                                           'as_written': _YES_NO}}  # fmt: skip
_OPENED = _object(scans=_list('Scan'), problems=_TEXTS)
_GONE = {'description': 'Gone.'}


def _of_model() -> dict[str, dict[str, Any]]:
  return {
    '/api/openapi.json': {'get': _operation('This document', 200, _bytes('', 'application/json'))},
    '/api/model': {'get': _operation('The model and its classes', 200, _json(_ref('Model'), ''))},
    '/api/judge': {
      'post': _operation(
        'What prompts would be taken for, and whether the model knows them',
        200,
        _json(_object(prompts=_list('Judgement')), ''),
        requestBody=_sent(_object(prompts=_PROMPTS)),
      )
    },
  }


def _of_scans() -> dict[str, dict[str, Any]]:
  return {
    '/api/scans': {
      'get': _operation('Open scans', 200, _json(_object(scans=_list('Scan')), '')),
      'post': _operation(
        'Open a scan, or all series of an archive',
        201,
        _json(_OPENED, ''),
        requestBody=_SCAN,
        parameters=[_parameter('name', _TEXT, 'query')],
      ),
    },
    '/api/scans/{scan}': {
      'get': _operation('A scan', 200, _json(_ref('Scan'), '')),
      'delete': _operation('Close it', 204, _GONE),
    },
    '/api/scans/{scan}/image.nii.gz': {
      'get': _operation('It, in the voxels of the page', 200, _bytes('NIfTI', 'application/gzip'))
    },
    '/api/scans/{scan}/view': {
      'get': _operation('What the viewer is told of it', 200, _json({'type': 'object'}, ''))
    },
  }


def _of_prompts() -> dict[str, dict[str, Any]]:
  return {
    '/api/scans/{scan}/prompts': {
      'post': _operation(
        'Ask for masks',
        202,
        _json({'allOf': [_ref('PromptSet'), _ref('Job')]}, 'The set of prompts, and its job.'),
        requestBody=_sent(_ASKED),
      )
    },
    '/api/scans/{scan}/sets/{set}': {
      'get': _operation('A set of prompts', 200, _json(_ref('PromptSet'), '')),
      'delete': _operation('Forget it; its job is cancelled', 204, _GONE),
    },
    '/api/scans/{scan}/sets/{set}/view': {
      'get': _operation('What the viewer is told of the masks', 200, _json({'type': 'object'}, ''))
    },
    '/api/scans/{scan}/sets/{set}/routing': {
      'post': _operation('Find out which scale each class trusts', 202, _json(_ref('Job'), ''))
    },
    '/api/scans/{scan}/sets/{set}/masks/{name}': {
      'get': _operation('One mask', 200, _bytes("NIfTI, uint8, on the scan's own grid"))
    },
    '/api/scans/{scan}/sets/{set}/files/{kind}': {
      'get': _operation('A file, as predict writes it', 200, _bytes(', '.join(downloads.KINDS)))
    },
  }


def _of_jobs() -> dict[str, dict[str, Any]]:
  return {
    '/api/jobs/{job}': {
      'get': _operation('How far a job is', 200, _json(_ref('Job'), '')),
      'delete': _operation('Cancel it', 200, _json(_ref('Job'), '')),
    },
    '/api/jobs/{job}/events': {
      'get': _operation(
        'Its states until it is over', 200, _bytes('Each datum is a Job.', 'text/event-stream')
      )
    },
  }


def document() -> dict[str, Any]:
  """The document; paths are behind the address that the server prints."""
  paths = {**_of_model(), **_of_scans(), **_of_prompts(), **_of_jobs()}
  for path, operations in paths.items():
    names = [part[1:-1] for part in path.split('/') if part.startswith('{')]
    kinds: dict[str, Any] = {'name': _TEXT, 'kind': {'enum': list(downloads.KINDS)}}
    if names:
      operations['parameters'] = [_parameter(name, kinds.get(name, _COUNT)) for name in names]
  text = 'Text-prompted segmentation of CT. Research software, not a medical device.'
  return {
    'openapi': '3.1.0',
    'info': {'title': 'MoME-JAX', 'version': __version__, 'description': text},
    'servers': [{'url': '..'}],
    'paths': paths,
    'components': {'schemas': SCHEMAS},
  }
