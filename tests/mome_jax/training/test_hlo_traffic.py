"""Bytes of programs small enough to count by hand."""

import pytest

from mome_jax.training import hlo_traffic

# A TPU stores bf16[96,96,64]{0,2,1:T(8,128)(2,1)} as 96 x 64 rows of 128: 96 * 64 * 128 * 2 bytes.
TILED = 96 * 64 * 128 * 2
HLO = """
HloModule jit_step, is_scheduled=true

%body (p.1: (s32[], f32[4,100])) -> (s32[], f32[4,100]) {
  %p.1 = (s32[], f32[4,100]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %x.1 = f32[4,100]{1,0} get-tuple-element(%p.1), index=1
  %exp.1 = f32[4,100]{1,0} exponential(%x.1), metadata={op_name="jit(step)/transpose(jvp(class_maps))/exp"}
  ROOT %tuple.1 = (s32[], f32[4,100]{1,0}) tuple(%i.1, %exp.1)
}

%condition (p.2: (s32[], f32[4,100])) -> pred[] {
  %bound.2 = s32[] constant(5)
  %p.2 = (s32[], f32[4,100]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  ROOT %less.2 = pred[] compare(%i.2, %bound.2), direction=LT
}

%moved (p.3: bf16[96,96,64]) -> bf16[96,96,64] {
  %p.3 = bf16[96,96,64]{2,1,0} parameter(0)
  ROOT %copy.3 = bf16[96,96,64]{0,2,1:T(8,128)(2,1)} copy(%p.3)
}

%convolved (p.4: f32[10,10], q.4: f32[100,10]) -> f32[10,10] {
  %p.4 = f32[10,10]{1,0} parameter(0)
  %q.4 = f32[100,10]{1,0} parameter(1)
  %some.4 = f32[10,10]{1,0} slice(%q.4), slice={[0:10], [0:10]}
  ROOT %product.4 = f32[10,10]{1,0} convolution(%p.4, %some.4), dim_labels=bf_io->bf
}

%placed (p.5: f32[1000], q.5: f32[10], r.5: s32[]) -> f32[1000] {
  %p.5 = f32[1000]{0} parameter(0)
  %q.5 = f32[10]{0} parameter(1)
  %r.5 = s32[] parameter(2)
  ROOT %update.5 = f32[1000]{0} dynamic-update-slice(%p.5, %q.5, %r.5)
}

ENTRY %main (a: bf16[96,96,64], b: f32[10,10], c: f32[100,10], d: f32[4,100], e: f32[1000], f: f32[10]) -> f32[10,10] {
  %a = bf16[96,96,64]{2,1,0} parameter(0)
  %b = f32[10,10]{1,0} parameter(1)
  %c = f32[100,10]{1,0} parameter(2)
  %d = f32[4,100]{1,0} parameter(3)
  %e = f32[1000]{0} parameter(4)
  %f = f32[10]{0} parameter(5)
  %zero = s32[] constant(0)
  %moved.1 = bf16[96,96,64]{0,2,1:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%moved
  %near = bf16[96,96,64]{0,2,1:T(8,128)(2,1)S(1)} copy(%moved.1)
  %convolved.1 = f32[10,10]{1,0} fusion(%b, %c), kind=kOutput, calls=%convolved, metadata={op_name="jit(step)/norm_0/add"}
  %placed.1 = f32[1000]{0} fusion(%e, %f, %zero), kind=kLoop, calls=%placed
  %start = (s32[], f32[4,100]{1,0}) tuple(%zero, %d)
  %loop = (s32[], f32[4,100]{1,0}) while(%start), condition=%condition, body=%body
  %mean = f32[10]{0} negate(%f), metadata={op_name="jit(step)/jvp(MoME)/decoder_0/norm_1/neg"}
  %other = f32[10]{0} negate(%mean), metadata={op_name="jit(step)/normalisation/neg"}
  ROOT %sum = f32[10,10]{1,0} add(%convolved.1, %b)
}
"""  # noqa: E501


def test_every_kind_of_a_small_program():
  assert hlo_traffic.by_kind(HLO) == {
    # Read once and written in tiles; then read to be held in vector memory.
    'copy': 96 * 96 * 64 * 2 + TILED + TILED + 2 * 40 + 4,
    'convolution': 3 * 400,  # of the larger operand a tenth is read
    'normalisation': 2 * 40,
    'class maps': 5 * 2 * 1600,  # the loop runs five times
    'other': 2 * 40 + 3 * 400,
  }


BRANCHES = """
HloModule jit_branches, is_scheduled=true

%small (p.1: f32[8,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0} parameter(0)
  ROOT %neg.1 = f32[8,128]{1,0} negate(%p.1)
}

%large (p.2: f32[8,128]) -> f32[8,128] {
  %p.2 = f32[8,128]{1,0} parameter(0)
  %neg.2 = f32[8,128]{1,0} negate(%p.2)
  ROOT %called.2 = f32[8,128]{1,0} call(%neg.2), to_apply=%small
}

ENTRY %main (i: s32[], a: f32[8,128]) -> f32[8,128] {
  %i = s32[] parameter(0)
  %a = f32[8,128]{1,0:T(8,128)} parameter(1)
  %near = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %near.1 = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%near)
  %far = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %far.1 = f32[8,128]{1,0:T(8,128)} copy-done(%far)
  ROOT %chosen = f32[8,128]{1,0} conditional(%i, %a, %a), branch_computations={%small, %large}
}
"""


def test_the_larger_branch_counts_and_a_copy_by_its_ends_in_main_memory():
  """Of 4096 bytes one copy reads alone, one writes too; the larger branch has two negations."""
  expected = dict.fromkeys(hlo_traffic.KINDS, 0) | {'copy': 3 * 4096, 'other': 2 * 2 * 4096}
  assert hlo_traffic.by_kind(BRANCHES) == expected


@pytest.mark.parametrize('target', ['__cudnn$convForward', '__cublas$lt$matmul'])
def test_a_product_that_a_library_of_a_gpu_computes_is_one(target):
  hlo = f"""
ENTRY %main (a: bf16[4,8], b: bf16[8,2]) -> bf16[4,2] {{
  %a = bf16[4,8]{{1,0}} parameter(0)
  %b = bf16[8,2]{{1,0}} parameter(1)
  %call = (bf16[4,2]{{1,0}}, u8[16]{{0}}) custom-call(%a, %b), custom_call_target="{target}"
  ROOT %y = bf16[4,2]{{1,0}} get-tuple-element(%call), index=0
}}
"""
  expected = dict.fromkeys(hlo_traffic.KINDS, 0) | {'convolution': 64 + 32 + 16 + 16}
  assert hlo_traffic.by_kind(hlo) == expected


def test_a_program_without_computations_moves_nothing():
  assert sum(hlo_traffic.by_kind('HloModule empty').values()) == 0


@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ('f32[3,5]', 60),
    ('bf16[3,5]{1,0:T(8,128)(2,1)}', 8 * 128 * 2),
    ('pred[300]{0:T(512)(128)(4,1)}', 512),
    ('s4[16]{0}', 8),
    ('(f32[2]{0}, /*index=1*/bf16[2]{0})', 12),
    ('f32[8,128]{1,0:T(8,128)S(1)}', 0),
    ('f32[]', 4),
    ('f8e4m3fn[8]{0}', 8),
  ],
)
def test_what_an_array_takes_in_memory(shape, size):
  assert hlo_traffic._size(shape) == size
