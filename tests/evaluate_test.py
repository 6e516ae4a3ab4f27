"""The evaluate verb: its flags, what it leaves, and one line for bad input."""

import json

import jax
import pytest

from yi_jax import app, evaluate
from yi_jax.checkpoints import hf
from yi_jax.data import vocabulary
from yi_jax.models import config as config_lib
from yi_jax.models import transformer

_TEXT = ' '.join(f'The king {n} was lost at sea.' for n in range(60))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """A base model of 64 positions in Hugging Face's format, and a text."""
  folder = tmp_path_factory.mktemp('evaluate')
  words = vocabulary.train([_TEXT], 300, folder / 'words')
  config = config_lib.ModelConfig(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
  )
  params = transformer.init_params(config, jax.random.key(0))
  hf.save_pretrained(config, params, folder / 'model', words)
  (folder / 'text.txt').write_text(_TEXT)
  return folder


@pytest.fixture
def run(checkpoint, tmp_path, capsys, monkeypatch):
  """run(*flags) -> (exit code, standard output, standard error)."""
  # Programs compiled here are of no use to the user.
  monkeypatch.setattr(evaluate.compilation_cache, 'enable', lambda: None)
  monkeypatch.chdir(checkpoint)

  def start(*argv, model='model', workdir=tmp_path):
    capsys.readouterr()
    given = [f'--checkpoint={model}'] if model else []
    given += [f'--workdir={workdir}'] if workdir else []
    code = app.run(
      evaluate.main,
      evaluate.FLAGS,
      example='--x',
      needs_config=False,
      argv=[*given, *argv],
    )
    return code, *capsys.readouterr()

  return start


def test_a_task_leaves_its_report_in_a_folder_of_its_own(run, tmp_path):
  flags = ('--task=perplexity', '--languages=en', '--documents=text.txt')
  code, out, error = run(*flags, '--samples=2')
  assert code == 0, error
  facts = json.loads((tmp_path / 'perplexity/report.json').read_text())
  assert facts['length'] == 64  # the model's positions
  assert facts['languages']['en']['rows'] == 2
  assert (tmp_path / 'perplexity/table.txt').read_text() in out
  # Beyond them only if told so, which is another model: not in this folder.
  code, _, error = run(*flags, '--length=80')
  assert code == app.BAD_INPUT
  assert 'raise them with --max_position_embeddings=80' in error
  longer = ('--length=80', '--max_position_embeddings=80', '--rope_theta=1e6')
  code, _, error = run(*flags, '--samples=1', *longer)
  assert (code, 'model was' in error) == (app.BAD_INPUT, True)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      (),
      '--task is missing; there are: needle, ruler_multikey, perplexity, layers',
    ),
    (('--task=needel',), "no task 'needel'; did you mean 'needle'?"),
    (
      ('--task=needle', '--keys=3'),
      '--keys is no option of --task=needle, which takes: data_root, depths',
    ),
    (
      ('--task=needle', '--lengths=1K'),
      "--lengths takes whole numbers, not '1K'",
    ),
    (('--task=needle', '--depths=a'), "--depths takes numbers, not 'a'"),
    (('--task=needle', '--chat'), 'has no chat template'),
    (
      ('--task=needle', '--nochat', '--template=chatml'),
      '--template belongs to a chat',
    ),
    (
      ('--task=needle', '--languages=en', '--documents=text.txt'),
      'a length of 64 is too short',
    ),
    (  # A space and a last comma are no files.
      ('--task=needle', '--languages=en', '--documents= text.txt,'),
      'a length of 64 is too short',
    ),
    (
      ('--task=needle', '--languages=en', '--documents=none.txt'),
      'none.txt',
    ),
    (
      ('--task=needle', '--rope_theta=0'),
      '--rope_theta must be above 1, not 0',
    ),
  ],
)
def test_bad_flags_are_told_in_a_line(run, flags, message):
  code, _, error = run(*flags)
  assert code == app.BAD_INPUT
  assert message in error
  assert error.count('\n') == 1


def test_what_is_missing_is_named(run):
  assert '--checkpoint is missing' in run('--task=needle', model='')[2]
  assert '--workdir is missing' in run('--task=needle', workdir='')[2]


def test_results_do_not_go_to_a_url(run):
  code, _, error = run('--task=needle', workdir='gs://bucket/needle')
  assert code == app.BAD_INPUT
  assert '--workdir=gs://bucket/needle is a URL' in error
