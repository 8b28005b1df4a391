"""Two sets of named arrays: what differs, and why it probably does."""

import re

Shapes = dict[str, tuple[int, ...]]


def differences(wanted: Shapes, found: Shapes, limit: int = 8) -> str:
  """Missing, unexpected and mis-shaped names, a line each; '' if none are."""
  show = lambda shape: '[' + ', '.join(map(str, shape)) + ']'
  lists = {
      'missing': [f'{name} {show(wanted[name])}'
                  for name in wanted if name not in found],
      'unexpected': [f'{name} {show(found[name])}'
                     for name in found if name not in wanted],
      'of another shape': [
          f'{name} is {show(found[name])}, should be {show(wanted[name])}'
          for name in wanted
          if name in found and tuple(found[name]) != tuple(wanted[name])]}
  lines = []
  for what, names in lists.items():
    if names:
      rest = f'; and {len(names) - limit} more' if len(names) > limit else ''
      lines.append(f'  {len(names)} {what}: {"; ".join(names[:limit])}{rest}\n')
  return ''.join(lines)


def likely_cause(wanted: Shapes, found: Shapes) -> str:
  """What to change so that `found` (names and shapes of parameters) would fit a
  model that has `wanted`; '' if nothing that is known explains it."""
  causes = []
  local, asked = (_blocks(names, r'decoder/\w+/(\d+)/attn/tau')
                  for names in (found, wanted))
  if local and not asked and _has(wanted, 'decoder'):
    causes.append(
        f'these are {local} local-decoder blocks; set model.decoder.name=local '
        f'and model.decoder.depth={local}')
  elif asked and not local and _has(found, 'decoder'):
    depth = _blocks(found, r'decoder/blocks/(\d+)/.*')
    causes.append(
        f'these are {depth} global-decoder blocks; set model.decoder.name='
        f'global and model.decoder.depth={depth}')
  else:
    causes += _other_depth(wanted, found, 'decoder')
  causes += _other_depth(wanted, found, 'encoder')
  for name, what, setting in (
      ('encoder/cls_token', 'the encoder is {} wide',
       'model.encoder.variant or model.encoder.width'),
      ('decoder/tokens/mask_token', 'the decoder is {} wide',
       'model.decoder.width'),
      ('encoder/patch_embed/kernel', 'its patches have {} pixels',
       'patch.size'),
      ('head/bias', 'it has {} classes', 'model.classifier.num_classes')):
    if name in wanted and name in found and wanted[name] != found[name]:
      causes.append(f'{what.format(found[name][0])}, not {wanted[name][0]}; '
                    f'set {setting}')
  if 'encoder/positions' in set(found) - set(wanted):
    causes.append("it has a table of positions; set patch.positions='table'")
  if not causes:
    return ''
  return '  Likely cause: ' + '; and '.join(causes) + '.'


def _blocks(names, pattern) -> int:
  return len({match[1] for name in names
              if (match := re.fullmatch(pattern, name))})


def _has(names, group) -> bool:
  return any(name.startswith(f'{group}/') for name in names)


def _other_depth(wanted, found, group):
  have, want = (_blocks(names, rf'{group}/blocks/(\d+)/.*')
                for names in (found, wanted))
  if have and want and have != want:
    yield (f'it has {have} {group} blocks, not {want}; set '
           f'model.{group}.depth={have}')
