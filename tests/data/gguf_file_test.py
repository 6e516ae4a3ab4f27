"""The header of GGUF files, against the reader and writer of the format."""

import gguf
import numpy as np
import pytest

from yi_jax.data import gguf_file


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'x.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  for number, kind in enumerate(
    ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64', 'int64')
  ):
    getattr(writer, f'add_{kind}')(f'test.{kind}', number + 100)
  writer.add_float32('test.float32', 0.1)
  writer.add_float64('test.float64', 0.1)
  writer.add_bool('test.bool', True)
  writer.add_string('test.string', '国家 \x00')
  writer.add_array('test.strings', ['a', '', '😀'])
  writer.add_array('test.numbers', [1, -2, 3])
  writer.add_array('test.nested', [['a'], ['b', 'c']])
  writer.add_tensor('a', np.arange(6, dtype=np.float32).reshape(2, 3))
  writer.add_tensor('b', np.arange(5, dtype=np.float16))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_metadata_and_tensors_are_those_of_the_package(path):
  reader, found = gguf.GGUFReader(path), gguf_file.File(path)
  keys = [key for key in reader.fields if not key.startswith('GGUF.')]
  assert list(found.metadata) == keys
  for key in keys:
    if key != 'test.nested':  # the package flattens it
      value = found.metadata[key]
      value = value.tolist() if isinstance(value, np.ndarray) else value
      assert value == reader.fields[key].contents(), key
  assert found.metadata['test.nested'] == [['a'], ['b', 'c']]
  for tensor in reader.tensors:
    mine = found.tensors[tensor.name]
    assert mine.shape == tuple(reversed(tensor.shape.tolist()))
    assert mine.type == tensor.tensor_type
    content = found.bytes_of(tensor.name, int(tensor.n_bytes))
    assert content.tobytes() == tensor.data.tobytes()


def test_every_file_that_is_cut_off_is_refused(path):
  content = path.read_bytes()
  start = gguf_file.File(path).tensors['a'].offset
  for size in (*range(4, start - 32, 13), start - 32):
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r'x\.gguf is cut off'):
      gguf_file.File(path)
  path.write_bytes(content[: start + 20])
  found = gguf_file.File(path)
  with pytest.raises(ValueError, match='cut off: a ends at byte .* fetch it'):
    found.bytes_of('a', 24)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', "no GGUF file: it begins with b''"),
    (b'PK\x03\x04 a zip', 'no GGUF file: it begins with'),
    (b'GGUF\x00\x00\x00\x03' + b'\0' * 64, 'has GGUF version 0x3000000'),
    (b'GGUF\x01\x00\x00\x00' + b'\0' * 64, 'has GGUF version 0x1'),
  ],
)
def test_other_files_are_named(path, content, message):
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    gguf_file.File(path)


def test_a_part_of_a_split_file_is_refused(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / 'x.gguf', 'llama')
  writer.add_uint16('split.count', 3)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  with pytest.raises(ValueError, match='one of 3 parts; join them'):
    gguf_file.File(tmp_path / 'x.gguf')
