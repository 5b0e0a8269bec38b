"""Saving, resuming and loading: Orbax lives here and nowhere else."""

from mome_jax.checkpoint.ensemble import expand, members, write_members
from mome_jax.checkpoint.errors import CheckpointError
from mome_jax.checkpoint.files import (
  BEST,
  CONFIG,
  LAST,
  TEXT_VECTORS,
  TOKENIZER,
  locate,
  own_folder,
  results_of,
)
from mome_jax.checkpoint.model_folder import (
  TrainedModel,
  check_fit,
  folder_of,
  initialise,
  load_config,
  load_model,
  new_folder,
  save_description,
  save_model,
  text_file,
)
from mome_jax.checkpoint.resume import Checkpointer, read_position
from mome_jax.checkpoint.same_run import (
  MAY_CHANGE,
  check_same_data,
  check_same_run,
  config_changes,
  for_evaluation,
  goes_on,
  other_values,
)
from mome_jax.checkpoint.text_encoder import (
  fit_text,
  has_text_encoder,
  load_text_encoder,
  text_sizes,
)

__all__ = [
  'BEST',
  'CONFIG',
  'LAST',
  'MAY_CHANGE',
  'TEXT_VECTORS',
  'TOKENIZER',
  'CheckpointError',
  'Checkpointer',
  'TrainedModel',
  'check_fit',
  'check_same_data',
  'check_same_run',
  'config_changes',
  'expand',
  'fit_text',
  'folder_of',
  'for_evaluation',
  'goes_on',
  'has_text_encoder',
  'initialise',
  'load_config',
  'load_model',
  'load_text_encoder',
  'locate',
  'members',
  'new_folder',
  'other_values',
  'own_folder',
  'read_position',
  'results_of',
  'save_description',
  'save_model',
  'text_file',
  'text_sizes',
  'write_members',
]
