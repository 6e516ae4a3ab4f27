"""Converts checkpoints: Hugging Face, GGUF and workdirs of ours.

Tensors go from file to file one by one, so that a model larger than the memory
can be converted. The target appears when it is whole; a conversion that was
killed is started again with the same command.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
from absl import flags

from yi_jax import app, paths
from yi_jax.checkpoints import (
  companions,
  gguf,
  hf,
  lazy,
  transformers_logits,
)
from yi_jax.data import atomic, progress
from yi_jax.extension import depth_upscale
from yi_jax.models import config as model_config
from yi_jax.training import checkpointing, weights

FLAGS = flags.FlagValues()
_SOURCE = flags.DEFINE_string(
  'source',
  None,
  'checkpoint to read: a folder with config.json, a .gguf file, or a workdir',
  flag_values=FLAGS,
)
_TARGET = flags.DEFINE_string(
  'target', None, 'folder to write; it may not be there', flag_values=FLAGS
)
_TO = flags.DEFINE_enum(
  'to',
  None,
  ['hf', 'orbax'],
  'hf: a folder that LLaMA tools read; orbax: a workdir. Default: hf from a '
  'workdir, orbax from the others',
  flag_values=FLAGS,
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  lazy.DTYPES,
  'type of the weights; default: as in the source',
  flag_values=FLAGS,
)
_LAYOUT = flags.DEFINE_enum(
  'layout',
  None,
  ['scanned', 'unrolled'],
  'layers of a workdir, stacked or apart; default: as in the source workdir, '
  'else scanned',
  flag_values=FLAGS,
)
_LAYERS = flags.DEFINE_string(
  'layers',
  None,
  'layers of the target, as slices of those of the source: 0:28,12:32 says '
  'layers 12 to 27 twice, which made Yi-9B of Yi-6B',
  flag_values=FLAGS,
)
_STEP = flags.DEFINE_integer(
  'step',
  None,
  'which checkpoint of a workdir; default: the newest',
  flag_values=FLAGS,
)
_SHARD = flags.DEFINE_float(
  'shard_gigabytes',
  hf.SHARD_BYTES / 1e9,
  'size that a file of the hf target shall not exceed, in 10^9 bytes',
  flag_values=FLAGS,
)
_VERIFY = flags.DEFINE_bool(
  'verify',
  False,
  'read the target again and compare every tensor; refuse NaN and infinity',
  flag_values=FLAGS,
)
_VERIFY_LOGITS = flags.DEFINE_bool(
  'verify_logits',
  False,
  'compare logits with those of transformers on the hf side; holds the model '
  'twice in float32',
  flag_values=FLAGS,
)

_NOTE = 'conversion.json'  # in the target: what it was made from


@dataclasses.dataclass(frozen=True)
class Source:
  """An opened checkpoint.

  Attributes:
    kind: 'hf', 'gguf' or 'orbax'.
    config: the model.
    tree: its parameters, still in the file.
    files: what they are read from.
    words: what `companions.put` takes: a folder, a tokenizer or None.
    vocabulary_hash: of the tokenizer, '' if it is not known.
    digest: of the parameters, if the checkpoint says so.
    remarks: what the user should know.
  """

  kind: str
  config: model_config.ModelConfig
  tree: lazy.LazyTree
  files: list[pathlib.Path]
  words: Any
  vocabulary_hash: str
  digest: int | None
  remarks: list[str]


def main() -> None:
  """Converts what the flags name."""
  if not _SOURCE.value or not _TARGET.value:
    raise ValueError('give --source and --target')
  for name, value in (('source', _SOURCE.value), ('target', _TARGET.value)):
    if '://' in value:
      raise ValueError(
        f'--{name}={value}: convert works on local folders; copy the checkpoint '
        'to one'
      )
  path = pathlib.Path(paths.in_caller(_SOURCE.value))
  target = pathlib.Path(paths.in_caller(_TARGET.value))
  source = open_source(path, _STEP.value)
  for remark in source.remarks:
    print(f'warning: {remark}', file=sys.stderr)
  plan = Plan(
    to=_TO.value or ('hf' if source.kind == 'orbax' else 'orbax'),
    dtype=_DTYPE.value,
    layout=_LAYOUT.value,
    layers=_LAYERS.value,
    shard_gigabytes=_SHARD.value,
    verify=_VERIFY.value,
    verify_logits=_VERIFY_LOGITS.value,
  )
  convert(source, path, target, plan)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the flags ask for; see their help."""

  to: str
  dtype: str | None = None
  layout: str | None = None
  layers: str | None = None
  shard_gigabytes: float = hf.SHARD_BYTES / 1e9
  verify: bool = False
  verify_logits: bool = False


