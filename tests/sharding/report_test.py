"""The table of a layout, and the layouts that are refused."""

import io

import jax
import pytest

from yi_jax.models import config as config_lib
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import report, rules


@pytest.mark.parametrize(
  ('sizes', 'strategy', 'changes', 'message'),
  [
    (
      dict(tensor=4),
      'auto',
      dict(num_attention_heads=6, num_key_value_heads=2),
      r'mesh.tensor \(4\) does not divide num_attention_heads \(6\); .*\(2\)',
    ),
    (
      dict(tensor=4),
      'auto',
      dict(intermediate_size=11006),
      'intermediate_size',
    ),
    (dict(tensor=4), 'auto', dict(vocab_size=64001), 'vocab_size=64004'),
    (
      dict(fsdp=4),
      'auto',
      dict(hidden_size=4098),
      r'embed_tokens/embedding \[64000, 4098\] .* over mesh.fsdp = 4.*\(2\)',
    ),
    # Parameters are whole with ZeRO-1, moments are not.
    (
      dict(data=4),
      'zero1',
      dict(hidden_size=4098),
      'the moments of embed_tokens/embedding .* over mesh.data = 4',
    ),
  ],
)
def test_what_does_not_divide_is_refused(sizes, strategy, changes, message):
  config = config_lib.get_preset('yi_6b', **changes)
  with pytest.raises(ValueError, match=message):
    report.check(config, meshes.make_mesh(sizes), strategy)


def test_a_large_parameter_that_nothing_cuts_is_refused(monkeypatch):
  table = {**rules.FSDP_TENSOR, 'vocab': (), 'embed': ()}
  by_mistake = rules.Strategy('fsdp_tensor', table, table)
  monkeypatch.setitem(rules.STRATEGIES, 'fsdp_tensor', by_mistake)
  mesh = meshes.make_mesh(dict(tensor=4))
  with pytest.raises(ValueError, match='embedding .* whole on every device'):
    report.check(config_lib.get_preset('yi_6b', head_dim=128), mesh)


@pytest.mark.parametrize(
  ('sizes', 'strategy', 'preset'),
  [
    (dict(data=4), 'zero1', 'yi_34b'),
    (dict(tensor=4), 'auto', 'yi_34b'),
    (dict(fsdp=2, context=2), 'auto', 'yi_9b_200k'),
    (dict(fsdp=4), 'auto', 'tiny'),
    # Two key/value heads on four devices: small, and repeated.
    (dict(tensor=4), 'auto', 'tiny'),
  ],
)
def test_presets_are_taken(sizes, strategy, preset):
  mesh = meshes.make_mesh({**sizes, 'strategy': strategy})
  report.check(config_lib.get_preset(preset), mesh, strategy)


def test_the_table_names_every_parameter_and_its_bytes():
  config = config_lib.get_preset('yi_6b')
  mesh = meshes.make_mesh(dict(fsdp=2, tensor=2))
  text = io.StringIO()
  report.print_sharding(config, mesh, file=text)
  lines = {line.split()[0]: line for line in text.getvalue().splitlines()}
  assert len(lines) == 1 + 12 + 1
  line = lines['layers/mlp/up_proj/kernel'].split(maxsplit=1)[1]
  want = '32 x 4096 x 11008 - fsdp tensor 1,376.0 MiB 2,752.0 MiB'
  assert ' '.join(line.split()) == want
  # All of 6.06 billion parameters but the norms are cut in four.
  total = config_lib.num_params(config) * 4 / 2**20 / 4
  assert f'{total + 0.8:,.0f}.' in lines['sum']


def test_one_line_tells_the_layout():
  config = config_lib.get_preset('yi_6b')
  mesh = meshes.make_mesh(dict(data=4, strategy='zero1'))
  assert report.summary(config, mesh, 'zero1') == (
    'zero1 over data 4: 23,121.0 MiB of parameters and 11,562.0 MiB of moments '
    'a device'
  )
  alone = meshes.make_mesh({}, jax.devices()[:1])
  assert 'over one device' in report.summary(config, alone)
