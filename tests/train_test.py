"""The train verb on real files: its results, and that nothing can stop it.

Most tests start the program as a user does, and kill it.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from yi_jax import app, prepare, train
from yi_jax.data import loader, mixtures, prepared, tokenizer, vocabulary
from yi_jax.models import attention, transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.training import (
  checkpointing,
  evaluation,
  faults,
  metrics,
  run_config,
  train_step,
  workdir_lock,
)

_CONFIG = """
import ml_collections
from yi_jax.data import mixtures
from yi_jax.training import run_config

def get_config():
  c = run_config.base()
  rates = {{'en_other_test': 2.0, 'zh_other_test': 1.0}}
  for task in rates:
    mixtures.register_files(task, '{folder}/' + task[:2] + '*.txt')
  c.data.rates = ml_collections.ConfigDict(rates)
  c.data.root = '{folder}/data'
  c.data.vocabulary_size = 340
  c.data.length = 32
  c.data.batch_tokens = 256
  c.data.heldout_bytes = 2000
  c.model.overrides.update(dict(
      vocab_size=340, hidden_size=16, intermediate_size=32,
      num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
      head_dim=8, max_position_embeddings=32))
  c.optimizer.learning_rate = 1e-2
  c.optimizer.warmup_steps = 4
  c.train.steps = 40
  c.train.log_every = 1
  c.train.eval_every = 16
  c.checkpoint.every = 5
  c.sample.prompts = ('the cat', '猫')
  c.sample.tokens = 4
  return c
"""
_WORDS = {
  'en': [
    'the',
    'cat',
    'dog',
    'sees',
    'a',
    'bird',
    'tree',
    'river',
    'house',
    'runs',
    'under',
    'old',
  ],
  'zh': list('猫狗鸟树河房看见跑睡老小白'),
}


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  """Returns a config whose text, vocabulary and rows are made."""
  folder = tmp_path_factory.mktemp('text')
  draw = random.Random(0)
  for language, words in _WORDS.items():
    for number in range(40):
      lines = [
        ' '.join(draw.choices(words, k=8)) + '.\n'
        for _ in range(draw.randint(5, 20))
      ]
      (folder / f'{language}{number}.txt').write_text(''.join(lines))
  path = folder / 'run.py'
  path.write_text(_CONFIG.format(folder=folder))
  before = dict(mixtures.TASKS)
  prepare.prepare(_config(path))
  yield path
  # Another worker's share of these tests may come back here: a second setup
  # registers the same names with another folder.
  mixtures.TASKS.clear()
  mixtures.TASKS.update(before)


@pytest.fixture(autouse=True, scope='module')
def _programs(config_file):
  """Trainings in this process compile the steps they share once."""

  def keep(folder, seconds):
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)
    compilation_cache.reset_cache()

  before = (
    jax.config.jax_compilation_cache_dir,
    jax.config.jax_persistent_cache_min_compile_time_secs,
  )
  keep(str(config_file.parent / 'programs'), 0)
  yield
  keep(*before)


def _config(path, **changes):
  """Returns the config of a file with 'section__key' changes."""
  scope = {}
  exec(pathlib.Path(path).read_text(), scope)
  config = scope['get_config']()
  # The programs below compute on one device, and so do these tests.
  for name, value in {'mesh__data': 4, 'mesh__fsdp': 1, **changes}.items():
    section, key = name.split('__')
    config[section][key] = value
  return config


def _start(config_file, workdir):
  """Starts the verb as a user does."""
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
    # So that only the first of all these programs has to compile.
    'JAX_COMPILATION_CACHE_DIR': str(config_file.parent / 'programs'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  command = [sys.executable, '-m', 'yi_jax.train', f'--config={config_file}']
  return subprocess.Popen(
    [*command, f'--workdir={workdir}'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
  )


def _finish(process):
  """Returns exit code, stdout and stderr."""
  out, error = process.communicate(timeout=240)
  return process.returncode, out, error


def _steps(workdir):
  path = pathlib.Path(workdir, 'metrics.jsonl')
  lines = metrics.read(path) if path.exists() else []
  return lines[-1]['step'] if lines else 0


def _stop_after(process, workdir, step, number, start=1):
  """Sends a signal once a step of this start of the run is logged."""
  path = pathlib.Path(workdir, 'goodput.json')  # replaced with each line

  def reached():
    told = json.loads(path.read_text()) if path.exists() else {}
    return told.get('starts') == start and told['step'] >= step

  while not reached():
    assert process.poll() is None, process.communicate()[1][-3000:]
    time.sleep(0.002)
  process.send_signal(number)


@pytest.fixture(scope='module')
def whole(config_file, tmp_path_factory):
  """A run that nobody disturbed: its workdir and what it printed."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  code, out, error = _finish(_start(config_file, workdir))
  assert code == 0, error[-3000:]
  return workdir, out