def convert(
  source: Source, path: pathlib.Path, target: pathlib.Path, plan: Plan
) -> None:
  """Writes a checkpoint in another form; whole or not at all.

  Args:
    source: the opened checkpoint.
    path: where it is.
    target: the folder to write, absolute.
    plan: what to write.

  Raises:
    FileExistsError: if something else is there.
    OSError: if something cannot be read or written.
    ValueError: if the target cannot hold this model, or verifying fails.
  """
  _check(source, plan)
  digests, tree = [], source.tree
  # Layers that are read twice, or never, have another sum.
  digest = None if plan.layers else source.digest
  if digest is not None:
    tree = lazy.watch(
      tree, lambda x: digests.append(checkpointing.digest_of_floats(x))
    )
  config, tree = _changed(source.config, tree, plan)
  size = sum(leaf.nbytes for _, leaf in lazy.leaves(tree))
  note = _note(source, path, plan, config)
  lock = target.with_name(f'.{target.name}.lock')
  with (
    progress.explain_full_disk(target.parent),
    atomic.locked(lock, remove=True),
  ):
    if target.exists():
      _refuse_other(target, note)
      progress.tell('convert', f'{target} is there already, from this source')
      _verify(source, path, target, plan)
      return
    free = shutil.disk_usage(target.parent).free
    if free < size:
      raise OSError(
        f'{target} would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are '
        'free there; make room or choose another --target'
      )
    with atomic.new_folder(target) as folder:
      bar = progress.Bar('convert', size)
      tree = lazy.watch(tree, lambda x: bar.add(x.nbytes))
      if plan.to == 'hf':
        hf.write(
          folder,
          config,
          tree,
          source.words,
          shard_bytes=int(plan.shard_gigabytes * 1e9),
        )
      else:
        companions.put(source.words, folder)
        weights.save(
          folder,
          config,
          tree,
          vocabulary_hash=source.vocabulary_hash,
          origin={'converted_from': note},
        )
      bar.end()
      if digest not in (None, sum(digests) % 2**32):
        raise OSError(
          f'the numbers in {path} are not those that were saved: the checkpoint '
          'is damaged. Restore a copy, or take another --step'
        )
      companions.write_json(folder / _NOTE, note)
      _verify(source, path, folder, plan)
  progress.tell('convert', f'wrote {target}')


def open_source(path: pathlib.Path, step: int | None = None) -> Source:
  """Opens a checkpoint of any kind that is read.

  Args:
    path: absolute.
    step: of a workdir; None takes the newest checkpoint.

  Raises:
    OSError: if there is none, or files are missing or cut off.
    ValueError: if it is of another architecture or damaged, naming the key or
      tensor.
  """
  if step is not None and not (path / 'checkpoints').is_dir():
    raise ValueError(f'--step is of a workdir, and {path} is none')
  if path.suffix == '.gguf':
    config, tree = gguf.open_checkpoint(path)
    return _with_words(path, 'gguf', config, tree, [path])
  if hf.is_checkpoint(path):
    config, tree = hf.open_checkpoint(path)
    files = [path / 'config.json', *hf.weight_files(path)]
    return _with_words(path, 'hf', config, tree, files)
  if (path / 'checkpoints').is_dir():
    return _open_workdir(path, step)
  raise FileNotFoundError(
    f'no checkpoint: {path} has neither config.json (Hugging Face) nor '
    'checkpoints/ (a workdir), and is no .gguf file'
  )


