"""`gefen.sharding` on plain tensors, on a simulated mesh, and on two gloo ranks."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor import zeros as dtensor_zeros
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from gefen import sharding

from .results import Results

Join = Callable[[int, int], None]

PLAIN_USE = """
import sys, torch
from gefen import sharding
param, tensor = torch.nn.Parameter(torch.ones(3)), torch.ones(2)
assert sharding.local(param) is param and not sharding.is_sharded(param)
sharding.check_placements(param)
assert sharding.row_offset(param) == 0
assert sharding.local_gradient(param, tensor) is tensor
assert sharding.wrap(param, tensor, (2,), follow=True) is tensor
sharding.sum_over_shards([(param, tensor)])
assert tensor.tolist() == [1, 1]
assert "torch.distributed.tensor" not in sys.modules
"""


@pytest.fixture
def join() -> Iterator[Join]:
    """Return a function that makes this process one rank of a simulated group: nothing is sent."""

    def as_rank(rank: int, ranks: int) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)

    yield as_rank
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(launched: Callable[[str], Results]) -> Results:
    return launched("sharding_ranks.py")


def test_plain_tensors_import_no_dtensor() -> None:
    done = subprocess.run([sys.executable, "-c", PLAIN_USE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6, 7, 12, 33])
@pytest.mark.parametrize(
    "placements", [(Shard(0), Shard(0)), (Replicate(), Shard(0)), (Shard(0), Replicate())]
)
def test_row_offset_on_a_mesh_of_two_by_three(join: Join, rows: int, placements: Any) -> None:
    for rank in range(6):
        join(rank, 6)
        mesh = init_device_mesh("cpu", (2, 3))
        param = dtensor_zeros(rows, 4, device_mesh=mesh, placements=placements)
        expected = torch.arange(rows)
        for size, place, placement in zip((2, 3), divmod(rank, 3), placements, strict=True):
            if placement.is_shard():
                cut = expected.chunk(size)
                expected = cut[place] if place < len(cut) else expected[:0]
        assert len(sharding.local(param)) == len(expected)
        if len(expected):
            assert sharding.row_offset(param) == expected[0]
        else:
            assert 0 <= sharding.row_offset(param) <= rows


def test_groups_of_a_mesh_of_two_by_three(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    join(4, 6)
    mesh = init_device_mesh("cpu", (2, 3))
    used: list[tuple[list[int], int, torch.dtype]] = []

    def record(flat: torch.Tensor, group: dist.ProcessGroup) -> None:
        used.append((dist.get_process_group_ranks(group), flat.numel(), flat.dtype))

    monkeypatch.setattr(dist, "all_reduce", record)
    hybrid = dtensor_zeros(33, 4, device_mesh=mesh, placements=[Replicate(), Shard(0)])
    both = dtensor_zeros(33, 4, device_mesh=mesh, placements=[Shard(0), Shard(0)])
    f32, f64 = torch.zeros(4), torch.zeros(5, dtype=torch.float64)
    sharding.sum_over_shards([(hybrid, f32), (both, f32), (hybrid, f64)])
    assert used == [
        ([3, 4, 5], 8, torch.float32),
        ([1, 4], 4, torch.float32),
        ([3, 4, 5], 5, torch.float64),
    ]


def test_placement_of_tells_apart_what_is_cut_otherwise(join: Join) -> None:
    join(0, 6)
    mesh, other = init_device_mesh("cpu", (2, 3)), init_device_mesh("cpu", (3, 2))
    whole = [Replicate(), Replicate()]
    first = dtensor_zeros(33, 4, device_mesh=mesh, placements=[Replicate(), Shard(0)])
    second = dtensor_zeros(8, 9, device_mesh=mesh, placements=[Replicate(), Shard(0)])
    apart = [
        dtensor_zeros(33, 4, device_mesh=mesh, placements=whole),
        dtensor_zeros(33, 4, device_mesh=other, placements=[Replicate(), Shard(0)]),
        torch.zeros(33, 4),
    ]
    assert sharding.placement_of(first) == sharding.placement_of(second)
    assert len({sharding.placement_of(param) for param in [first, *apart]}) == 4


def test_is_placed_where_wrap_would_put_it(join: Join) -> None:
    join(0, 6)
    mesh, other = init_device_mesh("cpu", (2, 3)), init_device_mesh("cpu", (3, 2))
    param = dtensor_zeros(33, 4, device_mesh=mesh, placements=[Replicate(), Shard(0)])
    part = sharding.local(param)
    for follow in (True, False):
        shape = (33, 4) if follow else tuple(part.shape)
        state = sharding.wrap(param, part, shape, follow=follow)
        assert sharding.is_placed(param, state, follow=follow)
        assert not sharding.is_placed(param, state, follow=not follow)
        assert not sharding.is_placed(torch.zeros(33, 4), state, follow=follow)
        assert not sharding.is_placed(param, part, follow=follow)
    elsewhere = dtensor_zeros(33, 4, device_mesh=other, placements=[Replicate(), Shard(0)])
    assert not sharding.is_placed(param, elsewhere, follow=True)
    assert sharding.is_placed(torch.zeros(2), torch.zeros(2), follow=True)


def test_state_of_an_offloaded_parameter_stays_where_it_is(join: Join) -> None:
    join(1, 2)
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cuda")  # FSDP2's CPUOffloadPolicy
    meta = TensorMeta(torch.Size((33, 4)), (4, 1), torch.float32)
    spec = DTensorSpec(mesh, (Shard(0),), meta)
    param = DTensor(torch.zeros(16, 4), spec, requires_grad=False)
    index = torch.ones(16, 2, dtype=torch.uint8)
    state = sharding.wrap(param, index, (33, 2), follow=True)
    codebook = sharding.wrap(param, torch.ones(7), (7,), follow=False)
    assert isinstance(state, DTensor)
    assert isinstance(codebook, DTensor)
    assert (state.device_mesh, state.placements) == (mesh, (Shard(0),))
    assert (state.shape, state.stride(), state.dtype) == ((33, 2), (2, 1), torch.uint8)
    assert (codebook.placements, codebook.shape) == ((Replicate(),), (7,))
    assert state.to_local().device.type == "cpu"
    assert state.to_local().data_ptr() == index.data_ptr()


def test_placements_that_are_refused(join: Join) -> None:
    join(0, 2)
    mesh = init_device_mesh("cpu", (2, 1))
    for good in ([Shard(0), Replicate()], [Replicate(), Shard(0)], [Shard(0), Shard(0)]):
        sharding.check_placements(dtensor_zeros(8, 4, device_mesh=mesh, placements=good))
    strided = _StridedShard(0, split_factor=2)
    for bad in (Shard(1), Partial(), strided):
        param = DTensor.from_local(torch.zeros(4, 4), mesh, [bad, Replicate()])
        with pytest.raises(ValueError, match=r"Replicate\(\) or Shard\(0\)") as error:
            sharding.check_placements(param)
        assert str(error.value).endswith(f"not as {bad!r}.")
        assert str(error.value).count(". ") == 0


def test_a_gradient_of_another_kind_is_refused(join: Join) -> None:
    join(0, 2)
    mesh = init_device_mesh("cpu", (2,))
    param = dtensor_zeros(8, 4, device_mesh=mesh, placements=[Shard(0)])
    with pytest.raises(ValueError, match="only the parameter is a DTensor"):
        sharding.local_gradient(param, torch.zeros(8, 4))
    with pytest.raises(ValueError, match="only the gradient is a DTensor"):
        sharding.local_gradient(torch.zeros(8, 4), param)


def test_local_parts_share_memory(found: Results) -> None:
    for rows, counts in ((33, (17, 16)), (4, (2, 2)), (1, (1, 0))):
        for result, count in zip(found, counts, strict=True):
            parts = result["parts"]
            assert parts[f"rows {rows}"] == count
            for fact in ("slice", "plain", "reaches"):
                assert parts[f"{fact} {rows}"], (fact, rows)


def test_gradients_come_in_the_parameters_placements(found: Results) -> None:
    values = torch.arange(165, dtype=torch.float32).view(33, 5)
    for result, rows in zip(found, (slice(0, 17), slice(17, 33)), strict=True):
        gradients = result["gradients"]
        assert torch.equal(gradients["partial to shard"], 3 * values[rows])
        assert torch.equal(gradients["partial to replicate"], 3 * values)
        assert torch.equal(gradients["replicate to shard"], values[rows])
        assert gradients["kept"]


@pytest.mark.parametrize("rows", [33, 4, 1])
def test_wrapped_state_is_whole(found: Results, rows: int) -> None:
    whole = torch.arange(rows * 3).view(rows, 3).to(torch.uint8)
    for result in found:
        wrapped = result["wrapped"]
        assert sum(wrapped[f"collectives {rows}"].values()) == 0
        assert torch.equal(wrapped[f"whole {rows}"], whole)
        assert wrapped[f"whole {rows}"].dtype == torch.uint8
        assert wrapped[f"strides {rows}"] == (3, 1)
        assert wrapped[f"shapes {rows}"] == [(rows, 3), (7,), ()]
        assert wrapped[f"placed {rows}"] == [f"({p!r},)" for p in (Shard(0), *[Replicate()] * 2)]
        assert torch.equal(wrapped[f"copies {rows}"], torch.arange(7.0))
        assert wrapped[f"number {rows}"].item() == 2
        assert wrapped[f"shared {rows}"]


def test_sums_over_shards(found: Results) -> None:
    for rank, result in enumerate(found):
        first, plain, replicated, strided, integers = result["sums"]["sums"]
        assert torch.equal(first, torch.full((5,), 3.0))
        assert torch.equal(strided, torch.ones(4, 3))
        assert integers.tolist() == [2**61 + 1, 1]
        assert torch.equal(plain, torch.full((3,), rank + 1.0))
        assert torch.equal(replicated, torch.full((2,), rank + 1.0))
        assert result["sums"]["counts"] == {"allreduce_": 2}
        assert result["sums"]["none"] == {}
        assert result["sums"]["gathered"]["all_gather_into_tensor"] == 1


def test_sums_over_several_mesh_dimensions(found: Results) -> None:
    for rank, result in enumerate(found):
        for name in ("ranks first", "ranks last"):
            tensor, counts, offset = result["mesh_dims"][name]
            assert (tensor.item(), sum(counts.values()), offset) == (3, 1, 17 * rank)
        tensor, counts, offset = result["mesh_dims"]["ranks replicate"]
        assert (tensor.item(), sum(counts.values()), offset) == (rank + 1, 0, 0)


def test_the_default_group_is_left_alone(found: Results) -> None:
    for result in found:
        assert result["own_group"]["sum"].item() == 3
        assert result["own_group"]["its own"]
        assert not result["own_group"]["default"]
