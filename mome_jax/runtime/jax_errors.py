"""What an error of JAX means, by its words: all of them are of two classes."""

import re

import jax

from mome_jax.errors import UserError

# Of a program that was running, and, as its caller meets it at once, of its start.
KINDS = jax.errors.JaxRuntimeError, ValueError
# What exchanges arrays, Gloo or NCCL, and what keeps processes together say where one is gone.
_EXCHANGE = re.compile(
  'gloo|nccl|rccl|coordination service|heartbeat|barrier (timed out|failed)|rendezvous',
  re.IGNORECASE,
)
# What gRPC and TPUs say; but as a ValueError it is TensorStore that does not reach a bucket.
_NETWORK = re.compile(
  '^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED):|(connection|socket) (closed|reset|refused)',
  re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
  """Whether XLA says that devices have too little memory, as it runs a program or compiles it."""
  return _is_of_jax(error) and str(error).startswith('RESOURCE_EXHAUSTED')


def is_lost_process(error: BaseException) -> bool:
  """Whether another process of the run is gone or out of reach: this one has no fault."""
  if jax.process_count() == 1 or not _is_of_jax(error) or is_out_of_memory(error):
    return False
  said = _NETWORK.search(str(error)) if isinstance(error, jax.errors.JaxRuntimeError) else None
  return bool(said or _EXCHANGE.search(str(error)))


def _is_of_jax(error: BaseException) -> bool:
  """Whether it begins with a status, as INTERNAL: does, and is not TensorStore's of its files."""
  if not isinstance(error, KINDS) or isinstance(error, UserError):
    return False
  return re.match('[A-Z_]+: (?!Error (opening|reading|writing) )', str(error)) is not None
