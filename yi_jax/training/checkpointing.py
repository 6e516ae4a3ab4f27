"""Checkpoints: the training state on disk, and the way back.

  WORKDIR/checkpoints/STEP/
    params/     the parameter tree, float32, as any tool of Orbax reads it
    progress/   the rest of the state: step, AdamW's moments, the guard
    manifest/   JSON: what the run was and how much data it has read

Orbax writes in the background into a temporary folder and renames it when all
is there, so a folder with a number for a name is whole; older ones go only
after that. Restoring puts each array where this run wants it, whatever the
mesh was that wrote it.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from yi_jax.models import config as model_config
from yi_jax.models import layout, lora, transformer
from yi_jax.sharding import rules
from yi_jax.training import state as train_state

FORMAT = 1  # raised when an older reader could no longer make sense of it


class NewerFormat(ValueError):
  """The checkpoint is not damaged, this code is too old for it."""


class Checkpointer:
  """Saves and restores the state of one workdir."""

  def __init__(self, workdir: str, keep: int) -> None:
    """Opens, or makes, WORKDIR/checkpoints.

    Args:
      workdir: absolute path or URL.
      keep: newest checkpoints that stay.
    """
    self._folder = epath.Path(workdir) / 'checkpoints'
    self._keep = keep
    # What fails in the background is raised here, as one sentence.
    logging.getLogger('absl').addFilter(_not_orbax)
    self._manager = self._open()
    self._trouble = ''  # with the newest save

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=self._keep,
        enable_async_checkpointing=True,
        # Halves that a killed process has left: nobody else is at work here.
        cleanup_tmp_directories=True,
      ),
    )

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def newest_manifest(self) -> dict[str, Any]:
    """Returns the newest readable manifest; see `newest`."""
    return newest_manifest(str(self._folder.parent))

  def save(
    self, step: int, state: train_state.TrainState, manifest: dict[str, Any]
  ) -> str:
    """Starts to write a checkpoint; the state may be donated right after.

    Args:
      step: updates made; names the folder.
      state: the state.
      manifest: see `manifest`.

    Returns:
      What went wrong with the one before, or already with this one; '' for
      nothing. Those that were complete stay as they are.
    """
    complaint = self._settle()
    parts = _parts(state)
    manifest = {**manifest, 'digests': _digests(parts)}
    self._trouble = ''
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(
            parts['params'],
            save_args=_chunks(parts['params'], manifest['layout']),
          ),
          progress=ocp.args.StandardSave(parts['progress']),
          manifest=ocp.args.JsonSave(manifest),
        ),
      )
    except Exception as error:  # whatever the storage library throws
      self._trouble = self._failed(error)
      self._reopen()
    return '; '.join(filter(None, (complaint, self._trouble)))

  def wait(self) -> None:
    """Returns when the newest save is on disk.

    Raises:
      OSError: if it could not be written.
    """
    self._settle()
    if self._trouble:
      raise OSError(
        f'{self._trouble}. Make room and run the same command to continue '
        'from there'
      )

  def restore(
    self, abstract: train_state.TrainState
  ) -> tuple[train_state.TrainState, dict[str, Any], list[str]] | None:
    """Restores the newest checkpoint that can be read.

    A damaged one is moved to WORKDIR/damaged, so that its step can be written
    again, and the one before is taken.

    Args:
      abstract: shapes, types and shardings of the state.

    Returns:
      (state, manifest, what was wrong with newer ones), or None if there is no
      checkpoint.

    Raises:
      OSError: if there are checkpoints but none can be read.
    """
    complaints = []
    for step in reversed(self.steps()):
      folder = self._folder / str(step)
      try:
        manifest = read_manifest(folder)
        state = _restore_state(folder, abstract, manifest)
      except (NewerFormat, MemoryError, PermissionError):
        raise
      except Exception as error:  # whatever the storage library throws
        if 'RESOURCE_EXHAUSTED' in str(error):
          raise  # too little memory here: nothing is wrong with the file
        complaints.append(
          f'checkpoint {step} cannot be read ({_first_line(error)})'
        )
        continue
      self._set_aside([s for s in self.steps() if s > step])
      return state, manifest, complaints
    if complaints:
      raise OSError(
        f'no checkpoint in {self._folder} can be read: '
        + '; '.join(complaints)
        + '. Restore a copy, or start again in another --workdir'
      )
    return None

  def forget_after(self, step: int) -> None:
    """Removes the checkpoints of later steps."""
    self._settle()
    for later in [s for s in self.steps() if s > step]:
      self._manager.delete(later)

  def close(self) -> None:
    """Waits for writing to end and lets go of the folder.

    Raises:
      OSError: as `wait`.
    """
    try:
      self.wait()
    finally:
      self._manager.close()

  def _settle(self) -> str:
    """Waits for what is being written; returns what went wrong, or ''."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # whatever the storage library throws
      self._trouble = self._failed(error)
      self._reopen()
      return self._trouble
    return ''

  def _reopen(self) -> None:
    """Takes another manager: one that has failed remembers it."""
    with contextlib.suppress(Exception):
      self._manager.close()
    self._manager = self._open()

  def _set_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    self._manager.close()
    for step in steps if jax.process_index() == 0 else []:
      place = self._folder.parent / 'damaged' / str(step)
      while place.exists():  # an earlier one is kept too
        place = place.with_name(f'{place.name}-again')
      place.parent.mkdir(parents=True, exist_ok=True)
      (self._folder / str(step)).rename(place)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('damaged checkpoints set aside')
    self._manager = self._open()

  def _failed(self, error: Exception) -> str:
    """Says what it means that a checkpoint could not be written."""
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    full |= any(
      word in str(error) for word in ('No space left', 'RESOURCE_EXHAUSTED')
    )
    reason = 'the disk is full' if full else _first_line(error)
    kept = ', '.join(map(str, _steps(self._folder))) or 'none'
    return (
      f'a checkpoint could not be written to {self._folder}: {reason}. '
      f'Complete checkpoints: {kept}'
    )


