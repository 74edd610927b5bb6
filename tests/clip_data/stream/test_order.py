from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_data.errors import ClipDataError
from clip_data.stream.mixing import MAX_PERIOD, pattern
from clip_data.stream.order import GlobalOrder, PlainOrder, SourceOrder, batching, permutation, words

counts = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def source_order(counts, **options):
    return SourceOrder([f"{i:08d}" for i in range(len(counts))], np.array(counts, np.int64), **{"seed": 0, **options})


def sample(order, stream, epoch, offset):
    window, place = order.window_of(stream, offset)
    units, rows = order.window(stream, epoch, window)
    return int(units[place]), int(rows[place])


def everything(counts):
    return sorted((unit, row) for unit, count in enumerate(counts) for row in range(count))


def test_the_order_is_the_one_that_was_published():
    # A change of these numbers breaks the resumption of every run: it needs a new order.VERSION.
    assert words(2, 7, "rows").tolist() == [14066198755812922801, 2976312190792931414]
    assert permutation(8, 7, 0, "units", 3).tolist() == [3, 4, 0, 2, 1, 6, 5, 7]
    order = source_order([3, 5, 4], seed=1, streams=2, window=4)
    assert [sample(order, 0, 2, offset) for offset in range(6)] == [(2, 2), (2, 3), (2, 1), (2, 0), (0, 1), (0, 0)]


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 8), st.integers(1, 50), st.integers(0, 10**9), st.booleans())
def test_every_epoch_of_the_streams_together_is_a_permutation(counts, streams, window, epoch, shuffle):
    order = source_order(counts, streams=streams, window=window, shuffle=shuffle)
    seen = []
    for stream in range(streams):
        assert abs(order.length(stream, epoch) - sum(counts) / streams) <= 1
        seen += [sample(order, stream, epoch, offset) for offset in range(order.length(stream, epoch))]
    assert sorted(seen) == everything(counts)
    assert shuffle or seen == everything(counts)


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 8), st.integers(0, 10**12))
def test_positions_of_a_stream_run_through_the_epochs_without_a_gap(counts, streams, start):
    order = source_order(counts, streams=streams)
    for stream in range(streams):
        epoch, offset = order.locate(stream, start)
        for position in range(start + 1, start + 2 * sum(counts)):
            offset += 1
            while offset == order.length(stream, epoch):
                epoch, offset = epoch + 1, 0
            assert order.locate(stream, position) == (epoch, offset)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(counts, st.sampled_from([(4, 4), (6, 3), (8, 2), (5, 1)]), st.integers(1, 3))
def test_global_batches_see_each_sample_once_an_epoch(counts, shape, epochs):
    batch, streams = shape
    total = sum(counts)
    order = source_order(counts, streams=streams, window=16)
    whole = GlobalOrder([order], [1.0], batch, streams)
    steps = total * epochs  # exactly batch × epochs epochs
    seen = Counter(
        sample(order, stream, epoch, offset)
        for step in range(steps)
        for _, stream, epoch, offset in (whole.place(step, index) for index in range(batch))
    )
    assert seen == dict.fromkeys(everything(counts), batch * epochs)


def test_epochs_and_seeds_and_units_of_one_size_are_shuffled_differently():
    orders = [source_order([50, 50], seed=seed, source=source) for seed in (0, 1) for source in (0, 1)]
    runs = [tuple(sample(order, 0, epoch, i) for i in range(100)) for order in orders for epoch in (0, 1)]
    assert len(set(runs)) == len(runs)
    rows = {unit: [row for u, row in runs[0] if u == unit] for unit in (0, 1)}
    assert rows[0] != rows[1]


def test_a_far_position_costs_what_a_near_one_costs(monkeypatch):
    drawn = []
    monkeypatch.setattr("clip_data.stream.order.words", lambda count, *key: drawn.append(count) or words(count, *key))
    order = source_order([1000] * 500, streams=8)
    costs = []
    for position in (10, 10**15):
        drawn.clear()
        sample(order, 3, *order.locate(3, position))
        costs.append(sum(drawn))
    assert max(costs) <= 500 + 8192 + 10 * 1000


