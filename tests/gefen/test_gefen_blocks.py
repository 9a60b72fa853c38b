"""Geometry: every element in exactly one block, chunks cover everything, bytes by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gefen.blocks import block_slabs, chunk_shape, chunks, row_geometry, slabs, tensor_chunks
from gefen.blocks import state_bytes as closed_form

shapes = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 60)),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 40)),
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)


@pytest.mark.parametrize(
    ("shape", "blocks", "length", "state_shape"),
    [
        ((4096, 16), 1, 16, (4096, 1)),
        ((100, 63), 1, 63, (100, 1)),
        ((3, 2047), 1, 2047, (3, 1)),
        ((3, 2048), 1, 2048, (3, 1)),
        ((3, 2049), 2, 1025, (3, 2)),
        ((1, 4099), 3, 1367, (1, 3)),
        ((8, 64, 128), 1, 128, (8, 64, 1)),
        ((64, 32, 3, 3), 1, 288, (64, 1)),
    ],
)
def test_known_geometries(
    shape: tuple[int, ...], blocks: int, length: int, state_shape: tuple[int, ...]
) -> None:
    geometry = row_geometry(shape)
    assert geometry is not None
    found = (geometry.blocks_per_row, geometry.block_length, geometry.state_shape)
    assert found == (blocks, length, state_shape)


@pytest.mark.parametrize(
    "shape", [(), (0,), (10**6,), (10**6, 1), (10**6, 15), (63, 65), (0, 64), (64, 0), (9, 500, 3)]
)
def test_shapes_with_exact_state(shape: tuple[int, ...]) -> None:
    assert row_geometry(shape) is None


@given(columns=st.integers(16, 20_000), block_size=st.integers(1, 4096))
def test_blocks_partition_a_row(columns: int, block_size: int) -> None:
    geometry = row_geometry((3, columns), block_size, min_quantized_size=1)
    assert geometry is not None
    sizes = [geometry.block_length] * (geometry.blocks_per_row - 1) + [geometry.last_block_length]
    assert sum(sizes) == columns
    assert 0 < sizes[-1] <= max(sizes) <= block_size
    assert len(sizes) == math.ceil(columns / block_size)


@settings(max_examples=200)
@given(shape=shapes, block_size=st.integers(1, 20), limit=st.integers(1, 200), data=st.data())
def test_chunks_cover_each_element_once(
    shape: tuple[int, ...], block_size: int, limit: int, data: st.DataObject
) -> None:
    geometry = row_geometry(shape, block_size, min_quantized_size=1)
    if geometry is None:
        return
    order = data.draw(st.permutations(range(len(shape))))
    inverse = sorted(range(len(shape)), key=lambda axis: order[axis])
    numbers = torch.arange(math.prod(shape)).view(shape)
    tensor = numbers.permute(order).contiguous().permute(inverse)
    assert torch.equal(tensor, numbers)
    plan = tensor_chunks([tensor], geometry, limit)
    seen = []
    per_block = torch.zeros(geometry.state_shape)
    for chunk, piece, block in zip(
        plan,
        slabs(tensor, geometry, plan),
        block_slabs(per_block, geometry, plan),
        strict=True,
    ):
        rows, blocks, _ = chunk_shape(geometry, chunk)
        flat = piece.reshape(rows, -1)
        assert block.shape == (rows, blocks)
        block += 1
        # Row-major order within the chunk, so that columns belong to the chunk's blocks.
        start = chunk.block_start * geometry.block_length
        expected = torch.arange(chunk.row_start, chunk.row_stop)[:, None] * geometry.columns
        assert torch.equal(flat, expected + start + torch.arange(flat.shape[1]))
        seen.append(flat.reshape(-1))
        assert piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert torch.equal(torch.cat(seen).sort().values, numbers.reshape(-1))
    assert torch.equal(per_block, torch.ones(geometry.state_shape))


def test_chunks_stay_within_the_limit() -> None:
    for shape in ((1000, 768), (3, 300_000), (4, 50, 700)):
        geometry = row_geometry(shape)
        assert geometry is not None
        sizes = [math.prod(chunk_shape(geometry, chunk)) for chunk in chunks(geometry, 1 << 15)]
        assert max(sizes) <= 1 << 15
        assert len(sizes) <= 2 * math.prod(shape) / (1 << 15) + 4


def test_closed_form_of_known_shapes() -> None:
    # 5000 codes, 50 scales, 50 second moments; 2 x 7 floats of AdamW; 2 steps; one codebook.
    assert closed_form([(50, 100), (7,)]) == 5000 + 8 * 50 + 8 * 7 + 2 * 4 + 1024
    assert closed_form([(50, 100), (7,)], first_moment_bits=32) == 4 * 5000 + 4 * 50 + 8 * 7 + 2 * 4
    assert closed_form([(50, 100)], block_size=30) == 5000 + 8 * 50 * 4 + 4 + 1024
    assert closed_form([(7,), ()]) == 8 * 7 + 8 + 2 * 4


def test_gpt2_small_needs_about_one_byte_per_parameter() -> None:
    layer = [(768,)] * 4 + [(768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,)]
    shapes = [(50257, 768), (1024, 768), *([*layer, (3072, 768), (768,)] * 12), (768,), (768,)]
    parameters = sum(math.prod(shape) for shape in shapes)
    assert parameters == 124_439_808
    assert closed_form(shapes) / parameters < 1.02
