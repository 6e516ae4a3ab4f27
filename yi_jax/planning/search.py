"""Which layout of a run is fastest on a machine, among those that fit.

The formulas of roofline.py rank every mesh of FSDP and tensor parallelism,
every remat policy and number of microbatches; the compiler then says of the
best whether they really fit, and what they send.
"""

import dataclasses
from collections.abc import Callable, Iterator

from yi_jax.planning import compiling, roofline, topologies
from yi_jax.training import run_config

# Formulas are trusted so far: a layout which by them needs more than this share
# of the memory is not compiled.
_TRUSTED = 1.1
_REMATS = ('none', 'dots', 'full')
_MOST_TENSOR = 16


@dataclasses.dataclass(frozen=True)
class Layout:
  """One way to spread a run over a machine.

  Attributes:
    run: the run with this remat and number of microbatches.
    topology: the machine.
    sizes: the mesh.
  """

  run: run_config.Run
  topology: topologies.Topology
  sizes: dict[str, int]

  @property
  def microbatch(self) -> int:
    """Rows of a microbatch, over all devices."""
    return self.run.rows // self.run.optimizer.accumulate_steps

  @property
  def mesh(self) -> str:
    """FSDP x tensor."""
    return f'{self.sizes["fsdp"]} x {self.sizes["tensor"]}'

  @property
  def job(self) -> compiling.Job:
    return compiling.Job('train', self.run, self.topology.name, self.sizes)

  def expected(self) -> tuple[roofline.Memory, roofline.Roofline]:
    """Returns memory and times by formula."""
    sent = roofline.expected(self.run, self.topology, self.sizes)
    return roofline.memory(self.run, self.sizes), roofline.roofline(
      self.run, self.topology, self.sizes, sent
    )

  def measured(self, measured: compiling.Measured) -> roofline.Roofline:
    """Returns the times with what the compiled program sends."""
    return roofline.roofline(
      self.run, self.topology, self.sizes, sent(measured)
    )

  def ring(self) -> roofline.Ring | None:
    """Returns the times of ring attention, None where rows are whole."""
    if self.sizes.get('context', 1) == 1:
      return None
    chip = self.topology.chip
    # One way along one dimension; GPUs may stand on several nodes.
    whole = self.topology.is_tpu or self.topology.shape[0] == 1
    speed = chip.link if whole else chip.across
    return roofline.ring(self.run, self.topology, self.sizes, speed)

  def keys(self) -> dict[str, object]:
    """Returns the config keys that choose this layout."""
    return {
      'model.overrides.remat': self.run.model.remat,
      'optimizer.accumulate_steps': self.run.optimizer.accumulate_steps,
      **{f'mesh.{axis}': size for axis, size in self.sizes.items()},
    }


@dataclasses.dataclass(frozen=True)
class Found:
  """A layout that was compiled."""

  layout: Layout
  measured: compiling.Measured
  roofline: roofline.Roofline

  @property
  def fits(self) -> bool:
    return fits(self.measured, self.layout.topology)


def sent(measured: compiling.Measured) -> dict[str, tuple[float, float]]:
  """Returns bytes a device sends and bytes/s, by ','-joined axes."""
  total: dict[str, float] = {}
  for _, axes, _, size in measured.collectives:
    name = ','.join(axes)
    total[name] = total.get(name, 0.0) + size
  return {
    name: (size, measured.bandwidths[name]) for name, size in total.items()
  }


def fits(measured: compiling.Measured, topology: topologies.Topology) -> bool:
  """Whether a compiled program fits the memory of a device."""
  return measured.fits and measured.needed <= topology.chip.hbm


def layouts(
  run: run_config.Run,
  topology: topologies.Topology,
  microbatches: Callable[[int], list[tuple[int, int]]] | None = None,
) -> Iterator[Layout]:
  """Yields every layout to consider.

  Args:
    run: the run; its remat and accumulate_steps are replaced.
    topology: the machine.
    microbatches: from the number of devices that cut rows to pairs of (rows a
      step, microbatches); None keeps the rows and cuts them every way.
  """
  devices = topology.num_devices
  tensor = 1
  while tensor <= min(devices, _MOST_TENSOR):
    shards = devices // tensor
    if _divides(run, tensor) and devices % tensor == 0:
      pairs = (microbatches or _cuts(run))(shards)
      for rows, pieces in pairs:
        for remat in _REMATS:
          changed = dataclasses.replace(
            run,
            rows=rows,
            model=run.model.replace(remat=remat),
            optimizer=dataclasses.replace(
              run.optimizer, accumulate_steps=pieces
            ),
          )
          sizes = {'data': 1, 'fsdp': shards, 'tensor': tensor}
          yield Layout(changed, topology, sizes)
    tensor *= 2


def _divides(run: run_config.Run, tensor: int) -> bool:
  c = run.model
  sizes = (c.num_attention_heads, c.intermediate_size, c.vocab_size)
  return all(size % tensor == 0 for size in sizes)


def _cuts(run: run_config.Run) -> Callable[[int], list[tuple[int, int]]]:
  """Returns the ways to cut a run's rows for so many devices."""

  def ways(shards: int) -> list[tuple[int, int]]:
    if run.rows % shards:
      return []
    each = run.rows // shards
    return [(run.rows, n) for n in range(1, each + 1) if each % n == 0]

  return ways


def ranked(candidates: Iterator[Layout]) -> list[Layout]:
  """Returns layouts that may fit by formula, the fastest first."""
  scored = []
  for layout in candidates:
    memory, times = layout.expected()
    if memory.total <= _TRUSTED * layout.topology.chip.hbm:
      # Of equals the one that needs less.
      scored.append((_score(times), memory.total, len(scored), layout))
  return [entry[-1] for entry in sorted(scored)]


def _score(times: roofline.Roofline) -> float:
  """Seconds to rank by: half-way between full overlap and none."""
  return round((times.overlapped + times.apart) / 2, 4)


def search(
  run: run_config.Run,
  topology: topologies.Topology,
  most: int,
  tell: Callable[[str], None],
) -> list[Found]:
  """Compiles the layouts that look best and ranks them.

  Args:
    run: the run; its rows a step stay.
    topology: the machine.
    most: programs to compile.
    tell: told what goes on.

  Returns:
    Those that fit, fastest first, then those that do not.

  Raises:
    ValueError: if no layout can fit even by formula.
  """
  candidates = list(layouts(run, topology))
  best = ranked(iter(candidates))
  tell(f'{len(candidates)} layouts, {len(best)} may fit by formula')
  if not best:
    raise ValueError(
      f'by formula no layout of {run.rows} rows fits {topology.name}; take a '
      'larger slice, or another data.batch_tokens that its devices divide'
    )
  found = []
  for i, layout in enumerate(best[:most]):
    measured = compiling.compile_job(layout.job)
    one = Found(layout, measured, layout.measured(measured))
    found.append(one)
    shown = ' '.join(f'{key}={value}' for key, value in layout.keys().items())
    verdict = 'fits' if one.fits else 'does not fit'
    tell(f'{i + 1}/{min(most, len(best))} {shown}: {verdict}')
  return sorted(found, key=lambda f: (not f.fits, _score(f.roofline)))
