"""Joins the processes of one run, on one host or many.

Every process is started with the same command and learns from its environment
that it is one of several. What is looked at, in this order:

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
      by hand: host:port on the host of process 0, how many there are, and
      which this is, from 0
  YI_DISTRIBUTED=1
      JAX finds out by itself (TPU VMs ask the metadata server)
  SLURM_STEP_NUM_TASKS, SLURM_PROCID, SLURM_STEP_NODELIST, SLURM_JOB_ID
      a task of `srun`
  TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, and MEGASCALE_* for several slices
      TPU hosts, as GKE describes them
  SKYPILOT_NODE_IPS, SKYPILOT_NODE_RANK
      a node of a SkyPilot task
  JOBSET_NAME, REPLICATED_JOB_NAME, JOB_COMPLETION_INDEX, JAX_NUM_PROCESSES
      a pod of a Kubernetes JobSet with one indexed job

JAX_COORDINATOR_PORT replaces the port where the environment names none.
YI_JOIN_SECONDS is how long the others are waited for.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import socket
import sys
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from yi_jax.sharding import rendezvous

NotJoined = rendezvous.NotJoined

_BY_HAND = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_BY_JAX = 'YI_DISTRIBUTED'
_PORT = 8482  # JAX's own choice on TPU hosts
_JOIN_SECONDS = 300
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'libtpu')


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a process stands among those of its run.

  Attributes:
    kind: what told it: 'by hand', 'JAX', 'Slurm', 'TPU', 'SkyPilot', 'JobSet'.
    coordinator: host:port of process 0; '' where JAX finds it.
    count: how many processes there are; 0 where JAX finds it.
    index: which this is.
  """

  kind: str
  coordinator: str = ''
  count: int = 0
  index: int = 0


def start(given: Place | None = None) -> None:
  """Makes this process one of those its environment speaks of, if of any.

  Call it before anything asks JAX for devices.

  Args:
    given: from flags; goes before the environment.

  Raises:
    ValueError: if the environment tells only a part, or no sense, or if the
      processes run different software.
    NotJoined: if processes do not come, naming them.
  """
  if jax.distributed.is_initialized():
    return
  place = given or detect(os.environ)
  if place is None:
    return
  seconds = _seconds(os.environ.get('YI_JOIN_SECONDS', str(_JOIN_SECONDS)))
  if not place.coordinator:
    jax.distributed.initialize(initialization_timeout=seconds)
    _compare_afterwards()
    return
  print(
    f'process {place.index} of {place.count} ({place.kind}) waits for the '
    f'others at {place.coordinator}',
    file=sys.stderr,
    flush=True,
  )
  me = rendezvous.Member(
    place.index, place.count, socket.gethostname(), versions()
  )
  rendezvous.meet(place.coordinator, me, seconds)
  jax.distributed.initialize(
    place.coordinator,
    place.count,
    place.index,
    initialization_timeout=seconds,
  )


def detect(environment: Mapping[str, str]) -> Place | None:
  """Returns what an environment says of the processes, None for just one.

  Args:
    environment: as `os.environ`.

  Raises:
    ValueError: if it tells only a part, or no sense.
  """
  e = environment
  if e.get('JOBSET_NAME') and not {_BY_HAND[0], _BY_HAND[2]} & e.keys():
    by_hand = None  # a JobSet brings the number of processes alone
  else:
    by_hand = _by_hand(e)
  if by_hand:
    return by_hand
  if e.get(_BY_JAX, '0') not in ('', '0'):
    return Place('JAX')
  for look in (_slurm, _tpu, _skypilot, _jobset):
    place = look(e)
    if place is not None and place.count > 1:
      return place
  return None


def checked(kind: str, address: str, count: str, index: str) -> Place:
  """Returns a place of text that a person or a launcher has set.

  Raises:
    ValueError: if it makes no sense.
  """
  if not (
    re.fullmatch(r'.+:\d+', address)
    and re.fullmatch(r'[0-9]+', count)
    and re.fullmatch(r'[0-9]+', index)
    and int(index) < int(count)
  ):
    raise ValueError(
      f'not a host:port, a number of processes, and one from 0 below it: '
      f'{_BY_HAND[0]}={address} {_BY_HAND[1]}={count} {_BY_HAND[2]}={index}'
    )
  return Place(kind, address, int(count), int(index))


def versions() -> dict[str, str]:
  """Returns what must be the same on all hosts: name -> version."""
  found = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'absent'
  # Its files: a version says nothing of a checkout.
  digest = hashlib.sha256()
  folder = pathlib.Path(__file__).parents[1]
  for path in sorted(folder.rglob('*.py')):
    digest.update(f'{path.relative_to(folder)}\0'.encode() + path.read_bytes())
  found['yi_jax'] = f'files {digest.hexdigest()[:12]}'
  return found


