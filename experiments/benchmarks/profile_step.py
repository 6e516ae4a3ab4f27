"""Where a compiled training step spends its time, by part of the model."""

import collections
import glob
import re
import tempfile

import jax

# First match wins; what is searched is the name JAX gives each operation.
_PARTS = (
  ('projections', r'[qkvo]_proj'),
  ('attention', r'self_attn'),
  ('mlp', r'/mlp/'),
  ('norms', r'norm'),
  ('embedding', r'embed_tokens'),
  ('loss', r'bcd|bcv|logsumexp|while|scan'),
)


def report(update, state, batch, steps: int = 3) -> None:
  """Prints milliseconds a step of each part, most first.

  Operations run beside each other on several cores, so the parts add up to
  more than the step.

  Args:
    update: the compiled step.
    state: its state, donated.
    batch: its batch.
    steps: how many are traced, after two to warm up.
  """
  spent, names = _trace(update, state, batch, steps)
  parts = collections.Counter()
  for operation, seconds in spent.items():
    parts[_part(names.get(operation, ''))] += seconds
  total = sum(parts.values())
  for part, seconds in parts.most_common():
    print(f'{part:12s} {seconds * 1e3:7.1f} ms  {seconds / total:5.1%}')


def top(update, state, batch, count: int = 10, steps: int = 3) -> None:
  """Prints the operations that take longest; else as `report`."""
  spent, names = _trace(update, state, batch, steps)
  total = sum(spent.values())
  for operation, seconds in spent.most_common(count):
    name = names.get(operation, '').rpartition('jit(_update)/')[2]
    share = seconds / total
    print(f'{seconds * 1e3:8.2f} ms  {share:5.1%}  {operation}  {name}')


def _trace(update, state, batch, steps):
  """Returns seconds a step of each operation, and what JAX calls them."""
  for _ in range(2):
    state, values = update(state, batch)
  jax.block_until_ready((state, values))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        state, values = update(state, batch)
        jax.block_until_ready((state, values))
    (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    spent = _by_operation(jax.profiler.ProfileData.from_file(path))
  spent = collections.Counter({k: v / steps for k, v in spent.items()})
  return spent, _operation_names(update.as_text())


def _by_operation(data: jax.profiler.ProfileData) -> collections.Counter:
  spent = collections.Counter()
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        operation = dict(event.stats).get('hlo_op')
        # A loop's own event spans those of its body.
        if operation and not operation.startswith('while'):
          spent[operation] += event.duration_ns / 1e9
  return spent


def _operation_names(text: str) -> dict[str, str]:
  pattern = r'%?([\w.\-]+) = .*?metadata=\{[^}]*op_name="([^"]*)"'
  return dict(re.findall(pattern, text))


def _part(name: str) -> str:
  for part, pattern in _PARTS:
    if re.search(pattern, name.lower()):
      return part
  return 'optimizer and rest'
