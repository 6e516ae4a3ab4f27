"""The convert verb: every way there and back, and never half a target."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from yi_jax import app, convert
from yi_jax.checkpoints import hf, lazy, transformers_logits
from yi_jax.data import progress, vocabulary
from yi_jax.models import config as model_config
from yi_jax.models import transformer
from yi_jax.training import checkpointing

_MODEL = model_config.get_preset(
  'tiny',
  vocab_size=340,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  scan_layers=True,
)
_REPOSITORY = pathlib.Path(__file__).parents[1]
_TEXT = 'the king said that his horse was lost, 国家保护公民的合法权益 '


def _params():
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
    transformer.abstract_params(_MODEL),
  )


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  folder = tmp_path_factory.mktemp('words') / 'words'
  return vocabulary.train([_TEXT] * 50, 330, folder)


@pytest.fixture
def source(tmp_path, words):
  """A folder of Hugging Face's kind in bfloat16, in several files."""
  folder = tmp_path / 'source'
  hf.save_pretrained(
    _MODEL, _params(), folder, words, dtype='bfloat16', shard_bytes=8_000
  )
  return folder


@pytest.fixture
def run(capsys):
  """run(*flags) -> (exit code, what was printed)."""

  def start(*argv):
    capsys.readouterr()
    code = app.run(
      convert.main,
      convert.FLAGS,
      example='--x',
      needs_config=False,
      argv=list(map(str, argv)),
    )
    printed = capsys.readouterr()
    return code, printed.out + printed.err

  return start


def _bytes(folder):
  """Returns name -> bytes of the tensors of a folder."""
  _, tree = hf.open_checkpoint(folder, scan_layers=False)
  return {name: leaf.read().tobytes() for name, leaf in lazy.leaves(tree)}


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('to', ['hf', 'orbax'])
def test_layers_can_be_said_twice(tmp_path, source, words, run, to):
  target = tmp_path / 'target'
  argv = [f'--source={source}', f'--target={target}', f'--to={to}']
  code, printed = run(*argv, '--layers=0:2,1:3', '--verify')
  assert code == 0, printed
  made = convert.open_source(target)
  assert made.config == _MODEL.replace(num_hidden_layers=4, dtype='bfloat16')
  config, tree = lazy.relayout(made.config, made.tree, scan_layers=False)
  given = dict(lazy.leaves(hf.open_checkpoint(source, scan_layers=False)[1]))
  for name, leaf in lazy.leaves(tree):
    for i, layer in enumerate((0, 1, 1, 2)):
      if name.startswith(f'layers/{i}/'):
        name = name.replace(f'layers/{i}/', f'layers/{layer}/')
        break
    assert leaf.read().tobytes() == given[name].read().tobytes()
  # Also from a workdir, whose numbers have a checksum.
  if to == 'orbax':
    back = tmp_path / 'back'
    there = [f'--source={target}', f'--target={back}', '--layers=0,2:4']
    assert run(*there, '--verify')[0] == 0
    assert _bytes(back) == _bytes(source)
  code, printed = run(*argv)
  assert code == 2
  assert "made differently (its layers is '0:2,1:3')" in printed
  code, printed = run(
    f'--source={source}', f'--target={tmp_path}/x', '--layers=0:9'
  )
  assert code == 2
  assert "'0:9' is not within the 3 layers of the source" in printed
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('layout', ['scanned', 'unrolled'])
def test_there_and_back_every_byte_is_the_same(
  tmp_path, source, words, run, layout
):
  there, back = tmp_path / 'there', tmp_path / 'back'
  code, printed = run(
    f'--source={source}', f'--target={there}', f'--layout={layout}', '--verify'
  )
  assert code == 0, printed
  assert 'warning' not in printed
  config, params, manifest = checkpointing.load_params(str(there))
  assert config == _MODEL.replace(
    scan_layers=layout == 'scanned', dtype='bfloat16'
  )
  assert manifest['vocabulary_hash'] == words.hash
  assert vocabulary.load(there).hash == words.hash
  code, printed = run(
    f'--source={there}',
    f'--target={back}',
    '--shard_gigabytes=8e-6',
    '--verify',
  )
  assert code == 0, printed
  assert _bytes(back) == _bytes(source)
  new = ['conversion.json']
  assert _names(back) == sorted(_names(source) + new)
  for name in ('config.json', 'generation_config.json', 'tokenizer.json'):
    assert (back / name).read_text() == (source / name).read_text()
  assert _names(tmp_path) == ['back', 'source', 'there']