def _by_hand(e: Mapping[str, str]) -> Place | None:
  given = {name: e[name] for name in _BY_HAND if name in e}
  if not given:
    return None
  if len(given) < len(_BY_HAND):
    raise ValueError(
      f'{", ".join(given)} is set, but one of several processes needs all of '
      f'{", ".join(_BY_HAND)}; or {_BY_JAX}=1 where JAX finds them by itself'
    )
  return checked('by hand', *given.values())


def _slurm(e: Mapping[str, str]) -> Place | None:
  # The batch script has a job but no step: it is not one of the tasks.
  names = ('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_STEP_NODELIST')
  if not all(name in e for name in names):
    return None
  count, index, nodes = (e[name] for name in names)
  # node[003-010,12],other -> node003
  match = re.match(r'([^,\[]+)(?:\[([^,\-\]]+))?', nodes)
  host = match[1] + (match[2] or '') if match else ''
  # Two jobs may share a host: each has a port of its own, above those that
  # Linux gives to connections.
  own = 61440 + int(e.get('SLURM_JOB_ID', '0')) % 4096
  return checked('Slurm', f'{host}:{_port(e, own)}', count, index)


def _tpu(e: Mapping[str, str]) -> Place | None:
  hosts = [
    name for name in e.get('TPU_WORKER_HOSTNAMES', '').split(',') if name
  ]
  slices = int(e.get('MEGASCALE_NUM_SLICES') or 1)
  if len(hosts) * slices < 2:
    return None
  if 'TPU_WORKER_ID' not in e:
    raise ValueError('TPU_WORKER_HOSTNAMES is set, but TPU_WORKER_ID is not')
  first = hosts[0].split(':')[0]
  if slices > 1:
    first = e.get('MEGASCALE_COORDINATOR_ADDRESS', '').split(':')[0]
    if not first or 'MEGASCALE_SLICE_ID' not in e:
      raise ValueError(
        'MEGASCALE_NUM_SLICES is set; it needs MEGASCALE_COORDINATOR_ADDRESS '
        'and MEGASCALE_SLICE_ID'
      )
  number = int(e.get('MEGASCALE_SLICE_ID') or 0)
  index = number * len(hosts) + int(e['TPU_WORKER_ID'])
  return checked(
    'TPU', f'{first}:{_port(e)}', str(len(hosts) * slices), str(index)
  )


def _skypilot(e: Mapping[str, str]) -> Place | None:
  nodes = e.get('SKYPILOT_NODE_IPS', '').split()
  if len(nodes) < 2:
    return None
  if 'SKYPILOT_NODE_RANK' not in e:
    raise ValueError('SKYPILOT_NODE_IPS is set, but SKYPILOT_NODE_RANK is not')
  return checked(
    'SkyPilot',
    f'{nodes[0]}:{_port(e)}',
    str(len(nodes)),
    e['SKYPILOT_NODE_RANK'],
  )


def _jobset(e: Mapping[str, str]) -> Place | None:
  name = e.get('JOBSET_NAME')
  if not name:
    return None
  needed = ('REPLICATED_JOB_NAME', 'JOB_COMPLETION_INDEX', 'JAX_NUM_PROCESSES')
  missing = [key for key in needed if key not in e]
  if missing:
    raise ValueError(
      f'JOBSET_NAME is set, but not {", ".join(missing)}; name them under env '
      'in the pod template'
    )
  job, index, count = (e[key] for key in needed)
  # JobSet gives each pod this name in the service called after the set.
  return checked('JobSet', f'{name}-{job}-0-0.{name}:{_port(e)}', count, index)


def _port(e: Mapping[str, str], default: int = _PORT) -> str:
  return e.get('JAX_COORDINATOR_PORT') or str(default)


def _seconds(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(f'YI_JOIN_SECONDS is a number of seconds, not {text!r}')
  return int(text)


def _compare_afterwards() -> None:
  """Compares versions where only JAX knows how to reach the others."""
  mine = json.dumps([socket.gethostname(), versions()]).encode()
  space = np.zeros(4096, np.uint8)
  space[: len(mine)] = np.frombuffer(mine, np.uint8)
  everyone = np.atleast_2d(multihost_utils.process_allgather(space))
  members = []
  for index, line in enumerate(everyone):
    host, found = json.loads(line.tobytes().rstrip(b'\0'))
    members.append(rendezvous.Member(index, len(everyone), host, found))
  rendezvous.refuse_unequal(members)
