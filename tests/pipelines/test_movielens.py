from __future__ import annotations

from contbatch.pipelines import movielens


def test_the_data_of_the_wheel_are_the_hundred_thousand() -> None:
    folder = movielens.find_folder(None)
    assert movielens.count_ratings(folder) == 100_000
    items = list(movielens.read_ratings(folder))
    assert sum(isinstance(item, movielens.Rating) for item in items) == 100_000
    liked = sum(float(item.rating) >= 4 for item in items if isinstance(item, movielens.Rating))
    assert liked == 55_375  # 55.4 %, as GroupLens' own summary of the data has it
