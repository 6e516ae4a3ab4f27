"""docs/fits.md: the smallest slice on which each preset can be trained.

Formulas propose slice and layout, the compiler decides; where it says no, the
next layout or slice comes. Presets of equal shapes are compiled once, and every
result is kept, so that the command goes on where it was stopped.
"""

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable, Iterator, Sequence

from yi_jax.data import atomic
from yi_jax.models import config as model_config
from yi_jax.planning import compiling, search, topologies
from yi_jax.training import run_config

CHIPS = ('v4', 'v5e', 'v5p', 'v6e', 'tpu7x')
_TOKENS = 8192  # of a microbatch a chip, at most
_LENGTH = 4096
_COMFORTABLE = 0.9  # share of the memory that formulas may be wrong within

# Rows of the published long context, 20 a step (Yi report 7.1), and layouts
# for them: experiments/long_context.py has the same.
_LONG_LENGTH, _LONG_ROWS = 200_000, 20
_LONG = (
  ('yi_6b_200k', 'v5p:2x4x4', dict(fsdp=4, context=8, tensor=1)),
  ('yi_34b_200k', 'v5p:4x4x8', dict(fsdp=4, context=8, tensor=4)),
)

# What changes numbers, not shapes.
_SAME_SHAPE = dict(
  rms_norm_eps=1e-5, rope_theta=1e4, initializer_range=0.02, remat='full'
)


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    presets: models of this shape.
    chip: kind of chip.
    found: the layout; None if no slice of the list is large enough.
  """

  presets: tuple[str, ...]
  chip: str
  found: search.Found | None


def shapes() -> dict[tuple[str, ...], model_config.ModelConfig]:
  """Returns the dense presets by shape: names -> the model to compile."""
  named: dict[model_config.ModelConfig, list[str]] = {}
  for name in model_config.preset_names():
    preset = model_config.get_preset(name)
    length = min(_LENGTH, preset.max_position_embeddings)
    shape = preset.replace(
      max_position_embeddings=length,
      scan_layers=True,
      dtype='bfloat16',
      **_SAME_SHAPE,
    )
    named.setdefault(shape, []).append(name)
  return {tuple(names): shape for shape, names in named.items()}


def smallest(
  model: model_config.ModelConfig, chip: str, tell: Callable[[str], None]
) -> search.Found | None:
  """Returns the smallest slice on which a step fits, and its best layout."""
  first = topologies.CHIPS[chip].slices[0]
  topology = topologies.parse(f'{chip}:{first}')
  while topology is not None:
    for layout in _proposed(model, topology):
      measured = compiling.compile_job(layout.job)
      found = search.Found(layout, measured, layout.measured(measured))
      shown = f'{topology.name} {layout.mesh} {layout.run.model.remat}'
      gib = measured.needed / topologies.GIB
      verdict = 'fits' if found.fits else 'does not fit'
      tell(f'{shown}: {gib:.1f} GiB, {verdict} ({measured.seconds:.0f} s)')
      if found.fits:
        return found
    topology = topology.next()
  return None


def _proposed(
  model: model_config.ModelConfig, topology: topologies.Topology
) -> list[search.Layout]:
  """Returns the fastest layout by formula, then with room, then frugal."""
  config = run_config.defaults()
  config['model']['overrides'] = model.to_dict()
  config['data']['vocabulary_size'] = model.vocab_size
  config['data']['length'] = length = model.max_position_embeddings
  config['data']['batch_tokens'] = length
  run = run_config.resolve(config)

  def microbatches(shards: int) -> list[tuple[int, int]]:
    most = _TOKENS * topology.num_chips // (length * shards)
    ways = [n for n in (16, 8, 4, 2, 1) if n <= most]
    return [(n * shards, 1) for n in ways]

  best = search.ranked(search.layouts(run, topology, microbatches))
  if not best:
    return []
  # Layouts differ in the tokens of a step, so that MFU compares them.
  best.sort(key=lambda layout: -_expected_mfu(layout))
  room = [layout for layout in best if _share(layout) < _COMFORTABLE]
  chosen = [best[0], *room[:1], min(best, key=_share)]
  return [x for i, x in enumerate(chosen) if x not in chosen[:i]]


def _expected_mfu(layout: search.Layout) -> float:
  _, times = layout.expected()
  return times.mfu((times.overlapped + times.apart) / 2)


def _share(layout: search.Layout) -> float:
  """Returns the share of the memory a layout needs by formula."""
  memory, _ = layout.expected()
  return memory.total / layout.topology.chip.hbm


def rows(tell: Callable[[str], None]) -> Iterator[Row]:
  """Yields the rows of the table, in the order of the presets."""
  for presets, model in shapes().items():
    for chip in CHIPS:
      tell(f'{presets[0]} on {chip}')
      yield Row(presets, chip, smallest(model, chip, tell))


def long_layouts() -> dict[str, search.Layout]:
  """Returns preset -> layout of its step on rows of 200,000 tokens."""
  found = {}
  for preset, slice_name, cut in _LONG:
    config = run_config.defaults()
    config['model']['preset'] = preset
    config['model']['overrides'] = dict(remat='full')
    config['data'] |= dict(
      length=_LONG_LENGTH,
      batch_tokens=_LONG_ROWS * _LONG_LENGTH,
      vocabulary_size=0,
    )
    config['optimizer']['accumulate_steps'] = _LONG_ROWS // cut['fsdp']
    sizes = {'data': 1, **cut, 'expert': 1, 'stage': 1}
    found[preset] = search.Layout(
      run_config.resolve(config), topologies.parse(slice_name), sizes
    )
  return found


def long_section(tell: Callable[[str], None]) -> str:
  """Compiles the steps on rows of 200,000 tokens; returns their section."""
  lines = []
  for preset, layout in long_layouts().items():
    tell(f'{preset} on {layout.topology.name}, rows of {_LONG_LENGTH:,}')
    measured = compiling.compile_job(layout.job)
    times = layout.measured(measured)
    hbm, sizes = layout.topology.chip.hbm, layout.sizes
    cells = (
      preset,
      layout.topology.name,
      ' x '.join(str(sizes[axis]) for axis in ('fsdp', 'context', 'tensor')),
      str(layout.run.optimizer.accumulate_steps),
      _memory(measured.needed, hbm),
      f'{measured.needed / hbm:.0%}' if measured.fits else 'does not fit',
      f'{times.mfu(times.overlapped):.0%}',
      f'{times.mfu(times.apart):.0%}',
      f'{layout.ring().share:.0%}',
    )
    lines.append(f'| {" | ".join(cells)} |')
  return _LONG_PAGE.format(
    length=f'{_LONG_LENGTH:,}',
    rows=_LONG_ROWS,
    tokens=f'{_LONG_ROWS * _LONG_LENGTH:,}',
    table='\n'.join(lines),
  )


def write(path: pathlib.Path, tell: Callable[[str], None]) -> None:
  """Makes the page; each row is in it as soon as it is known.

  Args:
    path: the page.
    tell: told what goes on.
  """
  done: list[Row] = []
  with atomic.locked(path.with_name(f'.{path.name}.lock'), remove=True):
    for row in rows(tell):
      done.append(row)
      atomic.write(path, page(done).encode())
    atomic.write(path, (page(done) + long_section(tell)).encode())


def page(done: Sequence[Row]) -> str:
  """Returns the page for the rows that are known."""
  found = {(row.presets, row.chip): row.found for row in done}
  lines, missing = [], []
  for presets in shapes():
    for chip in CHIPS:
      if (presets, chip) not in found:
        missing.append(f'{presets[0]} on {chip}')
      else:
        lines.append(_line(presets, chip, found[presets, chip]))
  versions = ', '.join(
    f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'libtpu')
  )
  text = _PAGE.format(
    versions=versions, table='\n'.join(lines), tokens=f'{_TOKENS:,}'
  )
  if missing:
    listed = '\n'.join(f'- {name}' for name in missing)
    text += f'\n## Not there yet\n\nThe command goes on with\n\n{listed}\n'
  return text


def _line(
  presets: tuple[str, ...], chip: str, found: search.Found | None
) -> str:
  names = ', '.join(presets)
  if found is None:
    return f'| {names} | {chip} | none is large enough | | | | | | |'
  layout, needed = found.layout, found.measured.needed
  times, topology = found.roofline, layout.topology
  tokens = layout.microbatch * layout.run.length / topology.num_chips
  cells = (
    names,
    topology.name,
    layout.mesh,
    layout.run.model.remat,
    f'{tokens:,.0f}',
    _memory(needed, topology.chip.hbm),
    f'{needed / topology.chip.hbm:.0%}',
    f'{times.mfu(times.overlapped):.0%}',
    f'{times.mfu(times.apart):.0%}',
  )
  return f'| {" | ".join(cells)} |'


def _memory(needed: float, hbm: float) -> str:
  return f'{needed / topologies.GIB:.1f} of {hbm / topologies.GIB:.1f}'


_PAGE = """# What fits where

