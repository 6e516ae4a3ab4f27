"""Options of a task: a frozen dataclass whose fields become flags."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def option(default: Any, text: str, of: type | None = None) -> Any:
  """Returns a field of an options class.

  Args:
    default: its value; the type of it is the type of the flag.
    text: what `--help` says.
    of: type of the elements of a tuple.
  """
  return dataclasses.field(
    default=default, metadata={'help': text, 'of': of or type(default)}
  )


def parse(options: type, texts: Mapping[str, str]) -> Any:
  """Returns options from what was typed.

  Example: parse(needle.Options, {'lengths': '1024,2048'})

  Args:
    options: the class.
    texts: field -> text; fields without one keep their default.

  Raises:
    ValueError: for text that is no value of its field.
  """
  values = {}
  for field in dataclasses.fields(options):
    if field.name not in texts:
      continue
    text, kind = texts[field.name], field.metadata['of']
    parts = [text.strip()]
    if isinstance(field.default, tuple):
      parts = [part.strip() for part in text.split(',') if part.strip()]
    try:
      found = tuple(map(kind, parts))
    except ValueError as error:
      wanted = {int: 'whole numbers', float: 'numbers'}[kind]
      raise ValueError(
        f'--{field.name} takes {wanted}, not {text!r}'
      ) from error
    values[field.name] = found if isinstance(field.default, tuple) else found[0]
  return options(**values)
