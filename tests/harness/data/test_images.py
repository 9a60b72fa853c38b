"""Image sets against brute force, scikit-learn's own loader and pixels that the test wrote."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import data
from harness.config import DataConfig, RunConfig, from_dict, validate
from harness.config.groups import load_group
from harness.data import image_rows
from harness.data.images import ImageSet, in_folds, in_splits
from harness.errors import UserError

MakeRun = Callable[..., RunConfig]
NEEDS_DIGITS = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="needs the extra images (scikit-learn)"
)
GREYS = {"dark": 40, "bright": 220}


def image_data(source: str, path: Path, **values: Any) -> DataConfig:
    """Grey images of 8 x 8 pixels, without folds unless asked for."""
    given = {"name": "x", "source": source, "path": str(path), "image_size": 8, "channels": 1}
    return DataConfig(**{**given, **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLASS/image.png: 30 images of two shades, 12 x 8 pixels with a stripe outside the square."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    for name, grey in GREYS.items():
        (root / name).mkdir()
        for number in range(30):
            pixels = np.full((8, 12), grey + number % 10, dtype=np.uint8)
            pixels[:, :2] = 255  # cut off by the crop
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


@pytest.mark.parametrize("folds", [3, 5])
def test_folds_are_a_stratified_partition(folds: int) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 101)
    pool = np.flatnonzero(np.arange(101) % 7 != 0)  # some images stay aside
    tests = []
    for fold in range(folds):
        parts = in_folds(labels, pool, folds, fold, seed=3)
        joined = np.concatenate(list(parts.values()))
        assert sorted(joined) == sorted(pool)
        assert all((np.diff(part) > 0).all() for part in parts.values())
        tests.append(parts["test"])
        following = in_folds(labels, pool, folds, (fold + 1) % folds, seed=3)
        assert (parts["validation"] == following["test"]).all()
    assert sorted(np.concatenate(tests)) == sorted(pool)
    kinds = [[(labels[part] == kind).sum() for part in tests] for kind in range(4)]
    for counts in ([len(part) for part in tests], *kinds):
        assert max(counts) - min(counts) <= 1
    again = in_folds(labels, pool, folds, 0, seed=4)["test"]
    assert not np.array_equal(again, tests[0])
    assert np.array_equal(in_folds(labels, pool, folds, 0, seed=3)["test"], tests[0])


def test_missing_splits_come_from_training_and_equal_images_stay_together() -> None:
    pixels = np.arange(40, dtype=np.uint8).repeat(2).reshape(80, 1, 1, 1)  # each image twice
    parts = in_splits(pixels, np.zeros(80, dtype=np.uint8))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 72, "validation": 4, "test": 4,
    }  # fmt: skip
    seen = [set(pixels[part].ravel().tolist()) for part in parts.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 40
    own = np.repeat([0, 1, 2], [60, 10, 10]).astype(np.uint8)
    assert [len(part) for part in in_splits(pixels, own).values()] == [60, 10, 10]


@pytest.mark.parametrize("mode", ["drop", "refuse"])
def test_training_images_that_are_held_out_too_are_left_out_or_refused(
    folder: Path, tmp_path: Path, mode: str
) -> None:
    pixels = np.array([1, 2, 3, 3, 4, 2, 5, 5, 4], dtype=np.uint8).reshape(9, 1, 1, 1)
    splits = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2], dtype=np.uint8)
    parts = in_splits(pixels, splits)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "train": [0, 2, 3], "validation": [5, 6], "test": [7, 8],
    }  # fmt: skip
    for split, count in (("train", 20), ("test", 5)):  # the same files in both
        for name in GREYS:
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for file in sorted((folder / name).iterdir())[:count]:
                (tmp_path / "set" / split / name / file.name).write_bytes(file.read_bytes())
    config = image_data("image_folder", tmp_path / "set", copies=mode)
    if mode == "refuse":
        with pytest.raises(UserError, match=r"20 training images are held out too, .*copies=drop"):
            data.load(config, tmp_path / "cache")
        return
    found = data.load(config, tmp_path / "cache")
    assert found.meta["shared_with_held_out"] == 20  # shades repeat every ten files


def small_set(count: int = 30) -> ImageSet:
    """Images whose only pixel is their number."""
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    labels, splits = np.arange(count) % 3, np.zeros(count, dtype=np.uint8)
    found = ImageSet("x", 3, {"largest": 16}, pixels, labels, splits, folds=3)
    return found.divided(5)


def test_an_epoch_shows_every_training_image_once() -> None:
    found = small_set()
    train = found.division["train"]
    assert len(train) == 10
    rows = [found.batch(17, 4, seed=9, step=step) for step in range(5)]  # two epochs of 10
    pixels = np.concatenate([row["pixel_values"].ravel() for row in rows])
    shown = np.round((pixels + 1) * 8).astype(int)
    assert sorted(shown[:10]) == sorted(shown[10:]) == sorted(train)
    assert not np.array_equal(shown[:10], shown[10:])
    assert np.concatenate([row["labels"] for row in rows]).tolist() == (shown % 3).tolist()
    again = found.batch(17, 4, seed=9, step=3)
    assert np.array_equal(again["pixel_values"], rows[3]["pixel_values"])
    assert not np.array_equal(found.batch(17, 4, 8, 3)["pixel_values"], rows[3]["pixel_values"])


def test_evaluation_reads_a_split_in_order_up_to_its_tokens() -> None:
    found = small_set()
    sizes = [len(b["labels"]) for b in found.evaluation_batches("test", 17, 4, 10**6)]
    assert sizes == [4, 4, 2]
    few = list(found.evaluation_batches("test", 17, 4, 17 * 6 + 16))
    labels = np.concatenate([b["labels"] for b in few])
    assert labels.tolist() == (found.division["test"][:6] % 3).tolist()


@NEEDS_DIGITS
def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    config = from_dict(DataConfig, load_group("data", "digits"))
    found = data.load(config, tmp_path)
    bunch = load_digits()
    assert np.array_equal(found.images[..., 0], bunch.images)
    assert np.array_equal(found.labels, bunch.target)
    assert (found.vocab_size, found.meta["largest"]) == (10, int(bunch.images.max()))
    row = found.divided(0).batch(17, 4, 0, 0)["pixel_values"]
    assert row.shape == (4, 1, 8, 8)
    assert row.dtype == np.float32
    assert (row.min(), row.max()) == (-1, 1)
    other = data.load(DataConfig(**{**vars(config), "fold": 3}), tmp_path)
    assert other.hash == found.hash  # records of two folds compare
    assert len(list(tmp_path.glob("*/meta.json"))) == 1


def test_a_folder_and_a_parquet_file_give_the_same_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    found = data.load(image_data("image_folder", folder), tmp_path / "cache")
    assert found.images.shape == (60, 8, 8, 1)
    assert found.meta["classes"] == ["bright", "dark"]
    shades = np.array([GREYS[found.meta["classes"][label]] for label in found.labels])
    assert (found.images >= shades[:, None, None, None]).all()  # the stripe is gone
    assert (found.images < shades[:, None, None, None] + 10).all()
    parquet = tmp_path / "set.parquet"
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder))["train"]
    rows.rename_columns({"image": "img", "label": "kind"}).to_parquet(str(parquet))
    columns = {"image_column": "img", "label_column": "kind"}
    other = data.load(image_data("hub_images", parquet, **columns), tmp_path / "cache")
    assert np.array_equal(other.images, found.images)
    assert np.array_equal(other.labels, found.labels)
    with pytest.raises(UserError, match=r"'image' is not a column of .*; it has: img, kind"):
        data.load(image_data("hub_images", parquet), tmp_path / "cache")


def test_a_few_images_of_a_folder_are_of_every_class(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    found = data.load(image_data("image_folder", folder, max_documents=20), tmp_path / "c")
    assert found.images.shape[0] == 20
    assert np.bincount(found.labels).min() >= 5
    parquet = tmp_path / "set.parquet"
    datasets.load_dataset("imagefolder", data_dir=str(folder))["train"].to_parquet(str(parquet))
    local = image_data("hub_images", parquet, max_documents=20, image_column="image")
    other = data.load(local, tmp_path / "c")
    assert np.array_equal(other.images, found.images)
    with pytest.raises(UserError, match=r"data\.max_documents=1 leaves one class of "):
        data.load(image_data("image_folder", folder, max_documents=1), tmp_path / "c")


def test_splits_named_by_folders_are_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split, count in (("train", 20), ("test", 5)):
        for name in GREYS:
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for file in sorted((folder / name).iterdir())[:count]:
                (tmp_path / "set" / split / name / file.name).write_bytes(file.read_bytes())
    config = image_data("image_folder", tmp_path / "set", folds=3, fold=1)
    found = data.load(config, tmp_path / "cache")
    assert found.meta["images"] == {"train": 40, "validation": 0, "test": 10}
    parts = found.divided(0).division
    assert sum(map(len, parts.values())) == 40  # the set's own test images stay aside
    assert (found.splits[np.concatenate(list(parts.values()))] == 0).all()


def test_scaling_averages_pixels_of_a_colour_image() -> None:
    from PIL import Image

    board = np.indices((16, 16)).sum(0) % 2 * 255
    pixels = np.stack([board, np.full((16, 16), 90), np.zeros((16, 16))], -1).astype(np.uint8)
    config = image_data("image_folder", Path(), image_size=2, channels=3)
    scaled = image_rows.scaled(Image.fromarray(pixels), config)
    assert scaled.shape == (2, 2, 3)
    assert np.abs(scaled[..., 0].astype(int) - 127).max() <= 2
    assert (scaled[..., 1] == 90).all()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"data__source": "text_files"}, "cannot read data.source=text_files, which holds texts"),
        ({"model__family": "gpt2"}, "which holds images; choose for example model=vit_digits"),
        (
            {"task__kind": "pretrain"},
            "data.source=image_folder, which holds images; choose task=cl",
        ),
        ({"data__image_size": 9}, "data.image_size=9 is not the model.image_size=8"),
        ({"data__folds": 2}, "data.folds=2 is too small"),
        ({"data__folds": 5, "data__fold": 5}, "data.fold=5 must lie between 0 and 4"),
        ({"data__fold": 1}, "data.fold=1 needs data.folds"),
    ],
)
def test_what_does_not_go_together_is_refused(
    make_run: MakeRun, values: dict[str, Any], sentence: str
) -> None:
    keys: dict[str, dict[str, Any]] = {
        "model": load_group("model", "vit_digits"),
        "data": vars(image_data("image_folder", Path())),
        "task": {"kind": "classify"},
    }
    validate(make_run(**keys))
    for name, value in values.items():
        group, _, key = name.partition("__")
        keys[group][key] = value
    with pytest.raises(UserError, match=sentence):
        validate(make_run(**keys))


@pytest.mark.parametrize(
    ("source", "path", "values", "sentence"),
    [
        ("image_folder", "absent", {}, "is no folder; data=image_folder needs one"),
        ("image_folder", "flat", {}, "holds no folder; each class needs its own"),
        ("image_folder", "", {"channels": 2}, "data.channels=2 is not allowed"),
        ("image_folder", "", {"image_size": None}, "data.image_size=None is not allowed"),
        ("hub_images", "notes.doc", {}, "unknown suffix"),
    ],
)
def test_a_wrong_image_source_is_named(
    folder: Path, tmp_path: Path, source: str, path: str, values: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "notes.doc").touch()
    place = tmp_path / path if path else folder
    with pytest.raises(UserError, match=sentence):
        data.check(image_data(source, place, **values))


@NEEDS_DIGITS
def test_digits_have_a_size_of_their_own() -> None:
    with pytest.raises(UserError, match=r"set data\.image_size=8 and data\.channels=1"):
        data.check(image_data("digits", Path(), image_size=28))


def test_digits_without_their_package_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[images\]' -c constraints\.txt"):
        data.check(image_data("digits", Path()))
