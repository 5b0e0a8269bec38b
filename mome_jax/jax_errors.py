"""What an error of JAX means, by its words: all of them are of one class."""

import re

import jax

# What the coordination service, gRPC, and Gloo or NCCL say where another process is gone.
_LOST = re.compile(
  '^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED):|gloo|nccl|rccl|coordination service'
  '|heartbeat|barrier (timed out|failed)|rendezvous|(connection|socket) (closed|reset|refused)',
  re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
  """Whether XLA says that devices have too little memory, as it runs a program or compiles it."""
  ours = isinstance(error, jax.errors.JaxRuntimeError)
  return ours and str(error).startswith('RESOURCE_EXHAUSTED')


def is_lost_process(error: BaseException) -> bool:
  """Whether another process of the run is gone or out of reach: this one has no fault."""
  if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1:
    return False
  return not is_out_of_memory(error) and _LOST.search(str(error)) is not None
