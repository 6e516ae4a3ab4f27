"""The local runner: what Beam means, on disk, and nothing lost in silence."""

import dataclasses
import errno
import os
import pathlib
import pickle
import time

import apache_beam as beam
import pytest

from yi_jax.curation import local_runner, running, segments, shuffle, spill


def _keep(value, folder, name):
  path = pathlib.Path(folder, f'{name}-{time.time_ns()}-{os.getpid()}')
  path.write_bytes(pickle.dumps(value))


def _kept(folder, name):
  paths = pathlib.Path(folder).glob(f'{name}-*')
  return sorted((pickle.loads(path.read_bytes()) for path in paths), key=repr)


def _run(make, workers=1, folder=None):
  pipeline = beam.Pipeline(runner=local_runner.LocalRunner(workers, folder))
  make(pipeline)
  return pipeline.run()


class _Sums(beam.DoFn):
  """Emits once a bundle, after setup and start."""

  def setup(self):
    self.ready = True

  def start_bundle(self):
    assert self.ready
    self.total = 0

  def process(self, element):
    beam.metrics.Metrics.counter('test', 'elements').inc()
    self.total += element
    return ()

  def finish_bundle(self):
    yield beam.utils.windowed_value.WindowedValue(
      self.total,
      beam.transforms.window.MIN_TIMESTAMP,
      [beam.transforms.window.GlobalWindow()],
    )


def _everything(folder):
  """A pipeline with all that the runner knows; its results go to files."""

  def make(pipeline):
    def keep(name):
      return f'keep {name}' >> beam.Map(_keep, folder, name)

    numbers = pipeline | beam.Create(range(60)) | beam.Reshuffle()
    pairs = numbers | 'pairs' >> beam.Map(lambda n: (n % 3, n))
    sums = pairs | beam.GroupByKey() | beam.Map(lambda p: (p[0], sum(p[1])))
    _ = sums | keep('sums')
    total = numbers | 'total' >> beam.CombineGlobally(sum)
    shares = numbers | 'shares' >> beam.Map(
      lambda n, t: n / t, beam.pvalue.AsSingleton(total)
    )
    _ = shares | 'one' >> beam.CombineGlobally(sum) | keep('one')
    looked_up = numbers | 'look' >> beam.FlatMap(
      lambda n, m: m[n % 5], beam.pvalue.AsMultiMap(sums)
    )
    _ = looked_up | beam.combiners.Count.PerElement() | keep('looked up')
    parts = numbers | beam.ParDo(
      lambda n: [n, beam.pvalue.TaggedOutput('odd', n)] if n % 2 else [n]
    ).with_outputs('odd', main='all')
    both = (parts.odd, parts['all'], parts.odd) | beam.Flatten()
    _ = both | beam.combiners.Count.Globally() | keep('flat')
    joined = {'pairs': pairs, 'sums': sums} | beam.CoGroupByKey()
    _ = (
      joined
      | 'sizes'
      >> beam.Map(lambda e: (e[0], *map(len, map(list, e[1].values()))))
      | keep('joined')
    )
    # What a side input is made of meets it: it has to wait on disk.
    more = numbers | 'more' >> beam.Map(lambda n: n + 1)
    most = more | 'most' >> beam.CombineGlobally(max)
    _ = (
      more
      | beam.Filter(lambda n, m: n == m, beam.pvalue.AsSingleton(most))
      | keep('most')
    )
    _ = (
      pipeline
      | 'again' >> beam.Create(['x'])
      | beam.Map(
        lambda x, a, b: (x, sorted(a), b),
        beam.pvalue.AsList(numbers),
        beam.pvalue.AsDict(sums),
      )
      | keep('lists')
    )
    _ = numbers | beam.ParDo(_Sums()) | keep('bundles')

  return make


