"""The flags of every command that starts runs: where, and how many at a time."""

import shlex

from absl import flags

from yi_jax import spelling
from yi_jax.sweeping import folder as sweep_folder
from yi_jax.sweeping import places

_PLACES = ('local', 'slurm', 'skypilot')


class PlaceFlags:
  """--place, --at_once, --gpus and --submit of a command."""

  def __init__(self, flag_values: flags.FlagValues) -> None:
    """Adds them to the command's flags."""
    self._place = flags.DEFINE_string(
      'place',
      'local',
      'where the runs take place: local, slurm or skypilot',
      flag_values=flag_values,
    )
    self._at_once = flags.DEFINE_integer(
      'at_once',
      None,
      'the most runs at a time; 1 on this machine, all on a cluster, if not '
      'given',
      lower_bound=1,
      flag_values=flag_values,
    )
    self._gpus = flags.DEFINE_integer(
      'gpus',
      0,
      'GPUs of this machine for each local run; 0: each may use all',
      lower_bound=0,
      flag_values=flag_values,
    )
    self._submit = flags.DEFINE_string(
      'submit',
      '',
      'more options for sbatch or sky jobs launch, as one string',
      flag_values=flag_values,
    )

  def check(self) -> None:
    """Raises ValueError for a place that there is not."""
    if self._place.value not in _PLACES:
      hint = spelling.nearest(self._place.value, _PLACES)
      raise ValueError(f'no --place {self._place.value!r}{hint}')
    if self.local and self._submit.value:
      raise ValueError('--submit is for --place=slurm and skypilot')

  @property
  def local(self) -> bool:
    """Whether the runs take place on this machine."""
    return self._place.value == 'local'

  @property
  def at_once(self) -> int:
    """The most runs at a time; 0 is all."""
    return self._at_once.value or (1 if self.local else 0)

  def place(
    self, folder: sweep_folder.Folder, lock: int | None
  ) -> places.Place:
    """Returns where the runs of a sweep take place.

    Args:
      folder: of the sweep, agreed.
      lock: of `Folder.locked`.
    """
    options = shlex.split(self._submit.value)
    if self._place.value == 'slurm':
      return places.Slurm(folder.logs, folder.jobs('Slurm'), options)
    if self._place.value == 'skypilot':
      return places.SkyPilot(folder.jobs('SkyPilot'), options)
    return places.Local(
      folder.logs, at_once=self.at_once, gpus=self._gpus.value, lock=lock
    )
