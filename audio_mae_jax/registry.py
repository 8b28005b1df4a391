"""Interchangeable parts by name: a table of them, and how one is chosen.

`select` hands a part the settings it takes and refuses a setting that it would
ignore.
"""

import dataclasses
import difflib
import inspect
import typing


def unknown(where, name, what, known):
  near = difflib.get_close_matches(name, list(known), n=1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return f'{where} is not {what}.{hint} Known: {", ".join(known)}.'


def lookup(table: dict, name: str, where: str):
  """`table[name]`, or a ValueError that lists what the table has."""
  if name not in table:
    raise ValueError(unknown(f'{where}={name!r}', name, 'known', table))
  return table[name]


def select(table: dict, settings, where: str) -> tuple[typing.Callable, dict]:
  """The part of `table` that `settings.name` names, and the keywords it takes.

  Keywords are the fields of the dataclass `settings` that the part's signature
  lists. A field that the part does not take must keep its default: a number
  that changes nothing is a mistake worth stopping for.
  """
  part = lookup(table, settings.name, f'{where}.name')
  takes = inspect.signature(part).parameters
  keywords = {}
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if field.name in takes and field.name != 'name':
      keywords[field.name] = value
    elif field.name != 'name' and value != field.default:
      own = [f.name for f in dataclasses.fields(settings)
             if f.name in takes and f.name != 'name']
      raise ValueError(
          f'{where}.{field.name}={value!r} has no effect with '
          f'{where}.name={settings.name!r}, which takes '
          f'{", ".join(own) or "no settings"}. Leave it at {field.default!r}.')
  return part, keywords
