"""Joins the processes of one run, on one host or many.

Every process is started with the same command and learns from its environment
that it is one of several:

  JAX_COORDINATOR_ADDRESS   host:port, a free port on the host of process 0
  JAX_NUM_PROCESSES         how many processes there are
  JAX_PROCESS_ID            which of them this is, from 0

Under Slurm, on the hosts of a TPU slice and in a GKE JobSet JAX finds all that
by itself: there YI_DISTRIBUTED=1 is enough.
"""

import os
import sys

import jax

_BY_HAND = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_BY_JAX = 'YI_DISTRIBUTED'


def start() -> None:
  """Makes this process one of those its environment speaks of, if of any.

  Call it before anything asks JAX for devices. JAX ends the process if the
  others do not come within five minutes.

  Raises:
    ValueError: if the environment tells only a part, or no sense.
  """
  if jax.distributed.is_initialized():
    return
  if os.environ.get(_BY_JAX, '0') not in ('', '0'):
    jax.distributed.initialize()
    return
  given = {k: os.environ[k] for k in _BY_HAND if k in os.environ}
  if not given:
    return
  if len(given) < len(_BY_HAND):
    raise ValueError(
      f'{", ".join(given)} is set, but one of several processes needs all of '
      f'{", ".join(_BY_HAND)}; or {_BY_JAX}=1 where JAX finds them by itself'
    )
  address, count, index = given.values()
  if not (
    address.rpartition(':')[2].isdecimal()
    and count.isdecimal()
    and index.isdecimal()
    and int(index) < int(count)
  ):
    shown = ' '.join(f'{name}={value}' for name, value in given.items())
    raise ValueError(
      f'not a host:port, a number of processes, and one from 0 below it: {shown}'
    )
  print(
    f'process {index} of {count} waits for the others at {address}',
    file=sys.stderr,
  )
  jax.distributed.initialize(address, int(count), int(index))