def manifest(
  *,
  identity: dict[str, Any],
  model: model_config.ModelConfig,
  vocabulary_hash: str,
  rows_consumed: int,
  rates: dict[str, float],
  rows: dict[str, str],
  seconds: float,
  tokens_consumed: int | None = None,
  growth: dict[str, Any] | None = None,
  skipped_rows: Sequence[tuple[int, int, int]] = (),
) -> dict[str, Any]:
  """Returns what a checkpoint says about itself: JSON types only.

  Args:
    identity: the run, see `run_identity.identity`.
    model: the model.
    vocabulary_hash: of the vocabulary the tokens came from.
    rows_consumed: global rows read, were they all as long as the next one;
      with the seed, the place in the data.
    rates: task -> rate of the mixture.
    rows: task -> hash of all that made its rows.
    seconds: time spent on the run until now.
    tokens_consumed: global tokens read, if rows are of several lengths.
    growth: what the growth of the batch remembers, see `plateau.State`.
    skipped_rows: rows (first, end, their length) of the order that the run has
      left out and does not count, see `loader.Loader`.
  """
  return {
    'format': FORMAT,
    'run': identity,
    'model': json.loads(json.dumps(model.to_dict())),
    'layout': 'scanned' if model.scan_layers else 'unrolled',
    'vocabulary_hash': vocabulary_hash,
    'rows_consumed': rows_consumed,
    'rates': dict(rates),
    'rows': dict(rows),
    'seconds': seconds,
    'skipped_rows': [list(rows) for rows in skipped_rows],
    **({} if tokens_consumed is None else {'tokens_consumed': tokens_consumed}),
    **({} if growth is None else {'growth': growth}),
    'versions': {
      'jax': jax.__version__,
      'orbax': ocp.__version__,
      'python': platform.python_version(),
    },
  }


def read_manifest(folder: epath.Path) -> dict[str, Any]:
  """Returns the manifest of one checkpoint folder.

  Raises:
    OSError: if it is not there.
    ValueError: if it is damaged.
    NewerFormat: if it is whole, but for a newer version.
  """
  text = (folder / 'manifest' / 'metadata').read_text()
  found = json.loads(text)
  if found['format'] > FORMAT:
    raise NewerFormat(
      f'{folder} has checkpoint format {found["format"]}; this version of '
      f'yi_jax reads up to {FORMAT}'
    )
  return found


def refuse_other_vocabulary(manifest: dict[str, Any], now: str) -> None:
  """Raises ValueError if a checkpoint's tokens mean something else here.

  Args:
    manifest: of the checkpoint.
    now: hash of the vocabulary in use.
  """
  if manifest['vocabulary_hash'] != now:
    raise ValueError(
      'the checkpoint was trained with another vocabulary (hash '
      f'{manifest["vocabulary_hash"][:12]}, not {now[:12]}): its token ids '
      'mean other text. Set data.vocabulary to the one it was trained with'
    )


