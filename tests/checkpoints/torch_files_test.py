"""Files of torch.save: tensors are rebuilt, and nothing else is ever run."""

import collections
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from yi_jax.checkpoints import torch_files

_GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'pytorch_model.bin'


class _Named:
  """Pickles as a name of some module, which need not exist here."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class _Pickler(pickle._Pickler):
  """Writes what torch.save writes, from _Named and from _Storage."""

  dispatch = pickle._Pickler.dispatch.copy()

  def save_named(self, named):
    self.write(f'c{named.module}\n{named.name}\n'.encode())

  dispatch[_Named] = save_named

  def persistent_id(self, thing):
    return (
      thing if isinstance(thing, tuple) and thing[:1] == ('storage',) else None
    )


class _Call:
  """Pickles as a call of something."""

  def __init__(self, function, *arguments):
    self.pair = function, arguments

  def __reduce_ex__(self, protocol):
    return self.pair


class _SaveCalls(_Pickler):
  def save_reduce(self, func, args, *rest, obj=None, **more):
    self.save(func)
    self.save(args)
    self.write(pickle.REDUCE)


def _tensor(
  key='0', kind='FloatStorage', size=6, offset=0, shape=(2, 3), strides=(3, 1)
):
  storage = ('storage', _Named('torch', kind), key, 'cpu', size)
  rebuild = _Named('torch._utils', '_rebuild_tensor_v2')
  return _Call(
    rebuild, storage, offset, shape, strides, False, collections.OrderedDict()
  )


class _Evil:
  def __reduce__(self):
    return os.mkdir, ('evil',)


def _write(path, content, compress=zipfile.ZIP_STORED, byteorder=b'little'):
  buffer = io.BytesIO()
  _SaveCalls(buffer, 2).dump(content)
  with zipfile.ZipFile(path, 'w', compress) as archive:
    archive.writestr('archive/data.pkl', buffer.getvalue())
    archive.writestr('archive/byteorder', byteorder)
    numbers = np.arange(6, dtype=np.float32)
    archive.writestr('archive/data/0', numbers.tobytes())


def test_views_of_a_storage_are_read(tmp_path):
  _write(
    tmp_path / 'x.bin',
    {
      'rows': _tensor(),
      'columns': _tensor(shape=(3, 2), strides=(1, 3)),
      'end': _tensor(offset=4, shape=(2,), strides=(1,)),
    },
  )
  found = {
    name: leaf.read()
    for name, leaf in torch_files.read(tmp_path / 'x.bin').items()
  }
  np.testing.assert_array_equal(found['rows'], [[0, 1, 2], [3, 4, 5]])
  np.testing.assert_array_equal(found['columns'], [[0, 3], [1, 4], [2, 5]])
  np.testing.assert_array_equal(found['end'], [4, 5])


def test_a_pickle_that_does_more_is_named_and_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _write(tmp_path / 'x.bin', {'a': _tensor(), 'b': _Evil()})
  with pytest.raises(
    ValueError, match=r'not weights only.*asks for posix.mkdir'
  ):
    torch_files.read(tmp_path / 'x.bin')
  assert not (tmp_path / 'evil').exists()
  # The plain unpickler would have run it.
  pickle.loads(pickle.dumps(_Evil()))
  assert (tmp_path / 'evil').exists()


@pytest.mark.parametrize('name', ['eval', 'getattr', 'dict'])
def test_builtins_are_refused_too(tmp_path, name):
  call = _Call(_Named('builtins', name), '1')
  _write(tmp_path / 'x.bin', {'a': call})
  with pytest.raises(ValueError, match=f'asks for builtins.{name}'):
    torch_files.read(tmp_path / 'x.bin')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'a': _tensor(size=6, shape=(2, 4), strides=(4, 1))}, 'a .* needs 32 bytes'),
    ({'a': _tensor(offset=1)}, 'a .* needs 28 bytes'),
    ({'a': _tensor(strides=(-3, 1))}, 'damaged: what it says of a'),
    ({'a': _tensor(strides=(3,))}, 'damaged: what it says of a'),
    ({'a': _tensor(key='7')}, 'the numbers of a are missing'),
    ({'a': _tensor(kind='CharStorage')}, 'a in .* is a torch.CharStorage'),
    ({'epoch': 3, 'a': _tensor()}, "'epoch' is a int. A training checkpoint"),
    ([_tensor()], 'no state dict but list'),
    ({}, 'no state dict but dict'),
  ],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused(tmp_path, content, message):
  _write(tmp_path / 'x.bin', content)
  with pytest.raises(ValueError, match=message):
    torch_files.read(tmp_path / 'x.bin')


def test_files_of_another_make_are_refused(tmp_path):
  path = tmp_path / 'x.bin'
  path.write_bytes(pickle.dumps({}))
  with pytest.raises(ValueError, match=r'no zip archive.*before 1\.6'):
    torch_files.read(path)
  path.write_bytes(_GOLDEN.read_bytes()[:-100])
  with pytest.raises(ValueError, match='cut off'):
    torch_files.read(path)
  _write(path, {'a': _tensor()}, compress=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match='is compressed'):
    torch_files.read(path)
  _write(path, {'a': _tensor()}, byteorder=b'big')
  with pytest.raises(ValueError, match='big-endian'):
    torch_files.read(path)