def test_windows_of_different_streams_end_at_different_places():
    order = source_order([4000], streams=4, window=100)
    assert len({order.window_of(stream, 500) for stream in range(4)}) == 4


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 5), st.data())
def test_successors_are_all_other_samples_of_the_epoch_nearest_first(counts, streams, data):
    order = source_order(counts, streams=streams)
    stream = data.draw(st.sampled_from([s for s in range(streams) if order.length(s, 0)]))
    offset = data.draw(st.integers(0, order.length(stream, 0) - 1))
    found = list(order.successors(stream, 0, offset))
    everyone = {(s, o) for s in range(streams) for o in range(order.length(s, 0))}
    assert sorted(found) == sorted(everyone - {(stream, offset)})
    own = list(islice(found, order.length(stream, 0) - 1))
    assert all(s == stream for s, _ in own)
    assert own[:1] in ([], [(stream, (offset + 1) % order.length(stream, 0))])


def test_plain_order_reads_sources_one_after_the_other():
    orders = [source_order(counts, shuffle=False, source=i) for i, counts in enumerate([[2, 1], [4]])]
    plain = PlainOrder(orders, 3)
    places = [plain.place(batch, index) for batch in range(2) for index in range(3)] + [plain.place(2, 0)]
    assert places == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), *((1, 0, 0, i) for i in range(4))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.integers(0, 10**9), st.data())
def test_mixing_counts_are_exact_and_every_prefix_is_close(weights, cycles, data):
    mixed = pattern([float(w) for w in weights])
    start = data.draw(st.integers(0, mixed.period - 1))
    seen = [[] for _ in weights]
    begin = cycles * mixed.period
    for position in range(begin, begin + mixed.period):
        source, rank = mixed.at(start, position)
        seen[source].append(rank)
        for index, weight in enumerate(weights):
            share = (position - begin + 1) * weight / sum(weights)
            assert abs(len(seen[index]) - share) <= len(weights)
    for index, weight in enumerate(weights):
        share = weight * mixed.period // sum(weights)
        assert seen[index] == list(range(cycles * share, (cycles + 1) * share))


def test_every_global_batch_is_mixed_by_the_weights():
    orders = [source_order([40], source=index, streams=4) for index in range(2)]
    mixed = GlobalOrder(orders, [1.0, 3.0], 4, 4)  # a sample of each stream: only their starting points mix them
    for batch in range(8):
        assert Counter(mixed.place(batch, index)[0] for index in range(4)) == {0: 1, 1: 3}


def test_one_source_is_not_mixed_and_odd_weights_are_rounded():
    assert pattern([0.3]).at(0, 10**15) == (0, 10**15)
    odd = pattern([1.0, 1e-9, 0.333333331])
    assert odd.period <= MAX_PERIOD + 1
    assert min(odd.shares) >= 1
    assert odd.shares[0] / odd.shares[2] == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(ClipDataError, match="weight must be a positive number"):
        pattern([1.0, weight])


def test_streams_are_derived_from_the_batch():
    assert batching(1000, 256, 0, 0, 1) == 64
    assert batching(1000, 100, 0, 1, 4) == 4
    assert batching(1000, 96, 24, 0, 8) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 16, 0, 0, 1), r"has 10 samples, fewer than a global batch of 16: .* at most 10"),
        ((100, 16, 5, 0, 1), r"canonical_streams=5 does not divide the global batch of 16; .*: 1, 2, 4, 8, 16"),
        ((100, 12, 0, 0, 3), r"world_size=3 does not divide the 4 canonical streams .*: 1, 2, 4; .* multiple of 3"),
        ((100, 12, 0, 2, 2), r"rank=2, world_size=2"),
        ((100, 0, 0, 0, 1), r"global_batch_size=0"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(arguments, message):
    with pytest.raises(ClipDataError, match=message):
        batching(*arguments)