def refuse_other_data(
  manifest: dict[str, Any], rates: dict[str, float], rows: dict[str, str]
) -> None:
  """Raises ValueError if the rows of a run, or their order, have changed.

  Args:
    manifest: of the checkpoint.
    rates: task -> rate now.
    rows: task -> hash of all that made its rows, now.
  """
  for what, saved, now in (
    ('rate', manifest['rates'], rates),
    ('text', manifest['rows'], rows),
  ):
    for task in sorted(saved.keys() | now.keys()):
      if saved.get(task) != now.get(task):
        raise ValueError(
          f'the {what} of {task} has changed since the checkpoint: '
          f'{saved.get(task, "absent")} there, {now.get(task, "absent")} here. '
          'Its rows would come in another order; prepare the data as it was, '
          'or start another --workdir with init_from'
        )


def refuse_other_weights(
  manifest: dict[str, Any], config: model_config.ModelConfig
) -> None:
  """Raises ValueError, naming a parameter, if weights do not fit a model.

  Args:
    manifest: of the checkpoint the weights are in.
    config: of the model that shall take them.
  """
  found = model_config.ModelConfig.from_dict(manifest['model'])
  theirs, ours = _shapes(found), _shapes(config)
  for name in sorted(theirs.keys() | ours.keys()):
    if theirs.get(name) != ours.get(name):
      raise ValueError(
        f'the checkpoint does not fit the model: {name} is '
        f'{theirs.get(name, "absent")} there and {ours.get(name, "absent")} '
        'here; model.preset and model.overrides say what is here'
      )


def _shapes(config: model_config.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of the parameters, unrolled, without adapters."""
  config = config.replace(lora=None)
  params = jax.eval_shape(
    lambda params: layout.unroll(config, params)[1],
    transformer.abstract_params(config),
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def newest_manifest(workdir: str) -> dict[str, Any]:
  """Returns the newest readable manifest of a workdir; see `newest`."""
  return newest(workdir)[1]


def newest(workdir: str) -> tuple[int, dict[str, Any]]:
  """Returns step and manifest of the newest checkpoint that has a readable one.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    OSError: if there are some, but no manifest can be read.
  """
  folder = epath.Path(workdir) / 'checkpoints'
  complaints = []
  for step in reversed(_steps(folder)):
    try:
      return step, read_manifest(folder / str(step))
    except NewerFormat:
      raise
    except (OSError, ValueError, KeyError, TypeError) as error:
      complaints.append(f'{step} ({_first_line(error)})')
  if complaints:
    raise OSError(
      f'no manifest in {folder} can be read: {"; ".join(complaints)}. Restore '
      'a copy, or start again in another --workdir'
    )
  raise FileNotFoundError(f'no checkpoint in {folder}')


def load_params(
  workdir: str,
  step: int | None = None,
  shardings: Any = None,
) -> tuple[model_config.ModelConfig, dict[str, Any], dict[str, Any]]:
  """Loads the parameters of a run, without its optimizer.

  Args:
    workdir: of a training run.
    step: which checkpoint; None takes the newest that can be read.
    shardings: where to put each array, a tree as that of the manifest's model;
      None puts all on the first local device.

  Returns:
    (model config, nested dict of float32 arrays, manifest). Adapters are added
    to the kernels they are for.

  Raises:
    FileNotFoundError: if there is no such checkpoint.
    OSError: if it cannot be read.
  """
  folder = epath.Path(workdir) / 'checkpoints'
  steps = _steps(folder)
  if not steps or (step is not None and step not in steps):
    what = 'checkpoint' if step is None else f'checkpoint {step}'
    there = f' (there are: {steps})' if steps else ''
    raise FileNotFoundError(f'no {what} in {folder}{there}')
  complaints = []
  for candidate in [step] if step is not None else reversed(steps):
    try:
      found = read_manifest(folder / str(candidate))
      config = model_config.ModelConfig.from_dict(found['model'])
      params = _restore_params(
        folder / str(candidate), config, shardings, found
      )
    except NewerFormat:
      raise
    except Exception as error:  # whatever the storage library throws
      complaints.append(f'{candidate} ({_first_line(error)})')
      continue
    for complaint in complaints:
      logging.warning('skipped damaged checkpoint %s', complaint)
    return config.replace(lora=None), lora.fold(params, config.lora), found
  raise OSError(
    f'no checkpoint in {folder} can be read: {"; ".join(complaints)}'
  )


def load_into(
  workdir: str, config: model_config.ModelConfig, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Loads the newest parameters of another run as those of a model.

  Args:
    workdir: of the other run; its layers may be stacked where these are not.
    config: the model here.
    mesh: where the parameters shall be.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    OSError: if none can be read.
    ValueError: if the weights do not fit, naming one.
  """
  manifest = newest_manifest(workdir)
  refuse_other_weights(manifest, config)
  found = model_config.ModelConfig.from_dict(manifest['model'])
  theirs, ours = (
    rules.shardings(
      mesh, transformer.param_axes(c), transformer.abstract_params(c)
    )
    for c in (found, config)
  )
  _, params, _ = load_params(workdir, shardings=theirs)
  if found.scan_layers == config.scan_layers:
    return params if found.lora is None else jax.device_put(params, ours)
  found = found.replace(lora=None)
  change = layout.stack if config.scan_layers else layout.unroll
  return jax.jit(lambda p: change(found, p)[1], out_shardings=ours)(params)


def _steps(folder: epath.Path) -> list[int]:
  """Returns the steps of the checkpoints in a folder, oldest first."""
  if not folder.exists():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _restore_params(
  folder: epath.Path,
  config: model_config.ModelConfig,
  shardings: Any,
  manifest: dict[str, Any],
) -> dict[str, Any]:
  """Restores the params item alone."""
  shapes = transformer.abstract_params(config)
  if shardings is None:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: here, shapes)
  target = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    shardings,
  )
  return _read(folder, {'params': target}, manifest)['params']


