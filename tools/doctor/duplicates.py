"""Find copies of images: exact ones by a hash of the bytes, near ones by a perceptual hash and a sketch.

Near pairs are found without comparing all images with each other. 64 bits are cut into d + 3 bands, so hashes at most d
bits apart agree in three bands or more. For each choice of three bands, hashes are sorted by these, and only neighbours
that agree there are compared. A dHash alone finds too many pairs of photographs (4,397 among 1,500 cuts made by
benchmarks.photos, against 73 with the sketch), so the sketches of a pair must correlate as well.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.doctor.inspection import SMALL, similarity
from tools.doctor.scan import Scan, Store
from utils.logger import log, progress

AGREEING_BANDS = 3
MIN_SIMILARITY = 0.988  # of sketches; copies of 100 of those cuts at quality 30, or at half the size, were above
MIN_SIMILARITY_SMALL = 0.998  # if both are below SMALL pixels: at 28, other trousers of the same cut reach 0.99
MAX_NEIGHBOURS = 1024  # hashes that agree in three bands with one; an almost empty hash has millions
MAX_PAIRS = 4_000_000  # in memory
BITS_OF_16 = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
BLOCK = 8192  # pairs whose sketches are fetched at a time


class Pairs(NamedTuple):
    """M pairs of images (int64): `later` is a copy of `earlier`, which is listed first; `distance` in bits."""

    later: NDArray[np.int64]
    earlier: NDArray[np.int64]
    distance: NDArray[np.uint8]


class Contents(NamedTuple):
    """C different contents.

    `first` (C, lists) is the first image of each content in each list, or -1. `of` (N,) is the content of each image,
    or -1 if it was not read.
    """

    first: NDArray[np.int64]
    of: NDArray[np.int64]


def contents(seen: Scan) -> Contents:
    """Group images by their bytes."""
    read = np.flatnonzero(seen.digest)
    _, group = np.unique(seen.digest[read], return_inverse=True)
    of = np.full(len(seen.digest), -1, np.int64)
    of[read] = group
    first = np.full((int(group.max(initial=-1)) + 1, len(seen.lists)), -1, np.int64)
    backwards = read[::-1]  # the last one written is the first image
    first[group[::-1], seen.list_of(backwards)] = backwards
    return Contents(first, of)


def exact(seen: Scan, groups: Contents) -> Pairs:
    """Return each image with the first one of the same bytes in its own list, and in each list before."""
    read = np.flatnonzero(groups.of >= 0)
    home = seen.list_of(read)
    later, earlier = [], []
    for list_number in range(len(seen.lists)):
        partner = groups.first[groups.of[read], list_number]
        hit = (partner >= 0) & (list_number <= home) & (partner < read)
        later.append(read[hit])
        earlier.append(partner[hit])
    return Pairs(np.concatenate(later), np.concatenate(earlier), np.zeros(sum(map(len, later)), np.uint8))


def near(seen: Scan, groups: Contents, store: Store, bits: int) -> Pairs:
    """Return images that look the same but differ in their bytes, each with its nearest per list, up to its own.

    If two lists share the exact bytes of an image, `exact` reports it instead.
    """
    parts = list(_alike(seen, groups, store, bits))
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    one, two, distance = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    found = []
    for here in range(len(seen.lists)):
        for there in range(here, len(seen.lists)):
            for first, second in {(here, there), (there, here)}:
                a, b = groups.first[one, first], groups.first[two, second]
                later, earlier = np.maximum(a, b), np.minimum(a, b)
                keep = (a >= 0) & (b >= 0)
                if here != there:
                    keep &= groups.first[groups.of[later], here] < 0
                found.append((later[keep], earlier[keep], distance[keep]))
    return _nearest(seen, Pairs(*(np.concatenate(columns) for columns in zip(*found, strict=True))))


def _nearest(seen: Scan, pairs: Pairs) -> Pairs:
    """Keep one pair per later image and list of the earlier image: the nearest."""
    order = np.lexsort((pairs.earlier, pairs.distance, seen.list_of(pairs.earlier), pairs.later))
    later, earlier, distance = pairs.later[order], pairs.earlier[order], pairs.distance[order]
    list_number = seen.list_of(earlier)
    begins = np.ones(len(order), bool)
    begins[1:] = (later[1:] != later[:-1]) | (list_number[1:] != list_number[:-1])
    return Pairs(later[begins], earlier[begins], distance[begins])


def _alike(seen: Scan, groups: Contents, store: Store, bits: int) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Yield pairs of contents whose hashes and sketches are similar, with the distance."""
    sample = np.where(groups.first >= 0, groups.first, np.iinfo(np.int64).max).min(
        axis=1, initial=np.iinfo(np.int64).max
    )
    wanted = np.flatnonzero(seen.comparable[sample])
    hashes = seen.dhash[sample[wanted]].view(np.uint64)
    kept = 0
    for one, two, distance in close_hashes(hashes, bits):
        for start in range(0, len(one), BLOCK):
            left, right, apart = (column[start : start + BLOCK] for column in (one, two, distance))
            named, where = np.unique(np.concatenate([left, right]), return_inverse=True)
            sketches, side = store.sketches([seen.key[image].tobytes() for image in sample[wanted[named]].tolist()])
            a, b = where[: len(left)], where[len(left) :]
            alike = similarity(sketches[a], sketches[b]) >= np.where(
                np.maximum(side[a], side[b]) < SMALL, MIN_SIMILARITY_SMALL, MIN_SIMILARITY
            )
            kept += int(alike.sum())
            yield wanted[left[alike]], wanted[right[alike]], apart[alike]
        if kept > MAX_PAIRS:
            log.warning(f"Over {MAX_PAIRS} pairs look alike, so the search stops here. Try: --near {max(0, bits - 2)}.")
            return