def test_a_run_leaves_metrics_report_picture_and_events(whole):
  workdir, out = whole
  lines = metrics.read(workdir / 'metrics.jsonl')
  assert [line['step'] for line in lines] == list(range(1, 41))
  assert set(lines[0]) == {
    'step',
    'loss',
    'learning_rate',
    'grad_norm',
    'tokens',
    'tokens_per_second',
    'mfu',
    'skipped',
    'goodput',
  }
  assert lines[0]['loss'] == pytest.approx(math.log(340), abs=0.2)
  assert lines[-1]['loss'] < lines[0]['loss'] - 1
  assert lines[-1]['tokens'] == 40 * 256
  assert lines[-1]['mfu'] is None
  evaluated = [line['step'] for line in lines if 'bits_per_byte' in line]
  assert evaluated == [16, 32, 40]

  report = json.loads((workdir / 'report.json').read_text())
  assert (report['steps'], report['tokens']) == (40, 40 * 256)
  assert report['bits_per_byte'] == lines[-1]['bits_per_byte']
  assert set(report['bits_per_byte']) == set(report['xz']) == {'en', 'zh'}
  assert [s['prompt'] for s in report['samples']] == ['the cat', '猫']
  assert all(sample['text'] for sample in report['samples'])
  assert (workdir / 'loss.png').read_bytes().startswith(b'\x89PNG')
  # With its vocabulary, a workdir is of use where the data are not.
  manifest = checkpointing.newest_manifest(str(workdir))
  words = tokenizer.open_tokenizer(workdir)
  assert words.hash == manifest['vocabulary_hash']
  assert list((workdir / 'tensorboard').iterdir())
  steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())
  assert steps == [30, 35, 40]
  assert 'step 40/40' in out
  assert '\r' not in out  # no live line where there is no terminal


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, batch):
  return (
    transformer.Transformer(config)
    .apply(
      {'params': params},
      batch['tokens'],
      segment_ids=batch['segment_ids'],
      positions=batch['positions'],
      attention_fn=attention.reference,
    )
    .logits
  )


@pytest.mark.parametrize('max_rows', [0, 5])
def test_bits_per_byte_are_the_nats_of_the_held_out_documents(
  whole, config_file, max_rows, monkeypatch
):
  config, params, _ = checkpointing.load_params(str(whole[0]))
  data = _config(config_file).data
  words = vocabulary.load(prepared.vocabulary_folder(data))
  heldout = prepared.open_prepared(data, 'heldout')
  if max_rows:
    # Microbatches of two rows: an evaluation holds no more than a step does.
    changes = {'optimizer__accumulate_steps': 4}
    run = run_config.resolve(_config(config_file, **changes))
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    sizes, put = set(), train_step.put_batch
    monkeypatch.setattr(
      train_step,
      'put_batch',
      lambda rows, *rest: sizes.add(len(rows['tokens'])) or put(rows, *rest),
    )
    evaluate = evaluation.Evaluator(run, mesh, heldout, words, max_rows)
    got = evaluate(params).bits_per_byte
    assert sizes == {2}
  else:
    got = json.loads((whole[0] / 'report.json').read_text())['bits_per_byte']
  for task, reader in heldout.readers.items():
    rows = [reader[i] for i in range(max_rows or len(reader))]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    logits = np.float64(_logits(config, params, batch))
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    chosen = np.take_along_axis(logits, batch['targets'][..., None], 2)[..., 0]
    real = batch['segment_ids'] > 0
    nats = np.sum((log_z - chosen)[real])
    text = [i for i in batch['targets'][real] if i != words.eos_id]
    size = len(words.decode(text).encode())
    if not max_rows:
      assert size == heldout.bytes[task]
    want = nats / math.log(2) / size
    assert got[heldout.languages[task]] == pytest.approx(want, rel=1e-4)


