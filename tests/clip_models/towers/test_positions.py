import pytest
import torch

from clip_models import ClipModelsError
from clip_models.towers.positions import resize_grid_positions, resize_text_positions, sin_cos_2d


def test_sin_cos_tells_rows_from_columns_on_any_grid():
    table = sin_cos_2d(16, (2, 3), prefix=2)
    assert table.shape == (8, 16)
    assert (table[:2] == 0).all()
    grid = table[2:].view(2, 3, 16)
    assert torch.equal(grid[0, :, 8:], grid[0, :1, 8:].expand(3, -1))  # one row: the second half is one
    assert torch.equal(grid[:, 1, :8], grid[:1, 1, :8].expand(2, -1))  # one column: the first half is one
    assert len({tuple(row.tolist()) for row in table[2:]}) == 6
    with pytest.raises(ClipModelsError, match="not 18"):
        sin_cos_2d(18, (2, 2))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_prefix_tokens_stay_and_the_grid_keeps_its_directions(prefix):
    rows = torch.arange(4.0)[:, None].expand(4, 6).reshape(-1, 1)
    columns = torch.arange(6.0).expand(4, 6).reshape(-1, 1)
    table = torch.cat([torch.full((prefix, 2), 9.0), torch.cat([rows, columns], dim=1)])
    new = resize_grid_positions(table, (8, 3), old_grid=(4, 6), prefix=prefix)
    assert new.shape == (prefix + 24, 2)
    assert torch.equal(new[:prefix], table[:prefix])
    grid = new[prefix:].view(8, 3, 2)
    assert (grid[1:, :, 0] > grid[:-1, :, 0]).all()
    assert (grid[:, 1:, 1] > grid[:, :-1, 1]).all()
    torch.testing.assert_close(grid[:, 0, 1], grid[:1, 0, 1].expand(8))


def test_what_has_the_size_already_is_not_touched():
    table = torch.randn(10, 4)
    assert resize_grid_positions(table, (3, 3)) is table
    assert resize_text_positions(table, 10) is table


def test_dtype_is_kept():
    table = torch.randn(10, 4).half()
    assert resize_grid_positions(table, (4, 4)).dtype == torch.float16
    assert resize_text_positions(table, 7).dtype == torch.float16


def test_a_table_that_is_no_such_grid_is_refused():
    with pytest.raises(ClipModelsError, match="12 image positions are not 1 and a grid of 3 x 3"):
        resize_grid_positions(torch.zeros(12, 4), (4, 4))
    with pytest.raises(ClipModelsError, match="a grid of 2 x 5"):
        resize_grid_positions(torch.zeros(12, 4), (4, 4), old_grid=(2, 5))