def bits_set(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return how many bits of each number are 1, uint8 of the same shape. NumPy has bitwise_count since 2.0 only."""
    return BITS_OF_16[np.ascontiguousarray(numbers).view(np.uint16).reshape(*numbers.shape, 4)].sum(-1, dtype=np.uint8)


def close_hashes(hashes: NDArray[np.uint64], bits: int) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Yield all pairs at most `bits` apart, once each, in blocks: two int64 indices into `hashes`, uint8 distances."""
    bands = _bands(bits + AGREEING_BANDS)
    choices = list(combinations(range(len(bands)), AGREEING_BANDS))
    number = {choice: k for k, choice in enumerate(choices)}
    first_choice = np.full(
        1 << len(bands), -1, np.int16
    )  # equal bands, as bits -> the first choice that finds the pair
    for equal in range(1 << len(bands)):
        agreeing = tuple(band for band in range(len(bands)) if equal >> band & 1)[:AGREEING_BANDS]
        first_choice[equal] = number.get(agreeing, -1)
    skipped = 0
    for choice in progress(choices, "comparing images"):
        masks = np.bitwise_or.reduce(np.array([bands[band] for band in choice], np.uint64))
        part = hashes & masks
        order = np.lexsort((hashes, part))
        part, sorted_hashes = part[order], hashes[order]
        alive = np.flatnonzero(part[1:] == part[:-1])  # whose neighbour `step` further on is in the same bucket
        step = 1
        while len(alive) and step <= MAX_NEIGHBOURS:
            differ = sorted_hashes[alive] ^ sorted_hashes[alive + step]
            distance = bits_set(differ)
            hit = np.flatnonzero(distance <= bits)
            equal = sum(((differ[hit] & band) == 0).astype(np.int64) << k for k, band in enumerate(bands))
            hit = hit[first_choice[equal] == number[choice]]
            if len(hit):
                yield order[alive[hit]], order[alive[hit] + step], distance[hit]
            step += 1
            alive = alive[alive + step < len(part)]
            alive = alive[part[alive] == part[alive + step]]
        skipped += len(alive)
    if skipped:
        log.warning(
            f"Some images share most of their hash with over {MAX_NEIGHBOURS} others; "
            "near-duplicates among these may be missing."
        )


def _bands(count: int) -> list[np.uint64]:
    """Return masks of `count` bands that divide 64 bits as evenly as possible."""
    edges = np.linspace(0, 64, count + 1).astype(int).tolist()
    return [np.uint64(((1 << high) - 1) ^ ((1 << low) - 1)) for low, high in pairwise(edges)]
