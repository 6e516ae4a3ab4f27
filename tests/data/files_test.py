"""Files of one's own: formats, shards, and one clear error for each fault."""

import collections
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from yi_jax.data import files

_TEXTS = [f'text {number} 文' for number in range(11)]


def _lines(texts):
  return ''.join(
    json.dumps({'text': text, 'n': 1}, ensure_ascii=False) + '\n'
    for text in texts
  ).encode()


def _write(folder, kind):
  """Writes _TEXTS in one form and returns the glob."""
  if kind == 'jsonl':
    (folder / 'a.jsonl').write_bytes(_lines(_TEXTS[:4]))
    (folder / 'b.jsonl').write_bytes(_lines(_TEXTS[4:]))
    return str(folder / '*.jsonl')
  if kind == 'jsonl.gz':
    (folder / 'a.jsonl.gz').write_bytes(gzip.compress(_lines(_TEXTS)))
    return str(folder / '**' / '*.jsonl.gz')
  if kind == 'parquet':
    table = pyarrow.table({'text': _TEXTS, 'n': list(range(11))})
    parquet.write_table(table, folder / 'a.parquet', row_group_size=3)
    return str(folder / '*.parquet')
  for number, text in enumerate(_TEXTS):
    (folder / f'{number:02}.txt').write_text(text)
  return str(folder / '*.txt')


@pytest.mark.parametrize('kind', ['jsonl', 'jsonl.gz', 'parquet', 'txt'])
@pytest.mark.parametrize('count', [1, 2, 3])
def test_shards_together_are_the_files(kind, count, tmp_path):
  pattern = _write(tmp_path, kind)
  shards = [list(files.read(pattern, shard=(i, count))) for i in range(count)]
  assert sorted(sum(shards, [])) == sorted(_TEXTS)
  assert all(shards)
  assert list(files.read(pattern)) == _TEXTS


def test_bad_utf8_and_blank_documents_are_counted_and_skipped(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(
    b'{"text": "a"}\n{"text": "\xff"}\n{"text": "\\ud800"}\n{"text": " "}\n'
  )
  (tmp_path / 'b.txt').write_bytes(b'\xff')
  skipped = collections.Counter()
  assert list(files.read(str(tmp_path / '*'), skipped=skipped)) == ['a']
  assert skipped == {'invalid UTF-8': 3, 'blank': 1}


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.jsonl', b'{"text": "a"}\n{"text": \n', r'a\.jsonl, line 2 is not JSON'),
    ('a.jsonl', b'{"body": "a"}\n', "line 1 has no text in field 'text'"),
    ('a.jsonl', b'"text"\n', 'line 1 has no text'),
    (
      'a.jsonl.gz',
      gzip.compress(b'{"text": "a"}\n', mtime=0)[:-9],
      'truncated',
    ),
    ('a.jsonl.gz', b'plain', 'no gzip file'),
    ('a.parquet', b'plain', 'no Parquet file'),
  ],
)
def test_a_damaged_file_is_named(name, content, message, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(files.read(str(tmp_path / '*')))


def test_a_missing_column_and_a_pattern_without_files_are_named(tmp_path):
  pattern = _write(tmp_path, 'parquet')
  with pytest.raises(ValueError, match="no column 'body'; there are"):
    list(files.read(pattern, 'body'))
  with pytest.raises(FileNotFoundError, match='no file matches'):
    list(files.read(str(tmp_path / '*.nothing')))


def test_identity_changes_with_content_names_and_column(tmp_path):
  pattern = _write(tmp_path, 'jsonl')
  before = files.identity(pattern, 'text')
  assert files.identity(pattern, 'text') == before
  assert files.identity(pattern, 'body') != before
  (tmp_path / 'b.jsonl').write_bytes(_lines(_TEXTS[5:] + _TEXTS[4:5]))
  assert files.identity(pattern, 'text') != before
