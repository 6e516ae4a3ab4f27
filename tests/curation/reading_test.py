"""Reading: every format, and everything that can be wrong with a file."""

import gzip
import json
import tracemalloc

import pyarrow
import pytest
import zstandard
from etils import epath
from pyarrow import parquet

from yi_jax.curation import documents, reading


def _units(tmp_path, **settings):
  return reading.units({'web': settings}, tmp_path / 'data')


def _read(tmp_path, pattern, max_bytes=10_000, limit=0, **settings):
  """Returns the batches of all files, and what was put aside."""
  quarantine, batches = reading.Quarantine(), []
  for unit in _units(tmp_path, files=str(tmp_path / pattern), **settings):
    batches += reading.read(unit, max_bytes, quarantine, limit)
  return batches, quarantine


def _one(tmp_path, pattern, **settings):
  batches, quarantine = _read(tmp_path, pattern, **settings)
  return documents.concatenate(batches), quarantine


def _lines(*rows):
  return ''.join(f'{json.dumps(row)}\n' for row in rows).encode()


_ROWS = (
  {'text': 'first', 'id': 'a', 'url': 'http://x.org/1'},
  {'text': '第二', 'id': 7},
  {'text': 'third'},
)


def _jsonl(path):
  path.write_bytes(_lines(*_ROWS))


def _jsonl_gz(path):
  path.write_bytes(gzip.compress(_lines(*_ROWS)))


def _jsonl_zst(path):
  path.write_bytes(zstandard.compress(_lines(*_ROWS)))


def _parquet(path):
  table = {
    key: [row.get(key) if key != 'id' else row.get(key) and str(row[key])
          for row in _ROWS]
    for key in ('text', 'url', 'id')
  }  # fmt: skip
  parquet.write_table(pyarrow.table(table), path)


@pytest.mark.parametrize(
  ('name', 'write'),
  [
    ('x.jsonl', _jsonl),
    ('x.jsonl.gz', _jsonl_gz),
    ('x.jsonl.zst', _jsonl_zst),
    ('x.parquet', _parquet),
  ],
)
def test_rows_keep_text_id_and_url(tmp_path, name, write):
  write(tmp_path / name)
  batch, quarantine = _one(tmp_path, name)
  assert batch.ids == ['web/a', 'web/7', 'web/2']
  assert batch.texts == ['first', '第二', 'third']
  assert batch.urls == ['http://x.org/1', '', '']
  assert batch.sources == ['web'] * 3
  assert batch.languages == [''] * 3
  assert not quarantine.counts


def test_fields_have_the_names_the_config_gives(tmp_path):
  (tmp_path / 'x.jsonl').write_bytes(_lines({'content': 'words', 'key': 'k'}))
  batch, _ = _one(tmp_path, 'x.jsonl', text='content', id='key', language='en')
  assert (batch.texts, batch.ids) == (['words'], ['web/k'])
  assert batch.languages == ['en']


def test_text_files_are_one_document_each(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'one.txt').write_bytes(b'line\r\nline\n')
  with gzip.open(tmp_path / 'two.txt.gz', 'wb') as file:
    file.write('第二'.encode())
  batch, _ = _one(tmp_path, '**/*.txt*')
  assert batch.ids == ['web/a/one.txt/0', 'web/two.txt.gz/0']
  assert batch.texts == ['line\nline\n', '第二']


