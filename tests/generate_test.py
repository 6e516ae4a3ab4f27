"""The generate verb: what it prints, and one line for what it cannot do."""

import io
import re

import jax
import pytest

from yi_jax import app, generate
from yi_jax.checkpoints import peft
from yi_jax.data import chatml, vocabulary
from yi_jax.models import lora
from yi_jax.serving import generation, opening
from yi_jax.sharding import mesh as meshes
from yi_jax.training import checkpointing, run_config, run_identity
from yi_jax.training import state as train_state

_TEXTS = (
  'the king said that his horse and crown were lost in a storm at sea',
  '国家保护公民的合法权益任何组织和个人不得侵犯本法自公布之日起施行',
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir of a model with random weights, and its vocabulary."""
  folder = tmp_path_factory.mktemp('generate')
  words = vocabulary.train(_TEXTS * 50, 330, folder / 'data/vocabularies/small')
  config = run_config.defaults()
  config['data'].update(
    root=str(folder / 'data'),
    vocabulary='small',
    vocabulary_size=330,
    length=32,
    batch_tokens=256,
  )
  config['model']['overrides'].update(
    vocab_size=340,  # ten rows are no token
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    initializer_range=0.5,
  )
  run = run_config.resolve(config)
  mesh = meshes.make_mesh({'fsdp': 1}, jax.devices()[:1])
  checkpoints = checkpointing.Checkpointer(str(folder / 'run'), keep=1)
  checkpoints.save(
    3,
    train_state.fresh(run, mesh, seed=0),
    checkpointing.manifest(
      identity=run_identity.identity(config, run),
      model=run.model,
      vocabulary_hash=words.hash,
      rows_consumed=24,
      rows={},
      rates={'en_other_x': 1.0},
      seconds=1.0,
    ),
  )
  checkpoints.close()
  return folder / 'run', words


@pytest.fixture
def run(trained, capsys, monkeypatch):
  """run(*flags) -> (exit code, standard output, standard error)."""
  # Programs compiled here are of no use to the user.
  monkeypatch.setattr(generate.compilation_cache, 'enable', lambda: None)

  def start(*argv, checkpoint=trained[0]):
    capsys.readouterr()
    code = app.run(
      generate.main,
      generate.FLAGS,
      example='--x',
      needs_config=False,
      argv=[f'--checkpoint={checkpoint}', '--max_new_tokens=12', *argv],
    )
    return code, *capsys.readouterr()

  return start


@pytest.fixture(scope='module')
def generator(trained):
  workdir, words = trained
  load = opening.open_checkpoint(str(workdir)).load
  return generation.Generator(
    *load(), max_length=99, vocabulary_size=words.size
  )


@pytest.fixture(scope='module')
def expected(generator, trained):
  """expected(prompts, **settings): what the model adds to documents' starts."""
  words = trained[1]

  def texts(prompts, **settings):
    rows = [[2, *words.encode(prompt)] for prompt in prompts]
    return list(map(words.decode, generator.generate(rows, 12, **settings)))

  return texts


def test_a_prompt_is_printed_with_its_continuation(expected, run):
  prompt = 'the 国家'
  code, out, error = run(f'--prompt={prompt}', '--temperature=0')
  [text] = expected([prompt])
  assert (code, out) == (0, f'{prompt}{text}\n')
  assert re.fullmatch(
    r'\d+ tokens, [\d,.]+ tokens/s; compiled in [\d.]+ s\n', error
  )


def test_the_flags_decide_how_tokens_are_chosen(expected, run):
  flags = dict(
    temperature=1.5, top_k=30, top_p=0.95, repetition_penalty=1.2, seed=5
  )
  argv = [f'--{name}={value}' for name, value in flags.items()]
  [text] = expected(['the'], **flags)
  assert run('--prompt=the', *argv)[1] == f'the{text}\n'
  assert run('--prompt=the', *argv, '--seed=6')[1] != f'the{text}\n'


def test_a_text_ends_before_a_stop_id(trained, expected, run):
  ids = trained[1].encode(expected(['the'], stop_ids=())[0])
  [text] = expected(['the'], stop_ids=(ids[3], ids[5]))
  argv = ['--prompt=the', '--temperature=0', f'--stop_ids={ids[3]},{ids[5]}']
  assert run(*argv)[1] == f'the{text}\n'


def test_an_adapter_is_put_onto_the_checkpoint(trained, run, tmp_path):
  workdir, words = trained
  config, params = opening.open_checkpoint(str(workdir)).load()
  settings = lora.LoraConfig(rank=2, targets='.*/(q|up)_proj/kernel')
  fresh = lora.init(settings, params, jax.random.key(0))
  adapter = jax.tree.map(lambda x: x + 0.5, fresh)
  peft.save_adapter(config, settings, adapter, tmp_path / 'adapter')
  adapted = generation.Generator(
    config,
    lora.merge(params, adapter, settings),
    max_length=99,
    vocabulary_size=words.size,
  )
  [ids] = adapted.generate([[2, *words.encode('the')]], 12)
  plain = run('--prompt=the', '--temperature=0')[1]
  argv = ['--prompt=the', '--temperature=0', f'--adapter={tmp_path}/adapter']
  out = run(*argv)[1]
  assert out == f'the{words.decode(ids)}\n'
  assert out != plain
  code, _, error = run('--prompt=the', f'--adapter={tmp_path}')
  assert code == 2
  assert 'adapter_config.json; give the folder' in error


def test_an_empty_prompt_begins_a_text(expected, run):
  [text] = expected([''])
  assert run('--prompt=', '--temperature=0')[:2] == (0, f'{text}\n')


def test_every_line_of_a_file_is_continued(expected, run, tmp_path):
  prompts = ['the king', '国家', 'his horse and', 'a']
  file = tmp_path / 'prompts.txt'
  file.write_bytes('\r\n'.join(['', *prompts, '  ']).encode())
  outs = [
    run(f'--prompts_file={file}', f'--batch_size={size}', '--seed=3')[:2]
    for size in (2, 4)
  ]
  made = expected(prompts, temperature=0.7, top_p=0.9, seed=[3, 4, 5, 6])
  blocks = [
    f'==> {i + 1} of 4 <==\n{prompt}{text}\n\n'
    for i, (prompt, text) in enumerate(zip(prompts, made, strict=True))
  ]
  assert outs == [(0, ''.join(blocks))] * 2


def test_lines_are_continued_until_the_input_ends(expected, run, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('the\n国家\n'))
  made = expected(['the', '国家'])
  code, out, _ = run('--interactive', '--temperature=0')
  assert (code, out) == (0, ''.join(f'{text}\n' for text in made))


@pytest.fixture(scope='module')
def answers(generator, trained):
  """answers(questions, system, **settings): the model's, by ChatML."""
  words = trained[1]

  def texts(questions, system=None, **settings):
    rows = []
    for question in questions:
      chat = [{'role': 'user', 'content': question}]
      if system:
        chat.insert(0, {'role': 'system', 'content': system})
      template = chatml.get('chatml')
      rows.append(chatml.render(template, chat, words, generate=True).ids)
    return list(map(words.decode, generator.generate(rows, 12, **settings)))

  return texts


def test_a_question_is_answered_alone_on_standard_output(answers, run):
  argv = ['--chat', '--template=chatml', '--temperature=0', '--system=国家']
  [text] = answers(['the king?'], system='国家')
  code, out, error = run(*argv, '--prompt=the king?')
  assert (code, out) == (0, f'{text}\n')
  assert re.search(r'^\[\d+ tokens, [\d.,]+/s', error)


def test_every_question_of_a_file_is_answered(answers, run, tmp_path):
  questions = ['the king', '国家']
  file = tmp_path / 'questions.txt'
  file.write_text('\n'.join(questions))
  code, out, _ = run(
    f'--prompts_file={file}', '--chat', '--template=chatml', '--seed=4'
  )
  made = answers(questions, temperature=0.7, top_p=0.9, seed=[4, 5])
  blocks = [
    f'==> {i + 1} of 2 <==\n{question}\n{text}\n\n'
    for i, (question, text) in enumerate(zip(questions, made, strict=True))
  ]
  assert (code, out) == (0, ''.join(blocks))


def test_a_conversation_is_held_on_standard_input(answers, run, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('the\n国家\n'))
  code, out, _ = run('--chat', '--template=chatml', '--temperature=0')
  [text] = answers(['the\n国家'])
  assert (code, out) == (0, f'{text}\n')


def test_a_base_model_does_not_chat_by_itself(run):
  code, out, error = run('--chat', '--prompt=a')
  assert (code, out) == (app.BAD_INPUT, '')
  assert 'a base model that continues text' in error


def test_more_tokens_than_positions_is_a_warning(run, caplog):
  code, out, _ = run('--prompt=the', '--max_new_tokens=600')
  assert code == 0
  assert 'the model was trained on 512' in caplog.text
  assert out.startswith('the')


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], 'give one of --prompt, --prompts_file, --interactive and --chat'),
    (['--chat', '--interactive'], 'leave --interactive out'),
    (['--prompt=a', '--system=b'], '--system belongs to --chat'),
    (['--chat', '--template=x'], 'template'),
    (['--prompt=a', '--interactive'], 'give one of --prompt'),
    (['--prompt=a', '--checkpoint='], '--checkpoint is missing'),
    (['--prompt=a', '--checkpoint=no/where'], 'no/where; give the --work'),
    (['--prompt=a', '--max_new_tokens=0'], 'must be at least 1, not 0'),
    (['--prompt=a', '--temperature=-1'], 'temperature must be 0 or more'),
    (['--prompt=a', '--top_p=2'], 'top_p must be above 0 and up to 1, not 2.0'),
    (['--prompts_file=no.txt'], "No such file or directory: '"),
    (['--prompts_file=no.txt', '--batch_size=0'], 'batch_size must be at'),
    (['--prompt=a', '--stop_ids=a,2'], "token ids such as 2,7, not 'a,2'"),
    (['--promt=a'], 'promt'),
  ],
)
def test_bad_flags_get_one_line(run, argv, message):
  code, out, error = run(*argv)
  assert code == app.BAD_INPUT
  assert error.startswith('error: ')
  assert message in error
  assert error.count('\n') == 1
  assert out == ''


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'has no prompts; write one a line'),
    (b'\n \n', 'has no prompts'),
    (b'fine\n\nbad \xff\n', 'line 3: no valid UTF-8 (invalid start byte at by'),
  ],
)
def test_a_bad_file_of_prompts_gets_one_line(run, tmp_path, content, message):
  file = tmp_path / 'prompts.txt'
  file.write_bytes(content)
  code, out, error = run(f'--prompts_file={file}')
  assert (code, out) == (app.BAD_INPUT, '')
  assert error.startswith(f'error: {file}')
  assert message in error


def test_a_workdir_without_checkpoints_is_named(run, tmp_path):
  code, _, error = run('--prompt=a', checkpoint=tmp_path)
  assert code == app.BAD_INPUT
  assert f'no checkpoint in {tmp_path}/checkpoints' in error