@pytest.mark.parametrize('workers', [1, 2])
def test_it_does_what_beam_means(tmp_path, workers):
  (tmp_path / 'kept').mkdir()
  result = _run(
    _everything(str(tmp_path / 'kept')), workers, str(tmp_path / 'disk')
  )
  sums = [(0, 570), (1, 590), (2, 610)]
  kept = {
    name: _kept(tmp_path / 'kept', name)
    for name in (
      *('sums', 'one', 'looked up', 'flat', 'joined', 'most', 'lists'),
      'bundles',
    )
  }
  bundles = kept.pop('bundles')
  assert kept == {
    'sums': sums,
    'one': [pytest.approx(1)],
    'looked up': [(total, 12) for _, total in sums],
    'flat': [120],
    'joined': [(key, 20, 1) for key, _ in sums],
    'most': [60],
    'lists': [('x', list(range(60)), dict(sums))],
  }
  assert len(bundles) >= 4
  assert sum(bundles) == sum(range(60))
  assert result.counters['test', 'elements'] == 60
  assert not (tmp_path / 'disk').exists()


def _grouped(pipeline):
  pairs = pipeline | beam.Create([(n % 4, n) for n in range(40)])
  return pairs | beam.Reshuffle() | beam.GroupByKey() | beam.Map(len)


def test_a_record_that_is_not_read_ends_the_run(monkeypatch):
  real = segments.run

  def skip(bundle):
    source = bundle.source[1:]
    return real(dataclasses.replace(bundle, source=source))

  monkeypatch.setattr(segments, 'run', skip)
  with pytest.raises(OSError, match=r'read \d+ of the 40 records'):
    _run(_grouped)


def test_rows_that_were_sent_and_did_not_arrive_are_told():
  counters = {
    ('rows sent', 'a'): 10,
    ('rows arrived', 'a'): 10,
    ('rows sent', 'b'): 10,
    ('rows arrived', 'b'): 7,
    ('rows sent', 'c'): 5,
    ('else', 'd'): 5,
  }
  assert shuffle.lost(counters) == {'b': (3, 10), 'c': (5, 5)}
  with pytest.raises(ValueError, match="3 of 10 rows of the exchange 'b'"):
    running._check('minhash', counters)


@pytest.mark.parametrize('cut', [0, 5])
def test_a_file_that_changed_is_found_out(tmp_path, cut):
  writer = spill.Writer(str(tmp_path), 'file')
  for value in ('one', 'two'):
    writer.write(b'', value)
  writer.close()
  entries = [entry for _, entry in writer.entries]
  assert list(spill.Records(str(tmp_path), entries)) == ['one', 'two']
  content = bytearray((tmp_path / 'file').read_bytes())
  if cut:
    del content[-cut:]
  else:
    content[-3] ^= 1
  (tmp_path / 'file').write_bytes(content)
  with pytest.raises(OSError, match='file is not what was written'):
    list(spill.Records(str(tmp_path), entries))


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
  def full(self, key, value):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(spill.Writer, 'write', full)
  with pytest.raises(OSError, match='No space left') as error:
    _run(_grouped, 1, str(tmp_path / 'disk'))
  assert error.value.errno == errno.ENOSPC
  assert not (tmp_path / 'disk').exists()


def test_leftovers_of_a_run_that_was_killed_do_not_matter(tmp_path):
  (tmp_path / 'disk').mkdir()
  (tmp_path / 'disk' / '0000-000000-0').write_bytes(b'half')
  _run(_everything(str(tmp_path)), 1, str(tmp_path / 'disk'))
  assert _kept(tmp_path, 'most') == [60]


class _Stateful(beam.DoFn):
  """Has state."""

  STATE = beam.DoFn.StateParam(
    beam.transforms.userstate.CombiningValueStateSpec('n', sum)
  )

  def process(self, element, state=STATE):
    yield element


def _windowed(pipeline):
  numbers = pipeline | beam.Create([(1, 2)])
  windows = beam.WindowInto(beam.transforms.window.FixedWindows(5))
  _ = numbers | windows | beam.GroupByKey()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda p: p | beam.Create([(1, 2)]) | beam.ParDo(_Stateful()),
      'has state',
    ),
    (_windowed, 'one window only'),
  ],
)
def test_what_it_does_not_know_is_refused_by_name(make, message):
  with pytest.raises(NotImplementedError, match=message):
    _run(make)