def _with_words(
  path: pathlib.Path,
  kind: str,
  config: model_config.ModelConfig,
  tree: lazy.LazyTree,
  files: list[pathlib.Path],
) -> Source:
  """Returns a source whose tokenizer is beside, or in, its weights."""
  words, reason = companions.open_tokenizer(path)
  remarks = [] if words else [f'the tokenizer cannot be read: {reason}']
  if words and words.size > config.vocab_size:
    remarks.append(
      f'the tokenizer has {words.size:,} tokens, the embedding '
      f'{config.vocab_size:,} rows: the last {words.size - config.vocab_size:,} '
      'can be neither read nor written'
    )
  return Source(
    kind=kind,
    config=config,
    tree=tree,
    files=files,
    words=path if path.is_dir() else words,
    vocabulary_hash=words.hash if words else '',
    digest=None,
    remarks=remarks,
  )


def _open_workdir(path: pathlib.Path, step: int | None) -> Source:
  """Opens a run, or an imported checkpoint."""
  if step is None:
    step, _ = checkpointing.newest(str(path))
  config, tree, manifest = weights.open_checkpoint(str(path), step)
  folder = path / 'checkpoints' / str(step)
  files = sorted(file for file in folder.rglob('*') if file.is_file())
  source = _with_words(path, 'orbax', config, tree, files)
  if not source.vocabulary_hash and 'data.vocabulary' in manifest['run']:
    # A run's tokenizer is with its data.
    run = manifest['run']
    place = pathlib.Path(paths.in_repository(run['data.root']))
    place = place / 'vocabularies' / run['data.vocabulary']
    words, reason = companions.open_tokenizer(place)
    if words and words.hash != manifest['vocabulary_hash']:
      words, reason = None, f'{place} is not the vocabulary of this run'
    source = dataclasses.replace(
      source,
      words=words,
      vocabulary_hash=words.hash if words else '',
      remarks=[] if words else [f'no tokenizer goes along: {reason}'],
    )
  if manifest['model'].get('lora'):
    return source  # the digest is of kernels and adapters apart
  return dataclasses.replace(source, digest=manifest['digests']['params'])


def _check(source: Source, plan: Plan) -> None:
  """Raises ValueError for what cannot be asked of this source."""
  if plan.to == 'hf' and plan.layout:
    raise ValueError('--layout is of a workdir; an hf folder has no layout')
  if plan.shard_gigabytes * 1e9 < 1:
    raise ValueError(
      f'--shard_gigabytes must be positive, not {plan.shard_gigabytes}'
    )
  if not plan.verify_logits:
    return
  if plan.layers:
    raise ValueError(
      '--verify_logits compares a model with itself, and --layers makes another'
    )
  if 'hf' not in (source.kind, plan.to):
    raise ValueError('--verify_logits needs an hf folder on one side')
  kinds = {leaf.dtype.name for _, leaf in lazy.leaves(source.tree)}
  if plan.dtype not in (None, 'float32') and kinds != {plan.dtype}:
    raise ValueError(
      f'--verify_logits would compare weights in {", ".join(sorted(kinds))} '
      f'with the same rounded to {plan.dtype}'
    )
  transformers_logits.find_python()


def _changed(
  config: model_config.ModelConfig, tree: lazy.LazyTree, plan: Plan
) -> tuple[model_config.ModelConfig, lazy.LazyTree]:
  """Returns the model with the layers, type and layout of the target."""
  if plan.layers:
    order = depth_upscale.parse(plan.layers, config.num_hidden_layers)
    config, tree = depth_upscale.take(config, tree, order, join=lazy.Stack)
  tree = lazy.astype(tree, plan.dtype)
  if plan.dtype:
    config = config.replace(dtype=plan.dtype)
  if plan.layout:
    scanned = plan.layout == 'scanned'
    return lazy.relayout(config, tree, scan_layers=scanned)
  return config, tree