def test_killed_once_and_stopped_once_a_run_ends_as_if_undisturbed(
  whole, config_file, tmp_path
):
  first, second = sorted(random.sample(range(6, 31), 2))
  process = _start(config_file, tmp_path)
  _stop_after(process, tmp_path, first, signal.SIGKILL)
  assert _finish(process)[0] == -signal.SIGKILL
  process = _start(config_file, tmp_path)
  _stop_after(process, tmp_path, second, signal.SIGTERM, start=2)
  code, out, error = _finish(process)
  assert code == 0, error[-3000:]
  saved = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert f'step {saved:,} is saved' in out
  assert _steps(tmp_path) == saved
  code, out, error = _finish(_start(config_file, tmp_path))
  assert code == 0, error[-3000:]
  assert f'continues after step {saved:,}' in out

  def told(workdir):
    changing = {'tokens_per_second', 'goodput'}
    # Who is asked to stop does not stay for an evaluation.
    dropped = {saved: changing | {'bits_per_byte'}}
    return [
      {
        k: v
        for k, v in line.items()
        if k not in dropped.get(line['step'], changing)
      }
      for line in metrics.read(workdir / 'metrics.jsonl')
    ]

  assert told(tmp_path) == told(whole[0])  # to the last bit
  reports = [
    json.loads((workdir / 'report.json').read_text())
    for workdir in (tmp_path, whole[0])
  ]
  for name in ('tokens', 'bits_per_byte', 'samples'):
    assert reports[0][name] == reports[1][name]


# ------------------------------------------------------------- in this process


def _train(config, workdir):
  with faults.StopSignal() as stop:
    return train.train(config, str(workdir), stop)


def test_a_run_goes_on_over_other_devices_from_the_last_whole_checkpoint(
  whole, config_file, tmp_path, capsys
):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / 'checkpoints/40')
  files = (tmp_path / 'checkpoints/35/params/ocdbt.process_0/d').iterdir()
  os.truncate(max(files, key=lambda file: file.stat().st_size), 1000)
  (tmp_path / 'report.json').unlink()
  config = _config(config_file, mesh__data=2, mesh__fsdp=2)
  config.sample.prompts = ()
  assert _train(config, tmp_path) == 0
  out = capsys.readouterr().out
  assert 'checkpoint 35 cannot be read' in out
  assert 'continues after step 30' in out
  assert 'mesh.data changed: 1 -> 2' in out
  got, want = (
    metrics.read(workdir / 'metrics.jsonl') for workdir in (tmp_path, whole[0])
  )
  assert got[:30] == want[:30]
  for line, other in zip(got[30:], want[30:], strict=True):
    assert line['loss'] == pytest.approx(other['loss'], abs=1e-5)
    if 'bits_per_byte' in other:
      assert line['bits_per_byte'] == pytest.approx(
        other['bits_per_byte'], abs=1e-4
      )


def test_a_finished_run_is_not_run_again(whole, config_file, capsys):
  before = (whole[0] / 'report.json').stat().st_mtime_ns
  config = _config(config_file)
  assert _train(config, whole[0]) == 0
  assert '40 steps are done' in capsys.readouterr().out
  assert (whole[0] / 'report.json').stat().st_mtime_ns == before


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'optimizer__learning_rate': 2e-2}, 'optimizer.learning_rate = 0.01'),
    ({'train__steps': 20}, 'at step 40 already'),
    ({'data__vocabulary': 'other'}, 'yi_jax.prepare'),
    ({'data__batch_tokens': 32 * 6}, '6 rows a step .* 4 devices'),
    ({'mesh__data': 3}, 'devices'),
    ({'data__stages': ((9, {'en_other_test': 1.0}),)}, 'data.stages = '),
  ],
)
def test_what_cannot_go_on_is_refused(whole, config_file, changes, message):
  config = _config(config_file, **changes)
  with pytest.raises((ValueError, OSError), match=message):
    _train(config, whole[0])


