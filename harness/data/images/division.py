"""How labelled images are divided: folds that turn, or the source's own splits."""

import hashlib

import numpy as np

from harness.data.documents import HELD_OUT_SHARE, SPLITS

Division = dict[str, np.ndarray]  # split -> indices of its images, int64, rising


def keys(seed: int, number: int, count: int) -> np.ndarray:
    """`count` random uint64 keys, a function of the arguments alone (raw Philox output)."""
    return np.random.Philox(np.random.SeedSequence([seed, number])).random_raw(count)


def shuffled(count: int, seed: int, number: int) -> np.ndarray:
    """A permutation of range(count), int64, by `keys`."""
    return np.argsort(keys(seed, number, count), kind="stable")


def in_folds(labels: np.ndarray, pool: np.ndarray, folds: int, fold: int, seed: int) -> Division:
    """Fold `fold` of `pool` is the test split, the next one validation, the rest train.

    Stratified: of every class each fold has its share to within one image, and folds differ by at
    most one image. `seed` draws the folds, so that another seed is another repetition.

    Args:
        labels: int64, shape (n,).
        pool: indices of the images to divide.
        folds: number of folds, 3 or more.
        fold: 0 to folds - 1.
        seed: data seed, >= 0.
    """
    mixed = pool[shuffled(len(pool), seed, 0)]
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    # Dealt out like cards, class after class: the next class begins where the last one ended.
    member = np.argsort(by_class, kind="stable") % folds
    ordered = np.sort(pool)
    test, validation = fold, (fold + 1) % folds
    return {
        "train": ordered[(member != test) & (member != validation)],
        "validation": ordered[member == validation],
        "test": ordered[member == test],
    }


def in_splits(images: np.ndarray, splits: np.ndarray) -> Division:
    """The source's own splits; a missing one is taken from train, 5 % by the pixels' hash.

    Equal images have equal hashes and so stand together, whatever the order of the source.
    """
    found = {split: np.flatnonzero(splits == code) for code, split in enumerate(SPLITS)}
    train = found["train"] if len(found["train"]) else np.arange(len(images))
    digests = [hashlib.sha256(np.ascontiguousarray(images[i]).tobytes()).digest() for i in train]
    order = train[sorted(range(len(train)), key=lambda at: digests[at])]
    held_out = max(1, round(HELD_OUT_SHARE * len(train)))
    for split in ("validation", "test"):
        if not len(found[split]):
            found[split], order = np.sort(order[:held_out]), order[held_out:]
    return {**found, "train": np.sort(order)}
