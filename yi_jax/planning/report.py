"""What plan prints: one table for people, one JSON line for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from yi_jax.models import config as model_config
from yi_jax.planning import compiling, roofline, search, topologies
from yi_jax.sharding import mesh as mesh_lib

_ESTIMATE = (
  'an estimate: XLA:CPU compiled this for virtual devices, as there is no GPU'
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """One step, planned.

  Attributes:
    title: what was compiled.
    values: what the JSON line has of it.
    lines: the rows of the table, (name, figure, remark).
  """

  title: str
  values: dict[str, Any]
  lines: list[tuple[str, str, str]]


def mesh_sizes(config: Any, topology: topologies.Topology) -> dict[str, int]:
  """Returns the size of every mesh axis, as training would make it.

  Raises:
    ValueError: if the mesh does not fit the number of devices.
  """
  mesh = config['mesh']
  sizes = {axis: mesh[axis] for axis in mesh_lib.AXES if axis in mesh}
  shape = mesh_lib.mesh_shape(sizes, topology.num_devices)
  return dict(zip(mesh_lib.AXES, shape, strict=True))


def train(layout: search.Layout, measured: compiling.Measured) -> Plan:
  """Returns the plan of a training step."""
  run, topology = layout.run, layout.topology
  expected = roofline.memory(run, layout.sizes)
  times = layout.measured(measured)
  tokens = run.rows * run.length
  pieces = run.optimizer.accumulate_steps
  fits = search.fits(measured, topology)
  values = {
    **_values('train', layout, measured),
    'formulas': dataclasses.asdict(expected),
    'model_flops': times.model_flops * topology.num_devices,
    'tokens': tokens,
    'microbatch_tokens': tokens // pieces,
    'seconds_compute': times.compute,
    'seconds_hbm': times.hbm,
    'seconds_links': times.links,
    'seconds_overlapped': times.overlapped,
    'seconds_apart': times.apart,
    'mfu_overlapped': times.mfu(times.overlapped),
    'mfu_apart': times.mfu(times.apart),
    **_ring_values(layout),
    'changes': [] if fits else [text for text, _ in changes(layout)],
  }
  lines = [
    ('parameters', f'{model_config.num_params(run.model):,}', ''),
    (
      'tokens',
      f'{tokens:,} a step',
      f'{pieces} microbatches of {tokens // pieces:,}',
    ),
    *_memory(measured, topology),
    ('  gradients', _gib(expected.gradients), 'formula, part of temporaries'),
    ('  activations', _gib(expected.activations), 'formula, likewise'),
    *_collectives(measured),
  ]
  if measured.fits:
    lines += _times(times, topology) + _ring_lines(layout)
  if not fits:
    lines += [
      ('try', f'{_gib(total)} by formula', f'--config.{text}')
      for text, total in changes(layout)
    ]
    if larger := topology.next():
      lines.append(('or', 'a larger slice', f'--topology={larger.name}'))
  return Plan(f'training step, {_where(layout)}', values, lines)


def decode(job: compiling.Job, measured: compiling.Measured) -> Plan:
  """Returns the plan of a decoding step: every device reads all it holds."""
  topology = topologies.parse(job.topology)
  layout = search.Layout(job.run, topology, job.sizes)
  links = {
    axes: size / speed for axes, (size, speed) in search.sent(measured).items()
  }
  reading = measured.arguments / topology.chip.hbm_bandwidth
  overlapped, apart = (
    max(reading, *links.values(), 0.0),
    reading + sum(links.values()),
  )
  values = {
    **_values('decode', layout, measured),
    'rows': job.rows,
    'cache_length': job.run.length,
    'seconds_hbm': reading,
    'seconds_links': links,
    'tokens_per_second_overlapped': job.rows / overlapped,
    'tokens_per_second_apart': job.rows / apart,
  }
  lines = [
    ('rows', f'{job.rows:,}', f'caches of {job.run.length:,} tokens, full'),
    *_memory(measured, topology),
    *_collectives(measured),
  ]
  if measured.fits:
    lines += [
      ('read weights, cache', _time(reading), 'arguments over HBM bandwidth'),
      *((f'send over {k}', _time(v), '') for k, v in links.items()),
      ('step, overlapped', _time(overlapped), _rate(job.rows / overlapped)),
      ('step, apart', _time(apart), _rate(job.rows / apart)),
    ]
  return Plan(f'decoding step, {_where(layout)}', values, lines)


def changes(layout: search.Layout) -> list[tuple[str, int]]:
  """Returns what to change so that less memory is needed, and how much then.

  Returns:
    ('key=value', bytes a device by formula) of each single change that helps,
    the one that helps most first.
  """
  run, sizes = layout.run, layout.sizes
  now = roofline.memory(run, sizes).total
  ways = []
  if run.model.remat != 'full':
    changed = dataclasses.replace(run, model=run.model.replace(remat='full'))
    ways.append(('model.overrides.remat=full', changed, sizes))
  rows = run.rows // (sizes['data'] * sizes['fsdp'])
  pieces = run.optimizer.accumulate_steps * 2
  if rows % pieces == 0:
    settings = dataclasses.replace(run.optimizer, accumulate_steps=pieces)
    changed = dataclasses.replace(run, optimizer=settings)
    ways.append((f'optimizer.accumulate_steps={pieces}', changed, sizes))
    if run.optimizer.accumulate_steps == 1:
      changed = dataclasses.replace(run, rows=run.rows // 2)
      tokens = changed.rows * run.length
      ways.append((f'data.batch_tokens={tokens}', changed, sizes))
  if sizes['fsdp'] % 2 == 0 and 2 * rows % pieces == 0:
    # Twice the rows a device, cut into twice the microbatches.
    more = {**sizes, 'fsdp': sizes['fsdp'] // 2, 'tensor': sizes['tensor'] * 2}
    settings = dataclasses.replace(run.optimizer, accumulate_steps=pieces)
    changed = dataclasses.replace(run, optimizer=settings)
    keys = {f'mesh.{axis}': more[axis] for axis in ('tensor', 'fsdp')}
    keys['optimizer.accumulate_steps'] = pieces
    text = ' --config.'.join(f'{key}={size}' for key, size in keys.items())
    ways.append((text, changed, more))
  if sizes['data'] > 1:
    more = {**sizes, 'data': 1, 'fsdp': sizes['fsdp'] * sizes['data']}
    ways.append((f'mesh.data=1 --config.mesh.fsdp={more["fsdp"]}', run, more))
  found = [
    (text, roofline.memory(changed, cut).total) for text, changed, cut in ways
  ]
  return sorted((x for x in found if x[1] < now), key=lambda x: x[1])


def as_json(plans: Sequence[Plan]) -> dict[str, Any]:
  """Returns all plans as one JSON-ready object by kind of step."""
  return {plan.values['kind']: plan.values for plan in plans}


def as_text(plans: Sequence[Plan]) -> str:
  """Returns the tables of all plans."""
  blocks = []
  for plan in plans:
    widths = [max(len(line[i]) for line in plan.lines) for i in (0, 1)]
    rows = [
      f'  {name:<{widths[0]}}  {figure:>{widths[1]}}  {remark}'.rstrip()
      for name, figure, remark in plan.lines
    ]
    blocks.append('\n'.join([plan.title, *rows]))
  return '\n\n'.join(blocks)


def ranking(found: Sequence[search.Found]) -> list[dict[str, Any]]:
  """Returns searched layouts, JSON-ready, in their order."""
  return [
    {
      'keys': one.layout.keys(),
      'fits': one.fits,
      'bytes': one.measured.needed,
      'seconds_overlapped': one.roofline.overlapped,
      'seconds_apart': one.roofline.apart,
      'mfu_overlapped': one.roofline.mfu(one.roofline.overlapped),
      'mfu_apart': one.roofline.mfu(one.roofline.apart),
    }
    for one in found
  ]


def ranking_table(found: Sequence[search.Found]) -> str:
  """Returns the table of searched layouts."""
  lines = ['memory     share  MFU: overlapped  apart  layout']
  for one in found:
    needed, times = one.measured.needed, one.roofline
    share = needed / one.layout.topology.chip.hbm
    keys = ' '.join(f'--config.{k}={v}' for k, v in one.layout.keys().items())
    mfu = '   does not fit       '
    if one.fits:
      overlapped, apart = (
        times.mfu(t) for t in (times.overlapped, times.apart)
      )
      mfu = f'{overlapped:>15.0%}  {apart:>5.0%}'
    lines.append(f'{_gib(needed):>9}  {share:>5.0%}  {mfu}  {keys}')
  return '\n'.join(lines)


# ------------------------------------------------------------------------ lines


def _values(
  kind: str, layout: search.Layout, measured: compiling.Measured
) -> dict[str, Any]:
  return {
    'kind': kind,
    'topology': layout.topology.name,
    'devices': layout.topology.num_devices,
    'estimate': not layout.topology.is_tpu,
    'mesh': {k: v for k, v in layout.sizes.items() if v > 1},
    'remat': layout.run.model.remat,
    'fits': search.fits(measured, layout.topology),
    'limit': round(layout.topology.chip.hbm),
    'bytes': {
      name: getattr(measured, name)
      for name in (
        *('arguments', 'outputs', 'aliased', 'temporaries', 'code', 'needed'),
      )
    },
    'collectives': [
      dict(zip(('kind', 'axes', 'count', 'bytes'), one, strict=True))
      for one in measured.collectives
    ],
    'compile_seconds': measured.seconds,
    'warnings': list(measured.warnings),
  }


def _where(layout: search.Layout) -> str:
  mesh = ' x '.join(f'{k} {v}' for k, v in layout.sizes.items() if v > 1)
  text = f'{layout.topology.name}, {mesh or "one device"}'
  text += f', remat {layout.run.model.remat}'
  return text if layout.topology.is_tpu else f'{text} ({_ESTIMATE})'


def _memory(
  measured: compiling.Measured, topology: topologies.Topology
) -> list[tuple[str, str, str]]:
  limit = topology.chip.hbm
  share = f'{measured.needed / limit:.0%} of {_gib(limit)}'
  if not measured.fits:
    said = f'{share}: the compiler gave up, so it may be more'
    return [('memory a device', _gib(measured.needed), said)]
  verdict = 'fits' if measured.needed <= limit else 'DOES NOT FIT'
  donated = f'and {_gib(measured.aliased)} written over the arguments'
  return [
    ('memory a device', _gib(measured.needed), f'{share}: {verdict}'),
    ('  arguments', _gib(measured.arguments), ''),
    ('  outputs', _gib(measured.outputs), donated),
    ('  code', _gib(measured.code), ''),
    ('  temporaries', _gib(measured.temporaries), '; '.join(measured.warnings)),
  ]


def _collectives(
  measured: compiling.Measured,
) -> list[tuple[str, str, str]]:
  return [
    (
      f'{kind} over {", ".join(axes)}',
      f'{size / 1e9:.2f} GB',
      f'{count:,} times, sent by a device',
    )
    for kind, axes, count, size in measured.collectives
    if size > 1e6
  ]


def _times(
  times: roofline.Roofline, topology: topologies.Topology
) -> list[tuple[str, str, str]]:
  peak = f'at {topology.chip.peak / 1e12:,.0f} TFLOP/s, with what remat repeats'
  needed = f'{times.model_flops / 1e12:,.0f} TFLOP'
  lines = [
    ('model FLOPs a device', needed, 'a step, nothing twice'),
    ('compute', _time(times.compute), peak),
    ('read and write HBM', _time(times.hbm), 'formula'),
  ]
  for axes, seconds in times.links.items():
    lines.append((f'send over {axes}', _time(seconds), ''))
  for name, seconds, remark in (
    ('step, overlapped', times.overlapped, 'the slowest of these alone'),
    ('step, apart', times.apart, 'their sum'),
  ):
    mfu = f'MFU {times.mfu(seconds):.0%}: {remark}'
    lines.append((name, _time(seconds), mfu))
  return lines


def _ring_values(layout: search.Layout) -> dict[str, Any]:
  if (found := layout.ring()) is None:
    return {}
  return {'ring': {**dataclasses.asdict(found), 'share': found.share}}


def _ring_lines(layout: search.Layout) -> list[tuple[str, str, str]]:
  if (found := layout.ring()) is None:
    return []
  parts = f'{_time(found.compute)} of products, {_time(found.sending)} of '
  told = f'{parts}sending beside them: formula'
  return [('ring attention', f'{found.share:.0%} of dense', told)]


def _gib(size: float) -> str:
  return f'{size / topologies.GIB:.2f} GiB'


def _time(seconds: float) -> str:
  return f'{seconds:.3f} s' if seconds >= 0.1 else f'{seconds * 1e3:.2f} ms'


def _rate(tokens: float) -> str:
  return f'{tokens:,.0f} tokens/s'
