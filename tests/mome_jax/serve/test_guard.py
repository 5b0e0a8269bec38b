"""Who may ask the server: this machine, with the token, and no page of another site."""

import desks
import pytest
from starlette.testclient import TestClient
from threshold import Threshold

from mome_jax.serve import command


@pytest.fixture(scope='module')
def app(tmp_path_factory):
  with desks.desk(Threshold(), tmp_path_factory.mktemp('temporary')) as desk:
    yield desks.guarded(desk)


def get(app, path=f'/{desks.TOKEN}/api/scans', method='GET', **headers):
  client = TestClient(app, base_url=f'http://{desks.HOST}')
  return client.request(method, path, headers={k.replace('_', '-'): v for k, v in headers.items()})


def test_it_answers_itself(app):
  assert get(app).json() == {'scans': []}
  assert get(app, origin=f'http://{desks.HOST}', sec_fetch_site='same-origin').status_code == 200
  assert get(app, sec_fetch_site='none').status_code == 200  # typed into the browser


@pytest.mark.parametrize(
  'path', ['/', '/api/scans', '/wrong/api/scans', '//', '*', f'/{desks.TOKEN}x/']
)
def test_without_the_token_there_is_nothing(app, path):
  answer = get(app, path)
  assert answer.status_code == 404 and 'address' in answer.json()['error']


@pytest.mark.parametrize(
  'headers',
  [
    {'host': 'evil.example:8000'},  # a name of another site that points here
    {'host': '127.0.0.1:8001'},
    {'host': ''},
    {'origin': 'http://evil.example'},
    {'origin': f'https://{desks.HOST}'},
    {'origin': 'null'},
    {'sec_fetch_site': 'cross-site'},
    {'sec_fetch_site': 'same-site'},  # another port of this machine
  ],
)
@pytest.mark.parametrize('method', ['GET', 'POST', 'OPTIONS'])
def test_other_names_and_pages_of_others_are_refused(app, headers, method):
  answer = get(app, method=method, **headers)
  assert answer.status_code == 403
  assert not [name for name in answer.headers if name.startswith('access-control')]


def test_a_link_elsewhere_leads_to_the_page_alone(app):
  link = {
    'sec_fetch_site': 'cross-site',
    'sec_fetch_mode': 'navigate',
    'sec_fetch_dest': 'document',
  }
  for path in (f'/{desks.TOKEN}/', f'/{desks.TOKEN}'):
    assert get(app, path, **link).text.startswith('<!DOCTYPE html>')
  assert get(app, '/wrong/', **link).status_code == 404
  assert get(app, f'/{desks.TOKEN}/api/scans', **link).status_code == 403
  for refused in ({'sec_fetch_dest': 'iframe'}, {'sec_fetch_mode': 'cors'}, {'origin': 'null'}):
    assert get(app, f'/{desks.TOKEN}/', **{**link, **refused}).status_code == 403
  assert get(app, f'/{desks.TOKEN}/', 'POST', **link).status_code == 403


def test_the_address_without_its_last_slash_leads_to_the_page(app):
  client = TestClient(app, base_url=f'http://{desks.HOST}', follow_redirects=False)
  answer = client.get(f'/{desks.TOKEN}')
  assert (answer.status_code, answer.headers['location']) == (307, f'/{desks.TOKEN}/')
  assert get(app, f'/{desks.TOKEN}').text.startswith('<!DOCTYPE html>')


def test_every_answer_carries_the_policy(app):
  for path in (f'/{desks.TOKEN}/', f'/{desks.TOKEN}/api/nothing', '/'):
    headers = get(app, path).headers
    policy = headers['content-security-policy']
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert headers['referrer-policy'] == 'no-referrer' and headers['cache-control'] == 'no-store'
    assert headers['x-content-type-options'] == 'nosniff'


@pytest.mark.parametrize(('port', 'status'), [(80, 200), (8080, 403)])
def test_browsers_leave_out_the_port_of_http(port, status, tmp_path):
  with desks.desk(Threshold(), tmp_path) as desk:
    app = desks.guarded(desk, command.hosts(port))
    for name in ('127.0.0.1', 'localhost'):
      assert get(app, host=name, origin=f'http://{name}').status_code == status
      assert get(app, host=f'{name}:{port}').status_code == 200
