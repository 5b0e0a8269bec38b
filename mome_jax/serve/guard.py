"""Who may ask: requests to this machine's own address, with the token, from no other web page.

A page of another site that a user has open can send requests to any port of the machine, also under
a name of its own that it has pointed there. So the token in the address, the name that was asked
for and the page that asks are all looked at. A link from anywhere may open the page, if it holds
the token.
"""

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: "
  "blob:; connect-src 'self' data: blob:; font-src data:; frame-src 'self'; frame-ancestors "
  "'self'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
  'content-security-policy': POLICY,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',  # the address holds the token
  'cross-origin-resource-policy': 'same-origin',
  'cross-origin-opener-policy': 'same-origin',
  'cache-control': 'no-store',
}


class Guard:
  """Lets a request pass to an app whose paths begin behind the token, or refuses it.

  Args:
    app: that answers.
    token: first part of every path.
    hosts: names and port that this server is asked for as, such as '127.0.0.1:8000'.
  """

  def __init__(self, app: ASGIApp, token: str, hosts: Collection[str]):
    self._app = app
    self._token = token
    self._hosts = frozenset(hosts)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] == 'lifespan':
      await self._app(scope, receive, send)
      return

    async def with_headers(message: Message) -> None:
      if message['type'] == 'http.response.start':
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
          headers[name] = value
      await send(message)

    refusal = self._refusal(scope)
    if refusal is not None:
      await refusal(scope, receive, with_headers)
      return
    if scope['path'] == f'/{self._token}':  # addresses in the page begin at its last slash
      await RedirectResponse(f'/{self._token}/')(scope, receive, with_headers)
      return
    inside = {**scope, 'path': scope['path'].removeprefix(f'/{self._token}'), 'root_path': ''}
    await self._app(inside, receive, with_headers)

  def _refusal(self, scope: Scope) -> JSONResponse | None:
    headers = Headers(scope=scope)
    host = headers.get('host', '')
    if host not in self._hosts:
      return _no(403, f'asked for as {host!r}; this server answers on {min(self._hosts)} alone')
    origin = headers.get('origin')
    if origin is not None and origin.removeprefix('http://') not in self._hosts:
      return _no(403, f'a page of {origin} asks; pages of this server may alone')
    first, _, inside = scope['path'].removeprefix('/').partition('/')
    is_alien = headers.get('sec-fetch-site', 'same-origin') not in ('same-origin', 'none')
    if is_alien and (inside or not _is_link(scope, headers)):
      return _no(403, 'a page of another site asks; pages of this server may alone')
    if not secrets.compare_digest(first.encode(), self._token.encode()):
      return _no(404, 'no such address; use the whole one that the command printed')
    return None


def _is_link(scope: Scope, headers: Headers) -> bool:
  """Whether a link elsewhere, as in the file of --open, is followed: its page sees no answer."""
  kind = headers.get('sec-fetch-mode'), headers.get('sec-fetch-dest')
  return scope['method'] == 'GET' and kind == ('navigate', 'document')


def _no(status: int, text: str) -> JSONResponse:
  return JSONResponse({'error': text}, status)