The smallest slice of each TPU on which a preset can be trained, and a layout of
it: the training step of `yi_jax.train` (float32 master weights, AdamW, bfloat16
products, splash attention), compiled by the TPU compiler for that slice, no TPU
needed. This page is made by

```bash
pip install -r requirements-tpu.txt
python -m yi_jax.plan --fits=docs/fits.md
```

with {versions}; stopped and started again, it goes on where it was. Rows are
4,096 tokens (512 for `tiny`), one microbatch a step, of at most {tokens} tokens a
chip. *Memory* is all the compiler reserves on a device: arguments, outputs,
temporaries and code; a tpu7x chip has two devices. MFU is a bound, not a
measurement ([plan](plan.md) says how it is counted): with all sending and
reading hidden behind products, and with none.

A larger slice needs less memory a chip and may take a faster layout: see
`--search`.

| presets | slice | FSDP x tensor | remat | tokens a chip | GiB a device | share | MFU, overlapped | MFU, apart |
|---|---|---|---|---|---|---|---|---|
{table}
"""

_LONG_PAGE = """
## Rows of {length} tokens

The steps of `experiments/long_context.py`: {rows} rows, {tokens} tokens a step,
remat `full`, a row cut over the axis `context` with ring attention. *Ring* is
the speed of ring attention beside attention that need not send, by formula
([plan](plan.md)).

| preset | slice | FSDP x context x tensor | microbatches | GiB a device | share | MFU, overlapped | MFU, apart | ring |
|---|---|---|---|---|---|---|---|---|
{table}
"""