def _restore_state(
  folder: epath.Path,
  abstract: train_state.TrainState,
  manifest: dict[str, Any],
) -> train_state.TrainState:
  parts = _read(folder, _parts(abstract), manifest)
  return train_state.TrainState(params=parts['params'], **parts['progress'])


def _read(
  folder: epath.Path, targets: dict[str, Any], manifest: dict[str, Any]
) -> dict[str, Any]:
  """Restores some parts of a checkpoint and compares their digests."""
  parts = {}
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
    for name, target in targets.items():
      parts[name] = reader.restore(
        folder / name, args=ocp.args.StandardRestore(target)
      )
  for name, digest in _digests(parts).items():
    if digest != manifest['digests'][name]:
      raise ValueError(f'the numbers in {name} are not those that were saved')
  return parts


def _digests(parts: dict[str, Any]) -> dict[str, int]:
  """Returns a number for each part; see `_digest` for what it notices."""
  return {name: int(_digest(tree)) for name, tree in parts.items()}


@jax.jit
def _digest(tree: Any) -> jax.Array:
  """Adds up the bits of all arrays, as integers.

  The storage notices what is missing but not what has changed. Such a sum
  changes whenever one number does. It does not notice numbers that change
  places, nor changes that cancel out: it must not depend on how arrays are cut
  over devices, nor on whether layers are stacked.
  """
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(tree):
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, kind)
    total += jnp.sum(bits, dtype=jnp.uint32)
  return total


def digest_of_floats(numbers: np.ndarray) -> int:
  """Returns `_digest` of an array as float32, without a device.

  Parameters are restored as float32, whatever type they are stored in.
  """
  # Sums that wrap around, as narrow as they may be, take a tenth of the time.
  if numbers.dtype.name == 'bfloat16':  # the upper half of a float32
    return int(numbers.view(np.uint16).sum(dtype=np.uint16)) * 2**16
  bits = numbers.astype(np.float32, copy=False).view(np.uint32)
  return int(bits.sum(dtype=np.uint32))


def _parts(state: train_state.TrainState) -> dict[str, Any]:
  fields = {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
  }
  params = fields.pop('params')
  return {'params': params, 'progress': fields}


def _chunks(params: dict[str, Any], layout_name: str) -> dict[str, Any]:
  """Returns how the parameters are cut on disk: stacked ones layer by layer.

  So they can be exported layer by layer, whatever their size.
  """
  whole, layers = ocp.SaveArgs(), ocp.SaveArgs(shard_axes=(0,))
  cuts = jax.tree.map(lambda _: whole, params)
  if layout_name == 'scanned':
    cuts['layers'] = jax.tree.map(lambda _: layers, params['layers'])
  return cuts


def _not_orbax(record: logging.LogRecord) -> bool:
  return 'orbax' not in record.pathname


def _first_line(error: BaseException) -> str:
  text = str(error).strip().splitlines() or [type(error).__name__]
  return text[0][:200]