def _note(
  source: Source,
  path: pathlib.Path,
  plan: Plan,
  config: model_config.ModelConfig,
) -> dict[str, Any]:
  """Returns what a target is made from; the same note, the same target."""
  stats = [(file.name, file.stat()) for file in source.files]
  files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
  fingerprint = hashlib.sha256(json.dumps(files).encode()).hexdigest()
  note = {
    'source': str(path),
    'fingerprint': fingerprint,  # of its files' names, sizes and times
    'to': plan.to,
    'dtype': plan.dtype or 'as the source',
    'layers': plan.layers or 'as the source',
  }
  if plan.to == 'hf':
    return {**note, 'shard_gigabytes': plan.shard_gigabytes}
  layout = 'scanned' if config.scan_layers else 'unrolled'
  return {**note, 'layout': layout}


def _refuse_other(target: pathlib.Path, note: dict[str, Any]) -> None:
  """Raises FileExistsError unless the target is what would be written."""
  found = {}
  if (target / _NOTE).is_file():
    found = json.loads((target / _NOTE).read_text())
  for key, value in note.items():
    # Targets of before a key was there are as the source.
    if key != 'source' and found.get(key, 'as the source') != value:
      reason = (
        f'its {key} is {found[key]!r}' if key in found else 'not by convert'
      )
      raise FileExistsError(
        f'{target} is there already, made differently ({reason}); remove it, or '
        'choose another --target'
      )


def _verify(
  source: Source, path: pathlib.Path, folder: pathlib.Path, plan: Plan
) -> None:
  """Compares a target with its source as far as the plan asks.

  Raises:
    ValueError: for the first difference, naming the tensor.
  """
  if plan.verify:
    config, tree = _changed(source.config, source.tree, plan)
    compare(config, tree, *_reopen(folder, plan.to))
  if not plan.verify_logits:
    return
  ours = _reopen(folder, plan.to) if source.kind == 'hf' else None
  difference = transformers_logits.difference(
    path if source.kind == 'hf' else folder,
    *(ours or (source.config, source.tree)),
  )
  progress.tell('verify', f'logits differ by {difference:.1e} at most')


def _reopen(
  folder: pathlib.Path, kind: str
) -> tuple[model_config.ModelConfig, lazy.LazyTree]:
  """Opens a target as anybody would."""
  if kind == 'hf':
    return hf.open_checkpoint(folder)
  return weights.open_checkpoint(str(folder))[:2]


def compare(
  config: model_config.ModelConfig,
  expected: lazy.LazyTree,
  found_config: model_config.ModelConfig,
  found: lazy.LazyTree,
) -> None:
  """Compares all tensors of two checkpoints, bit by bit.

  Args:
    config, expected: what was to be written.
    found_config, found: what was read again.

  Raises:
    ValueError: naming the first tensor that differs, or is not finite.
  """
  wanted, there = (
    dict(lazy.leaves(lazy.relayout(c, tree, scan_layers=False)[1]))
    for c, tree in ((config, expected), (found_config, found))
  )
  if wanted.keys() != there.keys():
    odd = sorted(wanted.keys() ^ there.keys())
    raise ValueError(f'verifying failed: {odd[0]} is on one side only')
  bar = progress.Bar('verify', sum(leaf.nbytes for leaf in wanted.values()))
  for name, leaf in wanted.items():
    numbers, again = leaf.read(), there[name].read()
    if not lazy.is_finite(numbers):
      count = int((~np.isfinite(numbers.astype(np.float32))).sum())
      raise ValueError(
        f'verifying failed: {name} ({leaf.name}) holds NaN or infinity in '
        f'{count:,} of {numbers.size:,} places'
      )
    kinds = (
      f'{again.dtype.name} {again.shape}',
      f'{leaf.dtype.name} {leaf.shape}',
    )
    if kinds[0] != kinds[1] or not _same_bits(numbers, again):
      raise ValueError(
        f'verifying failed: {name} reads back as {kinds[0]}, and not with the '
        f'numbers of {leaf.name}, {kinds[1]}'
      )
    bar.add(numbers.nbytes)
  bar.end()


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  kind = {2: np.uint16, 4: np.uint32}[a.dtype.itemsize]
  return np.array_equal(a.view(kind), b.view(kind))


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example='--source=Yi-6B-Chat --target=runs/yi_6b_chat --verify',
      needs_config=False,
    )
  )