def test_types_and_layouts_change_from_workdir_to_workdir(
  tmp_path, source, run
):
  first, second = tmp_path / 'first', tmp_path / 'second'
  assert run(f'--source={source}', f'--target={first}')[0] == 0
  code, printed = run(
    f'--source={first}',
    f'--target={second}',
    '--to=orbax',
    '--layout=unrolled',
    '--dtype=float32',
    '--verify',
  )
  assert code == 0, printed
  config, params, _ = checkpointing.load_params(str(second))
  assert (config.scan_layers, config.dtype) == (False, 'float32')
  _, want = hf.load_pretrained(source, scan_layers=False)
  jax.tree.map(np.testing.assert_array_equal, params, want)


def test_logits_are_compared_with_those_of_transformers(
  peer, tmp_path, source, run, monkeypatch
):
  theirs = []
  ask = transformers_logits._of_transformers

  def once(folder, tokens):
    theirs.append(theirs[0] if theirs else ask(folder, tokens))
    return theirs[0]

  monkeypatch.setattr(transformers_logits, '_of_transformers', once)
  flags = [f'--source={source}', '--verify_logits']
  code, printed = run(*flags, f'--target={tmp_path / "x"}')
  assert code == 0, printed
  assert 'logits differ by' in printed
  # The same weights under another theta are not the same model.
  reopen = convert._reopen

  def other(folder, to):
    config, tree = reopen(folder, to)
    return config.replace(rope_theta=5e6), tree

  monkeypatch.setattr(convert, '_reopen', other)
  code, printed = run(*flags, f'--target={tmp_path / "y"}')
  assert code == 2
  assert 'logits differ from those of transformers' in printed
  assert _names(tmp_path) == ['source', 'x']


def test_a_finished_target_is_kept_and_another_refused(tmp_path, source, run):
  target = tmp_path / 'target'
  assert run(f'--source={source}', f'--target={target}')[0] == 0
  before = (target / 'conversion.json').stat().st_mtime_ns
  code, printed = run(f'--source={source}', f'--target={target}', '--verify')
  assert code == 0
  assert 'is there already, from this source' in printed
  assert 'verify' in printed
  assert (target / 'conversion.json').stat().st_mtime_ns == before
  code, printed = run(
    f'--source={source}', f'--target={target}', '--dtype=float32'
  )
  assert code == 2
  assert "made differently (its dtype is 'as the source')" in printed
  file = sorted(source.glob('*.safetensors'))[0]
  os.utime(file, (1, 1))
  code, printed = run(f'--source={source}', f'--target={target}')
  assert code == 2
  assert 'its fingerprint is' in printed
  (tmp_path / 'mine').mkdir()
  code, printed = run(f'--source={source}', f'--target={tmp_path / "mine"}')
  assert code == 2
  assert 'not by convert' in printed


@pytest.mark.parametrize('bad', [np.nan, -np.inf])
def test_verify_refuses_what_is_not_finite(tmp_path, run, bad):
  params = _params()
  params['layers']['mlp']['up_proj']['kernel'][1, 2, 3] = bad
  hf.save_pretrained(_MODEL, params, tmp_path / 'source')
  code, printed = run(
    f'--source={tmp_path / "source"}', f'--target={tmp_path / "x"}', '--verify'
  )
  assert code == 2
  assert 'layers/1/mlp/up_proj/kernel (model.layers.1.mlp.up_proj.w' in printed
  assert 'NaN or infinity in 1 of 384 places' in printed
  assert _names(tmp_path) == ['source']


def test_verify_notices_a_single_bit(source):
  config, tree = hf.open_checkpoint(source)

  def flip(numbers):
    changed = numbers.copy()
    changed.view(np.uint16).flat[5] ^= 1
    return changed

  convert.compare(config, tree, config, tree)
  other = dict(tree, norm={'scale': tree['norm']['scale'].map(flip)})
  with pytest.raises(ValueError, match='norm/scale reads back'):
    convert.compare(config, tree, config, other)
  other = dict(tree, norm={'scale': tree['norm']['scale'].astype('float32')})
  with pytest.raises(ValueError, match='norm/scale reads back as float32'):
    convert.compare(config, tree, config, other)


