"""How much of an accelerator the training step uses.

  python experiments/benchmarks/mfu.py            # one GPU or TPU chip, or more
  python experiments/benchmarks/mfu.py --preset=tiny --rows=2 --length=64

A dense model of 1.06B parameters in Yi-1.5's proportions (hidden 2,048, MLP 2.69
times that, heads of 128), bfloat16, rows of 4,096 tokens, all devices as one
FSDP mesh. It needs jax, flax, optax and numpy only. The last line is JSON:
tokens/s and `mfu`, model FLOPs (attention at its causal half) over the peak of
the devices, null where the peak is not known. The ten operations that take
longest stand before it.
"""

import argparse
import json
import statistics
import time

import jax
import profile_step
import train_step

from yi_jax.models import config as config_lib
from yi_jax.training import metrics

_ONE_BILLION = dict(
  hidden_size=2048,
  intermediate_size=5504,
  num_hidden_layers=18,
  num_attention_heads=16,
  num_key_value_heads=4,
)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--preset', help='a published size instead of the 1B')
  parser.add_argument('--rows', type=int, default=4, help='of a step')
  parser.add_argument('--length', type=int, default=4096)
  parser.add_argument('--remat', default='dots', choices=config_lib.REMATS)
  parser.add_argument('--steps', type=int, default=20)
  flags = parser.parse_args()
  preset = flags.preset or 'yi_1_5_6b'
  overrides = {} if flags.preset else dict(_ONE_BILLION)
  overrides['remat'] = flags.remat
  model = config_lib.get_preset(preset, **overrides)
  clock = time.perf_counter()
  update, state, batch = train_step.build(
    flags.rows, flags.length, preset, **overrides
  )
  print(
    f'{config_lib.num_params(model):,} parameters on {jax.device_count()} x '
    f'{jax.devices()[0].device_kind}; ready in '
    f'{time.perf_counter() - clock:.0f} s',
    flush=True,
  )
  seconds = []
  for _ in range(flags.steps + 2):
    clock = time.perf_counter()
    state, values = update(state, batch)
    jax.block_until_ready(values)
    seconds.append(time.perf_counter() - clock)
  step = statistics.median(seconds[2:])
  profile_step.top(update, state, batch)
  rate = flags.rows * flags.length / step
  kind = jax.devices()[0].device_kind
  mfu = metrics.mfu(model, flags.length, rate, kind, jax.device_count())
  print(
    json.dumps(
      {
        'benchmark': 'mfu',
        'device': kind,
        'devices': jax.device_count(),
        'rows': flags.rows,
        'length': flags.length,
        'step_seconds': round(step, 4),
        'tokens_per_second': round(rate),
        'loss': round(float(values['loss']), 4),
        'mfu': mfu and round(mfu, 4),
      }
    )
  )


if __name__ == '__main__':
  main()
