"""clip_data.select.columns: the split by uid."""

import hashlib

import numpy as np

from clip_data.select.columns import uid_fraction


def test_uid_fraction_is_uniform_and_stable():
    uids = [hashlib.md5(b"%d" % number).digest() for number in range(20_000)]
    fractions = uid_fraction(uids)
    assert fractions.min() >= 0
    assert fractions.max() < 1
    counts, _ = np.histogram(fractions, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-square with 19 degrees of freedom: p < 1e-4
    assert uid_fraction(uids[:3]).tolist() == fractions[:3].tolist()
    assert abs(np.corrcoef(fractions, [int.from_bytes(uid[:4], "big") for uid in uids])[0, 1]) < 0.03


def test_uid_fraction_is_fixed_for_ever():
    digest = hashlib.blake2b(bytes(16), digest_size=8, salt=b"uid_fraction").digest()
    assert abs(uid_fraction([bytes(16)])[0] - int.from_bytes(digest, "big") / 2**64) < 2**-52
    assert uid_fraction([bytes(16)])[0].hex() == "0x1.e9dd8058389e0p-4"