def test_another_vocabulary_under_the_same_name_is_refused(
  whole, config_file, tmp_path
):
  config = _config(config_file)
  shutil.copytree(whole[0] / 'checkpoints/40', tmp_path / 'checkpoints/40')
  path = tmp_path / 'checkpoints/40/manifest/metadata'
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps({**manifest, 'vocabulary_hash': '12' * 32}))
  with pytest.raises(ValueError, match='another vocabulary'):
    _train(config, tmp_path)


def test_a_diverging_run_stops_with_its_steps_and_keeps_what_was_saved(
  config_file, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  code = app.run(
    train.main,
    train.FLAGS,
    example='',
    argv=[
      f'--config={config_file}',
      f'--workdir={tmp_path}',
      '--config.optimizer.learning_rate=1e30',
      '--config.optimizer.schedule=constant',
      '--config.optimizer.warmup_steps=0',
      '--config.train.max_bad_steps=3',
      '--config.checkpoint.every=1',
      '--config.checkpoint.keep=9',
    ],
  )
  assert code == 1
  assert 'the updates of steps 2 to 4 were skipped' in capsys.readouterr().err
  _, after_one, _ = checkpointing.load_params(str(tmp_path), step=1)
  _, after_three, _ = checkpointing.load_params(str(tmp_path), step=3)
  jax.tree.map(np.testing.assert_array_equal, after_one, after_three)
  losses = [line['loss'] for line in metrics.read(tmp_path / 'metrics.jsonl')]
  assert losses[1:] == [None] * 3


def _poison(config, monkeypatch, rows):
  """Makes the loss of these rows of the run's order not a number."""
  put, poisoned = train_step.put_batch, _ids(config, rows)

  def spoil(batch, *rest):
    spoiled = np.isin(batch.get('row_id', ()), poisoned)
    if spoiled.any():
      batch = {**batch, 'loss_weights': batch['loss_weights'] * np.nan}
    return put(batch, *rest)

  monkeypatch.setattr(train_step, 'put_batch', spoil)


def _ids(config, rows):
  """Returns the row ids at these places of the order."""
  texts = prepared.open_prepared(config.data, 'train')
  with loader.Loader(texts.readers, texts.stages, batch_size=1, seed=0) as feed:
    found = [int(next(feed)['row_id'][0]) for _ in range(max(rows) + 1)]
  assert len(set(found)) == len(found)  # within one epoch
  return [found[row] for row in rows]


def _rows_read(workdir):
  """Returns the row ids of a run, in the order it read them."""
  lines = metrics.read(workdir / 'rows/0.jsonl')
  assert [line['step'] for line in lines] == list(range(1, len(lines) + 1))
  return [row for line in lines for row in line['row_id']]


def _rolling_back(config_file, **changes):
  config = _config(
    config_file,
    train__steps=12,
    train__eval_every=0,
    train__max_bad_steps=2,
    train__rollback=1,
    train__log_rows=True,
    checkpoint__every=3,
    **changes,
  )
  # One task, so that a row_id is one row.
  config.data.rates.zh_other_test = 0.0
  config.sample.prompts = ()
  return config


def test_a_run_goes_back_and_leaves_out_the_rows_that_spiked(
  config_file, tmp_path, monkeypatch, capsys
):
  config = _rolling_back(config_file)
  # The batches of steps 6 and 7, of 8 rows each; step 6 is saved.
  _poison(config, monkeypatch, range(40, 56))
  monkeypatch.setattr(train.start, 'start', lambda place: None)
  monkeypatch.setattr(train.compilation_cache, 'enable', lambda: None)
  monkeypatch.setattr(
    train, '_WORKDIR', types.SimpleNamespace(value=str(tmp_path))
  )
  monkeypatch.setattr(train, '_place', lambda: None)
  assert train.main(config) == 0
  said = capsys.readouterr()
  assert 'the updates of steps 6 to 7 were skipped' in said.err
  assert 'Goes back to the last checkpoint before' in said.err
  assert 'continues after step 3' in said.out

  want = _ids(config, [*range(40), *range(56, 112)])
  assert _rows_read(tmp_path) == want
  losses = [m['loss'] for m in metrics.read(tmp_path / 'metrics.jsonl')]
  assert len(losses) == 12
  assert None not in losses
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['skipped_rows'] == 16
  assert report['goodput']['seconds']['redone'] > 0

  # Resumed from any later checkpoint, the order stays.
  shutil.rmtree(tmp_path / 'checkpoints/12')
  (tmp_path / 'report.json').unlink()
  assert _train(config, tmp_path) == 0
  assert _rows_read(tmp_path) == want
  assert losses == [m['loss'] for m in metrics.read(tmp_path / 'metrics.jsonl')]


def test_a_run_goes_back_only_so_often_and_only_to_what_was_saved(
  config_file, tmp_path, monkeypatch
):
  config = _rolling_back(config_file)
  _poison(config, monkeypatch, range(40, 72))
  with pytest.raises(faults.GoBack) as first:
    _train(config, tmp_path)
  with faults.StopSignal() as stop, pytest.raises(faults.Diverged):
    train.train(config, str(tmp_path), stop, first.value.skipped)
  config.checkpoint.every = 50  # nothing from before is there
  with pytest.raises(faults.Diverged):
    _train(config, tmp_path / 'other')


def test_on_a_full_disk_training_goes_on_and_saves_when_there_is_room(
  whole, config_file, tmp_path
):
  """A disk of 3 MB; a file fills it for some steps."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', disk],
    capture_output=True,
  )
  assert mounted.returncode == 0, 'needs root: run the tests in a container'
  try:
    workdir = disk / 'run'
    process = _start(config_file, workdir)
    while _steps(workdir) < 2:
      assert process.poll() is None, process.communicate()[1][-3000:]
      time.sleep(0.002)
    with (
      open(disk / 'filler', 'wb', buffering=0) as filler,
      contextlib.suppress(OSError),
    ):
      while filler.write(bytes(4096)):
        pass
    lines = []
    for line in process.stdout:
      lines.append(line)
      if 'could not be written' in line:
        break
    (disk / 'filler').unlink()
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error[-3000:]
    assert 'the disk is full' in lines[-1]
    assert 'Training goes on' in lines[-1]
    got, want = (metrics.read(w / 'metrics.jsonl') for w in (workdir, whole[0]))
    assert [m['step'] for m in got] == [m['step'] for m in want]
    assert [m['loss'] for m in got] == [m['loss'] for m in want]
    assert (workdir / 'checkpoints/40').exists()
  finally:
    subprocess.run(['umount', disk], check=True)


def test_two_runs_in_one_workdir_are_refused(config_file, tmp_path):
  with (
    workdir_lock.WorkdirLock(str(tmp_path)),
    pytest.raises(ValueError, match='another run is at work'),
  ):
    _train(_config(config_file), tmp_path)


def test_a_run_starts_from_the_weights_of_another_and_is_profiled(
  whole, config_file, tmp_path
):
  changes = dict(train__steps=3, train__profile='2-3', train__eval_first=True)
  config = _config(config_file, train__log_rows=True, **changes)
  # After the 256 tokens of a step, Chinese alone.
  config.data.stages = ((256, {'zh_other_test': 1}),)
  config.init_from = str(whole[0])
  config.sample.prompts = ()
  config.optimizer.warmup_steps = 1
  assert _train(config, tmp_path) == 0
  before, after = (
    metrics.read(workdir / 'metrics.jsonl') for workdir in (whole[0], tmp_path)
  )
  assert [line['step'] for line in after] == [0, 1, 2, 3]
  found, wanted = after[0]['bits_per_byte'], before[-1]['bits_per_byte']
  assert found == pytest.approx(wanted, rel=1e-5)
  assert after[1]['loss'] == pytest.approx(before[-1]['loss'], abs=0.3)
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  rows = prepared.open_prepared(config.data, 'train').readers['zh_other_test']
  chinese = {int(rows[i]['row_id']) for i in range(len(rows))}
  steps = metrics.read(tmp_path / 'rows/0.jsonl')
  read = [set(step['row_id']) for step in steps]
  assert read[0] & chinese
  assert read[0] - chinese
  assert read[1] | read[2] <= chinese
