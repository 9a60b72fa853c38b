"""Geometry: every element in exactly one group, chunks cover everything, bytes by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gefen import state_bytes as closed_form
from gefen.blocks import flat_geometry, row_geometry
from gefen.chunks import chunks, code_slabs, group_slabs, slabs, tensor_chunks

shapes = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 60)),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 40)),
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)


@pytest.mark.parametrize(
    ("shape", "groups", "length", "group_shape"),
    [
        ((4096, 16), 1, 16, (4096, 1)),
        ((100, 63), 1, 63, (100, 1)),
        ((3, 2047), 1, 2047, (3, 1)),
        ((3, 2048), 1, 2048, (3, 1)),
        ((3, 2049), 2, 1025, (3, 2)),
        ((1, 4099), 3, 1367, (1, 3)),
        ((512, 4, 4), 1, 16, (512, 1)),
        ((512, 24, 3), 1, 72, (512, 1)),
        ((512, 1, 31), 1, 31, (512, 1)),  # depthwise: an index of dimension 0 is a row
        ((8, 64, 128), 1, 128, (8, 64, 1)),
        ((64, 32, 3, 3), 1, 288, (64, 1)),
    ],
)
def test_known_geometries(
    shape: tuple[int, ...], groups: int, length: int, group_shape: tuple[int, ...]
) -> None:
    geometry = row_geometry(shape)
    assert geometry is not None
    found = (geometry.groups_per_row, geometry.group_length, geometry.group_shape)
    assert found == (groups, length, group_shape)
    assert geometry.block_shape == group_shape


@pytest.mark.parametrize(
    "shape", [(), (0,), (10**6,), (10**6, 1), (10**6, 15), (63, 65), (0, 64), (64, 0), (900, 5, 3)]
)
def test_shapes_with_exact_state(shape: tuple[int, ...]) -> None:
    assert row_geometry(shape) is None


@given(
    columns=st.integers(16, 20_000),
    group_size=st.integers(2, 4096),
    block_size=st.integers(1, 4096),
    even=st.booleans(),
)
def test_groups_and_blocks_partition_a_row(
    columns: int, group_size: int, block_size: int, even: bool
) -> None:
    geometry = row_geometry((3, columns), group_size, block_size, 1, even_groups=even)
    assert geometry is not None
    groups = [geometry.group_length] * (geometry.groups_per_row - 1)
    last = columns - sum(groups)
    assert 0 < last <= geometry.group_length <= group_size + (group_size % 2 if even else 0)
    assert geometry.groups_per_row <= math.ceil(columns / group_size)
    if groups and even:
        assert geometry.group_length % 2 == 0
    blocks = geometry.block_lengths
    assert len(blocks) == geometry.blocks_per_row
    assert sum(blocks) == columns
    assert 0 < blocks[-1] <= max(blocks) <= max(block_size, geometry.group_length)
    # Whole groups to a block, so that a kernel that holds a block holds its groups.
    assert all(length % geometry.group_length == 0 for length in blocks[:-1])


@settings(max_examples=200)
@given(
    shape=shapes,
    group_size=st.integers(1, 20),
    limit=st.integers(1, 200),
    bits=st.sampled_from([4, 8]),
    data=st.data(),
)
def test_chunks_cover_each_element_once(
    shape: tuple[int, ...], group_size: int, limit: int, bits: int, data: st.DataObject
) -> None:
    geometry = row_geometry(shape, group_size, min_quantized_size=1, even_groups=bits == 4)
    if geometry is None:
        return
    order = data.draw(st.permutations(range(len(shape))))
    inverse = sorted(range(len(shape)), key=lambda axis: order[axis])
    numbers = torch.arange(math.prod(shape)).view(shape)
    tensor = numbers.permute(order).contiguous().permute(inverse)
    assert torch.equal(tensor, numbers)
    plan = tensor_chunks([tensor], geometry, limit)
    seen = []
    per_group = torch.zeros(geometry.group_shape)
    per_byte = 8 // bits
    codes = torch.zeros(geometry.total_rows, -(-geometry.columns // per_byte))
    for chunk, piece, group, code in zip(
        plan,
        slabs(tensor, geometry, plan),
        group_slabs(per_group, geometry, plan),
        code_slabs(codes, geometry, plan),
        strict=True,
    ):
        flat = piece.reshape(chunk.rows, -1)
        covered = chunk.columns(geometry)
        assert group.shape == (chunk.rows, chunk.groups)
        assert code.shape == (chunk.rows, -(-flat.shape[1] // per_byte))
        group += 1
        code += 1
        # Row-major order within the chunk, so that columns belong to the chunk's groups.
        expected = torch.arange(chunk.row_start, chunk.row_stop)[:, None] * geometry.columns
        assert torch.equal(flat, expected + torch.arange(covered.start, covered.stop))
        seen.append(flat.reshape(-1))
        assert piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert torch.equal(torch.cat(seen).sort().values, numbers.reshape(-1))
    assert torch.equal(per_group, torch.ones(geometry.group_shape))
    assert torch.equal(codes, torch.ones_like(codes))


def test_chunks_of_one_expert() -> None:
    geometry = row_geometry((4, 50, 100))
    assert geometry is not None
    for chunk in chunks(geometry, 1 << 15, join_experts=False):
        assert chunk.row_start // 50 == (chunk.row_stop - 1) // 50


def test_chunks_stay_within_the_limit() -> None:
    for shape in ((1000, 768), (3, 300_000), (4, 50, 700)):
        geometry = row_geometry(shape)
        assert geometry is not None
        sizes = [c.rows * c.groups * geometry.group_length for c in chunks(geometry, 1 << 15)]
        assert max(sizes) <= 1 << 15
        assert len(sizes) <= 2 * math.prod(shape) / (1 << 15) + 4


def test_shards_keep_the_geometry_of_the_whole() -> None:
    whole, stacked = row_geometry((100, 64)), row_geometry((8, 30, 40))
    assert whole is not None
    assert stacked is not None
    part = whole.with_leading_size(3)
    assert (part.rows, part.matrix_rows, part.group_shape) == (3, 100, (3, 1))
    part = stacked.with_leading_size(2)
    assert (part.experts, part.rows, part.column_shape) == (2, 30, (2, 40))
    assert list(chunks(whole.with_leading_size(0), 100)) == []


def test_flat_groups_are_consecutive_pieces() -> None:
    geometry = flat_geometry(600, 50)
    assert (geometry.rows, geometry.columns, geometry.group_shape) == (12, 50, (12, 1))


def test_closed_form_of_known_shapes() -> None:
    # 5000 codes, 50 scales, 50 + 100 factors; 2 x 7 floats of AdamW; 2 steps; one codebook.
    rest = 8 * 7 + 2 * 4
    factors = 4 * 50 + 4 * 100
    shapes = [(50, 100), (7,)]
    assert closed_form(shapes) == 5000 + 4 * 50 + factors + rest + 1024
    assert closed_form(shapes, 32) == 4 * 5000 + factors + rest
    assert closed_form(shapes, 4) == 2500 + 4 * 100 + factors + rest + 64
    block = {"second_moment": "block"}
    assert closed_form(shapes, **block) == 5000 + 8 * 50 + rest + 1024
    assert closed_form(shapes, 32, **block) == 4 * 5000 + 4 * 50 + rest
    assert closed_form([(50, 100)], block_size=30, **block) == 5000 + 8 * 50 * 4 + 4 + 1024
    assert closed_form([(8, 20, 61)], 4) == 8 * 20 * 31 + 4 * (160 + 160 + 8 * 61) + 4 + 64
    assert closed_form([(7,), ()]) == 8 * 7 + 8 + 2 * 4
    with pytest.raises(ValueError, match="depends on the gradients"):
        closed_form(shapes, second_moment="peak")


def test_gpt2_small_needs_about_one_byte_per_parameter() -> None:
    layer = [(768,)] * 4 + [(768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,)]
    shapes = [(50257, 768), (1024, 768), *([*layer, (3072, 768), (768,)] * 12), (768,), (768,)]
    parameters = sum(math.prod(shape) for shape in shapes)
    assert parameters == 124_439_808
    assert closed_form(shapes) / parameters < 1.02
    assert closed_form(shapes, 4) / parameters < 0.58