def test_a_damaged_workdir_is_noticed(tmp_path, source, run):
  target = tmp_path / 'workdir'
  assert run(f'--source={source}', f'--target={target}')[0] == 0
  path = target / 'checkpoints/0/manifest/metadata'
  manifest = json.loads(path.read_text())
  manifest['digests']['params'] ^= 1
  path.write_text(json.dumps(manifest))
  code, printed = run(f'--source={target}', f'--target={tmp_path / "x"}')
  assert code == 2
  assert 'are not those that were saved' in printed
  assert _names(tmp_path) == ['source', 'workdir']


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'give --source and --target'),
    (['--source=gs://x', '--target=y'], 'convert works on local folders'),
    (['--source=nowhere', '--target=y'], 'nowhere has neither config.json'),
    (['--source={0}', '--target=y', '--step=3'], '--step is of a workdir'),
    (
      ['--source={0}', '--target=y', '--to=hf', '--layout=scanned'],
      '--layout is of a workdir',
    ),
    (['--source={0}', '--target=y', '--dtype=int8'], 'float32|bfloat16'),
    (
      ['--source={0}', '--target=y', '--shard_gigabytes=0', '--to=hf'],
      '--shard_gigabytes must be positive',
    ),
    (
      ['--source={0}', '--target=y', '--dtype=float16', '--verify_logits'],
      'would compare weights in bfloat16 with the same rounded to float16',
    ),
  ],
)
def test_flags_that_cannot_be_meant_are_refused(source, run, flags, message):
  code, printed = run(*(flag.format(source) for flag in flags))
  assert code == 2
  assert message in printed


def test_another_architecture_is_refused_before_anything_is_written(
  tmp_path, source, run
):
  config = json.loads((source / 'config.json').read_text())
  config['model_type'] = 'mistral'
  (source / 'config.json').write_text(json.dumps(config))
  code, printed = run(f'--source={source}', f'--target={tmp_path / "x"}')
  assert code == 2
  assert "model_type is 'mistral'" in printed
  assert _names(tmp_path) == ['source']


def test_a_full_disk_is_told_before_it_is_full(
  tmp_path, source, run, monkeypatch
):
  usage = convert.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    convert.shutil, 'disk_usage', lambda path: usage._replace(free=9)
  )
  code, printed = run(f'--source={source}', f'--target={tmp_path / "x"}')
  assert code == 2
  assert 'GB are free there' in printed
  assert _names(tmp_path) == ['source']


_SLOWLY = """
import sys, time
from yi_jax import app, convert
from yi_jax.data import progress
progress.Bar.add = lambda self, size: (
  print('part', flush=True), time.sleep(60 * (size == 384 * 2)))
app.run(convert.main, convert.FLAGS, example='x', needs_config=False,
  argv=sys.argv[1:])
"""


@pytest.mark.parametrize('to', ['orbax', 'hf'])
def test_a_killed_conversion_leaves_no_target_and_starts_again(
  tmp_path, source, run, to
):
  target = tmp_path / 'target'
  flags = [f'--source={source}', f'--target={target}', f'--to={to}']
  process = subprocess.Popen(
    [sys.executable, '-c', _SLOWLY, *flags],
    stdout=subprocess.PIPE,
    cwd=_REPOSITORY,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  for line in process.stdout:  # until tensors are on their way
    if line.strip() == b'part':
      break
  time.sleep(0.3)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  left = [name for name in _names(tmp_path) if name != 'source']
  assert left  # it was in the middle
  assert all(name.startswith('.target.') for name in left)
  code, printed = run(*flags, '--verify')
  assert code == 0, printed
  assert _names(tmp_path) == ['source', 'target']


def test_the_bar_ends_with_totals(capsys):
  bar = progress.Bar('convert', 3_000_000)
  bar.add(1_000_000)
  bar.add(2_000_000)
  bar.end()
  assert 'convert  0.00 GB in' in capsys.readouterr().out
