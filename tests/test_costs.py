"""What the instructions of a program cost."""

import jax
import pytest

from audio_mae_jax import costs
from audio_mae_jax import hlo

# 100 rows of 8 numbers; a fusion each, with what is in it.
ROW, ALL = 8 * 4, 100 * 8 * 4
PROGRAM = '''HloModule jit_step

%inside (p: f32[100,8], i: s32[]) -> SHAPE {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
BODY
}

ENTRY %main (x: f32[100,8], at: s32[]) -> SHAPE {
  %x = f32[100,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %fused = SHAPE fusion(%x, /*index=1*/%at), kind=kLoop, calls=%inside
}
'''
ROWS = 'f32[1,8]{1,0}'
WHOLE = 'f32[100,8]{1,0}'
SLICE = f'  %one = {ROWS} dynamic-slice(%p, %i, %i)'
PUT = 'dynamic-update-slice(%p, %one, %i, %i)'
FUSIONS = {
    'all of it': (f'  ROOT %y = {WHOLE} add(%p, %p)', WHOLE, 2 * ALL),
    'a slice': (f'  ROOT %y = {ROWS} dynamic-slice(%p, %i, %i)', ROWS, 2 * ROW),
    'a slice of a view': (
        '  %v = bf16[100,8]{1,0} convert(%p)\n'
        '  ROOT %y = bf16[1,8]{1,0} dynamic-slice(%v, %i, %i)',
        'bf16[1,8]{1,0}', ROW),
    'a view alone': (
        '  ROOT %y = f32[800]{0} bitcast(%p)', 'f32[800]{0}', 2 * ALL),
    'in place': (f'{SLICE}\n  ROOT %y = {WHOLE} {PUT}', WHOLE, 2 * ROW),
    'in place, seen otherwise': (
        f'{SLICE}\n  %y = {WHOLE} {PUT}\n'
        '  ROOT %z = f32[800]{0} bitcast(%y)', 'f32[800]{0}', 2 * ROW),
    'two in place': (
        f'{SLICE}\n  %y = {WHOLE} {PUT}\n  %z = {WHOLE} {PUT}\n'
        f'  ROOT %t = ({WHOLE}, {WHOLE}) tuple(%y, %z)',
        f'({WHOLE}, {WHOLE})', 3 * ROW)}


@pytest.mark.parametrize('name', FUSIONS)
def test_a_fusion_moves_what_it_reads_and_gives(name):
  body, shape, want = FUSIONS[name]
  text = PROGRAM.replace('BODY', body).replace('SHAPE', shape)
  computations, _ = hlo.parse(text)
  found = {run.instruction.name: costs.moved(run, computations)
           for run in hlo.executed(text, whole=True)}
  index = 4 if '%i' in body else 4  # is handed over
  assert found == {'x': 0, 'at': 0, 'fused': want + index * ('%i' in body)}


BIG = 'f32[100,8]{1,0}'


@pytest.mark.parametrize('line, want', [
    (f'%y = {BIG} multiply(%x, %x)', 2 * ALL),
    (f'%y = {BIG} opt-barrier(%x)', 0),
    (f'%y = ({BIG}, {BIG}, u32[]) copy-start(%x)', 2 * ALL + 4),
    (f'%y = {BIG} copy-done(%x)', 0),
    (f'%y = (({BIG}), f32[1,8]{{1,0}}, s32[]) slice-start(%x), slice={{[0:1]}}',
     2 * (ROW + 4)),
    (f'%y = (({BIG}), f32[1,8]{{1,0}}, s32[]) async-update(%x)', 0),
    (f'%y = ({BIG}, f32[800,8]{{1,0}}) all-gather-start(%x)', 9 * ALL),
    (f'%y = ({BIG}, s8[33554432]{{0}}) custom-call(%x), '
     'custom_call_target="__cublas$gemm"', 2 * ALL)])
def test_an_instruction_moves_what_it_reads_and_gives(line, want):
  text = (f'HloModule m\n\nENTRY %main (x: f32[100,8]) -> f32[100,8] {{\n'
          f'  %x = {BIG} parameter(0)\n  {line}\n}}\n')
  computations, _ = hlo.parse(text)
  assert [costs.moved(run, computations)
          for run in hlo.executed(text, whole=True)] == [0, want]


@pytest.mark.parametrize('line, want', [
    ('%y = f32[8] custom-call(%x), custom_call_target="__cublas$lt$matmul"', 1),
    ('%y = f32[8] custom-call(%x), custom_call_target="__cudnn$convForward"',
     1),
    ('%y = f32[8] custom-call(%x), custom_call_target="convert_all"', 0),
    ('%y = f32[8] fusion(%x), calls=%inner', 1),
    ('%y = f32[8] while(%x), condition=%c, body=%inner', 0)])
def test_what_multiplies_matrices_is_told(line, want):
  text = ('HloModule m\n\n%inner (p: f32[8]) -> f32[8] {\n'
          '  %d = f32[8] dot(%p, %p), lhs_contracting_dims={0}\n}\n\n'
          f'ENTRY %main (x: f32[8]) -> f32[8] {{\n  {line}\n}}\n')
  computations, entry = hlo.parse(text)
  assert costs.is_product(computations[entry][0], computations) == want


@pytest.mark.parametrize('groups', [1, 3])
def test_convolutions_count_a_kernel_for_each_number(groups):
  x = jax.ShapeDtypeStruct((2, 3, 50), 'float32')
  kernel = jax.ShapeDtypeStruct((6, 3 // groups, 7), 'float32')
  text = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
      x, k, (2,), 'VALID', feature_group_count=groups)).lower(
          x, kernel).as_text('hlo')
  found = sum(map(costs.flops, hlo.executed(text)))
  assert found == 2 * (2 * 6 * 22) * 7 * 3 // groups
