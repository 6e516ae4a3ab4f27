"""Compiles the real steps for machines that are not there.

Each program is compiled by a process of its own: the compiler can be stopped,
its memory goes when it is done, and a GPU's mesh needs virtual devices, whose
number is fixed when JAX starts. For TPUs that is libtpu's compiler, the one a
TPU would use, Mosaic kernels included. There is no compiler for GPUs without
one, so that XLA:CPU stands in: what it says is an estimate.

Results are kept below ~/.cache/yi_jax/plan by what was compiled.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import threading
import time
from typing import Any

from yi_jax import paths
from yi_jax.data import atomic
from yi_jax.planning import topologies
from yi_jax.training import run_config

_CURE = 'libtpu is missing; run: pip install -r requirements-tpu.txt'
_RESULT = b'\n--- result of yi_jax.planning ---\n'
_SECONDS = 1800  # longest compile


@dataclasses.dataclass(frozen=True)
class Job:
  """A program to compile.

  Attributes:
    kind: 'train', or 'decode' for one token a row with a full cache.
    run: the run; decoding takes its model and length.
    topology: e.g. 'v5p:4x4x8'.
    sizes: the mesh, see sharding.mesh.
    rows: rows that decode together.
  """

  kind: str
  run: run_config.Run
  topology: str
  sizes: dict[str, int]
  rows: int = 0


@dataclasses.dataclass(frozen=True)
class Measured:
  """What the compiler says of a program, for one device.

  Attributes:
    arguments: bytes.
    outputs: bytes of outputs that are not written over the arguments.
    aliased: bytes of outputs that are.
    temporaries: bytes.
    code: bytes.
    needed: bytes in all.
    collectives: (kind, axes, count, bytes sent) of each kind and axes.
    bandwidths: bytes/s among the devices along axes, by ','-joined names.
    seconds: what compiling took.
    fits: False if the compiler gave up for want of memory; only `needed` is
      known then, as far as it got.
    warnings: what it said that the user should know.
  """

  arguments: int = 0
  outputs: int = 0
  aliased: int = 0
  temporaries: int = 0
  code: int = 0
  needed: int = 0
  collectives: tuple[tuple[str, tuple[str, ...], int, int], ...] = ()
  bandwidths: dict[str, float] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  fits: bool = True
  warnings: tuple[str, ...] = ()


def compile_job(job: Job, fresh: bool = False) -> Measured:
  """Compiles a program, or takes what an earlier process kept of it.

  Args:
    job: the program.
    fresh: compile it even so.

  Raises:
    ValueError: if it cannot be compiled, with the compiler's words; or if
      libtpu is missing, with the cure.
  """
  topology = topologies.parse(job.topology)
  if topology.is_tpu and importlib.util.find_spec('libtpu') is None:
    raise ValueError(_CURE)
  path = _cache(job)
  if path.exists() and not fresh:
    return _from_json(json.loads(path.read_text()))
  measured = _in_process(job, topology)
  with atomic.locked(path.with_suffix('.lock'), remove=True):
    text = json.dumps(dataclasses.asdict(measured))
    atomic.write(path, text.encode())
  return measured


def _in_process(job: Job, topology: topologies.Topology) -> Measured:
  code = 'from yi_jax.planning import compiling; compiling.main()'
  done = subprocess.run(
    [sys.executable, '-c', code],
    input=pickle.dumps(job),
    capture_output=True,
    cwd=paths.REPOSITORY,
    env=_environment(topology),
    timeout=_SECONDS,
  )
  _, found, result = done.stdout.rpartition(_RESULT)
  complaints = done.stderr.decode(errors='replace')
  if not found:
    words = _last_words(complaints)
    raise ValueError(f'{job.topology}, {job.kind} step: {words}')
  kind, value = json.loads(result)
  if kind == 'refused':
    raise ValueError(value)
  measured = _from_json(value)
  copies = complaints.count('nvoluntary full rematerialization')
  if copies:
    text = f'{copies} arrays are replicated to change their sharding'
    measured = dataclasses.replace(measured, warnings=(text,))
  return measured


def _environment(topology: topologies.Topology) -> dict[str, str]:
  """Returns variables under which JAX sees no accelerator of this machine."""
  more = {
    'JAX_PLATFORMS': 'cpu',
    'TF_CPP_MIN_LOG_LEVEL': '1',
    'PYTHONPATH': str(paths.REPOSITORY),
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
  }
  if topology.is_tpu:
    more |= {
      'TPU_SKIP_MDS_QUERY': '1',
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      'TPU_WORKER_ID': '0',
      'TPU_ACCELERATOR_TYPE': 'v5p-8',  # read, and then not used
    }
  else:
    count = f'--xla_force_host_platform_device_count={topology.num_devices}'
    # Of two the last one counts.
    more['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {count}'
  return {**os.environ, **more}


def _last_words(text: str) -> str:
  """Returns the line that says why a process ended."""
  lines = [line for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if re.match(r'\S*(Error|error)\b', line)]
  return (errors or lines or ['the compiler ended without a word'])[-1][:500]


def _cache(job: Job) -> pathlib.Path:
  """Returns where the result of a job is kept: named by all that decides it."""
  package = pathlib.Path(__file__).resolve().parents[1]
  sources = [
    *package.glob('models/*.py'),
    *package.glob('sharding/*.py'),
    *package.glob('training/*.py'),
    pathlib.Path(__file__),
  ]
  digest = hashlib.sha256()
  for source in sorted(sources):
    digest.update(source.read_bytes())
  versions = []
  for name in ('jax', 'flax', 'optax', 'libtpu'):
    if importlib.util.find_spec(name):
      versions.append(importlib.metadata.version(name))
  what = json.dumps([dataclasses.asdict(job), versions], default=str)
  digest.update(what.encode())
  folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(folder, 'yi_jax', 'plan', f'{digest.hexdigest()}.json')


def _from_json(value: dict[str, Any]) -> Measured:
  found = tuple(
    (kind, tuple(axes), count, size)
    for kind, axes, count, size in value['collectives']
  )
  value = {**value, 'collectives': found, 'warnings': tuple(value['warnings'])}
  return Measured(**value)


# ------------------------------------------------ what the other process does


def main() -> None:
  """Compiles the job given on standard input; writes JSON to the output."""
  threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
  job = pickle.load(sys.stdin.buffer)
  try:
    result = ('measured', dataclasses.asdict(_measure(job)))
  except ValueError as error:
    result = ('refused', str(error))
  sys.stdout.flush()
  sys.stdout.buffer.write(_RESULT + json.dumps(result).encode())


def _end_with(parent: int) -> None:
  """Ends this process, whatever it compiles, when its parent has gone."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def _measure(job: Job) -> Measured:
  import jax

  from yi_jax.sharding import collectives

  topology = topologies.parse(job.topology)
  mesh = _mesh(topology, job.sizes)
  lowered = _lower(job, mesh, topology.is_tpu)
  started = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = re.search(r'(?:Used |temporaries \()([\d.]+)G', str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or not needed:
      raise
    return Measured(
      needed=round(float(needed[1]) * topologies.GIB),
      seconds=time.monotonic() - started,
      fits=False,
    )
  seconds = time.monotonic() - started
  memory = compiled.memory_analysis()
  found = collectives.collectives(compiled.as_text(), mesh)
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  parts = (
    memory.argument_size_in_bytes,
    fresh,
    memory.temp_size_in_bytes,
    memory.generated_code_size_in_bytes,
  )
  return Measured(
    arguments=parts[0],
    outputs=fresh,
    aliased=memory.alias_size_in_bytes,
    temporaries=parts[2],
    code=parts[3],
    needed=sum(parts),
    collectives=tuple((c.kind, c.axes, c.count, c.bytes) for c in found),
    bandwidths={
      ','.join(axes): topologies.bandwidth(
        topology, _group(topology, mesh, axes)
      )
      for axes in {c.axes for c in found}
    },
    seconds=seconds,
  )


def _mesh(topology: topologies.Topology, sizes: dict[str, int]) -> Any:
  """Returns the mesh, with the arrangement training would choose."""
  import jax

  from yi_jax.sharding import mesh as mesh_lib

  shape = mesh_lib.mesh_shape(sizes, topology.num_devices)
  if topology.is_tpu:
    from jax.experimental import topologies as jax_topologies

    options = {}
    if topology.chip.name == 'v4':
      options['chip_config_name'] = 'megacore'  # a chip is one device
    if topology.num_chips == 1:
      options['chips_per_host_bounds'] = [1, 1, 1]
    devices = jax_topologies.get_topology_desc(
      platform='tpu', topology_name=topology.name, **options
    ).devices
  else:
    devices = jax.devices()
  auto = (jax.sharding.AxisType.Auto,) * len(mesh_lib.AXES)
  placed = mesh_lib.arrange(shape, mesh_lib.AXES, devices)
  return jax.sharding.Mesh(placed, mesh_lib.AXES, axis_types=auto)


def _group(
  topology: topologies.Topology, mesh: Any, axes: tuple[str, ...]
) -> list[tuple[int, ...]]:
  """Returns where the devices of the first group along some axes stand."""
  index = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
  devices = mesh.devices[index].ravel()
  if not topology.is_tpu:
    return [divmod(device.id, topology.shape[1]) for device in devices]
  return [
    (*device.coords[: len(topology.shape)], device.core_on_chip)
    for device in devices
  ]


def _lower(job: Job, mesh: Any, is_tpu: bool) -> Any:
  """Lowers a step from shapes alone."""
  from yi_jax.models import attention
  from yi_jax.planning import decoding
  from yi_jax.training import train_step

  if job.kind == 'decode':
    return decoding.lower(job.run.model, mesh, job.rows, job.run.length)
  # By name: the backend of this process is the CPU.
  attend = attention.get('splash' if is_tpu else 'blockwise')
  return train_step.make(job.run, mesh, attention_fn=attend).lower()