def test_a_set_of_tfds_is_read_shard_by_shard(tmp_path):
  import tensorflow_datasets as tfds

  class Small(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    pkg_dir_path = epath.Path(__file__).parent

    def _info(self):
      text = tfds.features.Text()
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({'text': text, 'url': text}),
        disable_shuffling=True,
      )

    def _split_generators(self, manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for number in range(5):
        yield number, {'text': f'text {number}', 'url': f'u{number}'}

  folder = tmp_path / 'data/tfds'
  Small(data_dir=str(folder), file_format='array_record').download_and_prepare()
  units = _units(tmp_path, tfds='small:1.0.0')
  quarantine = reading.Quarantine()
  batches = [b for unit in units for b in reading.read(unit, 99, quarantine)]
  batch = documents.concatenate(batches)
  assert batch.texts == [f'text {number}' for number in range(5)]
  assert batch.ids[3] == 'web/00000/3'
  assert batch.urls[3] == 'u3'
  with pytest.raises(FileNotFoundError, match='tfds build c4'):
    _units(tmp_path, tfds='c4/en:3.1.0')
  with pytest.raises(ValueError, match="no split 'test'"):
    _units(tmp_path, tfds='small:1.0.0', split='test')


def test_our_own_sources_are_read_whole(tmp_path):
  units = reading.units({'python': {'source': 'code_py'}}, tmp_path)
  quarantine = reading.Quarantine()
  first = next(reading.read(units[0], 10_000_000, quarantine, limit=3))
  assert units[0].settings['task'] == 'code_code_python'
  assert first.ids[:2] == ['python/__future__.py', 'python/__hello__.py']
  assert first.languages == ['code'] * 3
  assert first.metadata[0] == {'kind': 'code'}


# --- what is wrong with documents --------------------------------------------


def test_bad_documents_are_put_aside_with_their_reason(tmp_path):
  bad = {
    'invalid UTF-8': b'{"text": "\xff\xfe"}\n',
    'lone surrogate': b'{"text": "x \\ud83d y"}\n',
    'NUL': b'{"text": "a\\u0000b"}\n',
    'broken JSON': b'{"text": "half\n',
    'empty': b'{"text": " \\n "}\n',
    'no text': b'{"content": "other"}\n[1, 2]\n{"text": 5}\n{"text": null}\n',
    'too long': b'{"text": "' + b'y' * 1_001 + b'"}\n',
  }
  good = b'{"text": "good"}\n'
  (tmp_path / 'x.jsonl').write_bytes(
    b''.join(good + line for line in bad.values()) + b'\n' + good
  )
  batch, quarantine = _one(tmp_path, 'x.jsonl', max_bytes=1_000)
  assert batch.texts == ['good'] * 8
  assert len(set(batch.ids)) == 8
  counts = {why: 4 if why == 'no text' else 1 for why in bad}
  assert quarantine.counts == counts
  assert quarantine.damaged() == sum(counts.values()) - 1  # empty is no damage
  entry = next(e for e in quarantine.entries if e['reason'].startswith('inv'))
  assert entry['position'] == 1
  json.dumps(quarantine.entries, ensure_ascii=False).encode()


def test_a_huge_line_is_passed_over_without_being_held(tmp_path):
  with open(tmp_path / 'x.jsonl', 'wb') as file:
    file.write(_lines({'text': 'before'}) + b'{"text": "')
    for _ in range(50):
      file.write(b'z' * 1_000_000)
    file.write(b'"}\n' + _lines({'text': 'after'}))
  tracemalloc.start()
  batch, quarantine = _one(tmp_path, 'x.jsonl', max_bytes=100_000)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert batch.texts == ['before', 'after']
  assert quarantine.counts == {'too long': 1}
  assert peak < 10_000_000


def test_duplicated_ids_stay_unique_and_are_noted(tmp_path):
  rows = [{'text': f't{n}', 'id': 'same'} for n in range(3)]
  (tmp_path / 'x.jsonl').write_bytes(_lines(*rows))
  batch, _ = _one(tmp_path, 'x.jsonl')
  assert batch.ids == ['web/same', 'web/same~1', 'web/same~2']
  assert batch.trails[0] == []
  assert batch.trails[2] == [('read', 'duplicated id same')]


def test_ids_that_were_seen_long_ago_are_remembered():
  seen = reading._Seen()
  assert all(seen.is_new(f'n{number}') for number in range(120_000))
  assert [len(table) for table in seen._tables] == [100_000]
  assert not any(seen.is_new(f'n{number}') for number in range(0, 120_000, 997))
  assert seen.is_new('another')


def test_batches_end_at_a_thousand_documents_or_many_characters(
  tmp_path, monkeypatch
):
  rows = [{'text': 'word ' * 10}] * 2_300
  (tmp_path / 'x.jsonl').write_bytes(_lines(*rows))
  batches, _ = _read(tmp_path, 'x.jsonl')
  assert [len(batch) for batch in batches] == [1000, 1000, 300]
  assert len(batches[0].trails) == 1000
  monkeypatch.setattr(documents, 'CHARACTERS', 5_000)
  batches, _ = _read(tmp_path, 'x.jsonl', limit=250)
  assert [len(batch) for batch in batches] == [101, 101, 48]


# --- what is wrong with files ------------------------------------------------


def _members(*texts, pack=gzip.compress):
  return [pack(_lines({'text': text})) for text in texts]


@pytest.mark.parametrize('suffix', ['gz', 'zst'])
def test_a_broken_member_costs_itself_alone(tmp_path, suffix):
  pack = gzip.compress if suffix == 'gz' else zstandard.compress
  one, two, three = _members('one', 'two ' * 500, 'three', pack=pack)
  middle = bytearray(two)
  middle[7:16] = b'\xff' * 9
  path = tmp_path / f'x.jsonl.{suffix}'
  path.write_bytes(one + bytes(middle) + three)
  batch, quarantine = _one(tmp_path, path.name)
  assert batch.texts == ['one', 'three']
  assert quarantine.counts['broken member'] == 1
  assert quarantine.damaged() <= 2  # half a line may have come out


@pytest.mark.parametrize('suffix', ['gz', 'zst'])
def test_a_file_that_ends_early_keeps_what_is_whole(tmp_path, suffix):
  pack = gzip.compress if suffix == 'gz' else zstandard.compress
  one, two = _members('one', ' '.join(map(str, range(3000))), pack=pack)
  path = tmp_path / f'x.jsonl.{suffix}'
  path.write_bytes(one + two[: len(two) // 2])
  batch, quarantine = _one(tmp_path, path.name)
  assert batch.texts == ['one']
  assert quarantine.counts == {'broken member': 1}


def test_bytes_before_and_between_members_are_told_once(tmp_path):
  one, two = _members('one', 'two')
  content = b'junk' * 50_000 + one + b'\0' * 10 + two
  (tmp_path / 'x.jsonl.gz').write_bytes(content)
  batch, quarantine = _one(tmp_path, 'x.jsonl.gz')
  assert batch.texts == ['one', 'two']
  assert quarantine.counts == {'broken member': 2}


def test_broken_parquet_is_put_aside(tmp_path):
  _parquet(tmp_path / 'a.parquet')
  content = (tmp_path / 'a.parquet').read_bytes()
  (tmp_path / 'b.parquet').write_bytes(content[: len(content) // 2])
  batch, quarantine = _one(tmp_path, '*.parquet')
  assert len(batch) == 3
  assert quarantine.counts == {'broken Parquet': 1}


# --- web archives ------------------------------------------------------------


def _record(kind, body, url='http://x.org/', identifier='1-2', **more):
  headers = {
    'WARC-Type': kind,
    'WARC-Target-URI': url,
    'WARC-Record-ID': f'<urn:uuid:{identifier}>',
    'Content-Length': len(body),
    **{k.replace('_', '-'): v for k, v in more.items()},
  }
  head = ''.join(f'{k}: {v}\r\n' for k, v in headers.items())
  return f'WARC/1.0\r\n{head}\r\n'.encode() + body + b'\r\n\r\n'


def _wet(packed=True, damage=False):
  bodies = [
    _record('warcinfo', b'software: x'),
    _record('conversion', '第一页\nline'.encode(), 'http://x.cn/1', 'a-1'),
    _record('conversion', b'\xff\xfe', identifier='a-2'),
    _record(
      'conversion',
      b'second page',
      identifier='a-3',
      WARC_Identified_Content_Language='eng',
    ),
  ]
  parts = [gzip.compress(body) if packed else body for body in bodies]
  if damage:
    parts[2] = parts[2][: len(parts[2]) // 2]
  return b''.join(parts)


@pytest.mark.parametrize('packed', [False, True])
def test_wet_pages_keep_their_address_id_and_language(tmp_path, packed):
  name = 'x.warc.wet.gz' if packed else 'x.warc.wet'
  (tmp_path / name).write_bytes(_wet(packed))
  batch, quarantine = _one(tmp_path, name)
  assert batch.ids == ['web/a-1', 'web/a-3']
  assert batch.texts == ['第一页\nline', 'second page']
  assert batch.urls == ['http://x.cn/1', 'http://x.org/']
  assert batch.metadata[1] == {'told_language': 'eng'}
  assert quarantine.counts == {'invalid UTF-8': 1}


def test_a_broken_record_costs_itself_alone(tmp_path):
  (tmp_path / 'x.warc.wet.gz').write_bytes(_wet(damage=True))
  batch, quarantine = _one(tmp_path, 'x.warc.wet.gz')
  assert batch.ids == ['web/a-1', 'web/a-3']
  assert quarantine.counts == {'broken member': 1}
  wrong = _wet(packed=False).replace(
    b'Content-Length: 11', b'Content-Length: 7'
  )
  (tmp_path / 'y.warc.wet').write_bytes(wrong)
  batch, quarantine = _one(tmp_path, 'y.warc.wet')
  assert batch.texts == ['第一页\nline', 'second ']
  assert quarantine.counts == {'broken record': 2, 'invalid UTF-8': 1}


def test_pages_of_warc_become_text(tmp_path):
  page = (
    '<html><head><title>T</title><meta charset="gb2312">'
    '<script>var x = "<p>no</p>";</script></head><body><nav>菜单</nav>'
    '<h1>标题</h1><p>第一 <b>段</b>&amp;\n more<br>next</p>'
    '<style>p {}</style></body></html>'
  ).encode('gbk')
  http = b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n'
  packed = b'Content-Encoding: gzip\r\n\r\n' + gzip.compress(page)
  records = [
    _record('request', b'GET / HTTP/1.1\r\n\r\n'),
    _record('response', http + b'\r\n' + page, identifier='p-1'),
    _record('response', http + packed, identifier='p-2'),
    _record('response', b'HTTP/1.1 404 No\r\n\r\n' + page),
    _record('response', b'HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n1'),
  ]
  (tmp_path / 'x.warc.gz').write_bytes(b''.join(map(gzip.compress, records)))
  batch, quarantine = _one(tmp_path, 'x.warc.gz')
  assert batch.ids == ['web/p-1', 'web/p-2']
  assert batch.texts == ['菜单\n标题\n第一 段& more\nnext'] * 2
  assert not quarantine.counts


def test_a_long_record_is_passed_over(tmp_path):
  long = _record('conversion', b'x' * 5_000) + _record('conversion', b'short')
  (tmp_path / 'x.wet').write_bytes(long)
  batch, quarantine = _one(tmp_path, 'x.wet', max_bytes=4_000)
  assert batch.texts == ['short']
  assert quarantine.counts == {'too long': 1}


def test_every_cut_of_a_crawl_is_survived(tmp_path):
  content = _wet()
  for end in range(0, len(content), 7):
    (tmp_path / 'x.warc.wet.gz').write_bytes(content[:end])
    batches, quarantine = _read(tmp_path, 'x.warc.wet.gz')
    assert sum(map(len, batches)) <= 2
    assert sum(quarantine.counts.values()) <= 3


# --- inputs ------------------------------------------------------------------


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({}, 'exactly one of source, files and tfds'),
    ({'source': 'code_py', 'files': 'x'}, 'exactly one'),
    ({'source': 'code_pi'}, "did you mean 'code_py'"),
    ({'source': 'code_py', 'task': 'wrong'}, 'language_kind_source'),
    ({'file': 'x'}, "did you mean 'files'"),
    ({'files': '/nowhere/*.jsonl'}, 'no file matches /nowhere'),
  ],
)
def test_wrong_inputs_are_refused_by_name(tmp_path, settings, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _units(tmp_path, **settings)
