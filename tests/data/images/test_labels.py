"""Images as people have them: tables, one folder without splits, names of classes; and what is wrong with them."""

import json
import shutil
import zipfile

import pytest

from tests.data.images.test_sources import PNG, config, error_of, folder_root, json_root, labels, names, photo, write
from toast_jax.data.images import pixels, selected, sources
from toast_jax.data.images.labels import class_names, held_out, table
from toast_jax.errors import InputError
from toast_jax.workdir import fingerprint

ROWS = [("x/1.png", "10", "train"), ("x/2.png", "9", "train"), ("3.png", "10", "val"), ("x/y/4.PNG", "9", "test")]


def table_config(root, **changes):
    return config(root, "table", **{"image_dir": "", **changes})


def table_root(root, rows=ROWS, name="all.csv", header="path,label,split", separator=","):
    folder_root(root, *(row[0] for row in rows))
    lines = [header.replace(",", separator), *(separator.join(row) for row in rows)]
    write(root / name, "\n".join(lines).encode("utf-8-sig"))
    return root / name


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_says_what_is_in_which_split(tmp_path, separator):
    data = table_config(table_root(tmp_path, separator=separator))
    train, val, test = (sources.open_split(data, split) for split in ("train", "val", "test"))
    assert names(train) == [f"{tmp_path}/x/1.png", f"{tmp_path}/x/2.png"] and names(test) == [f"{tmp_path}/x/y/4.PNG"]
    assert labels(train) == [1, 0] and labels(val) == [1] and labels(test) == [0]
    assert train.classes == val.classes == ("9", "10") and train[0]["image"] == PNG
    data.splits.val = ""
    with pytest.raises(InputError, match="The data has no val split: name one with --config.data.splits.val"):
        sources.open_split(data, "val")
    data.labels = False
    assert labels(sources.open_split(data, "train")) == [0, 0]


def test_parquet_reads_like_csv(tmp_path):
    import pyarrow
    from pyarrow import parquet

    csv_file = table_root(tmp_path)
    columns = dict(zip(("path", "label", "split"), zip(*ROWS, strict=True), strict=True))
    columns["label"] = [int(label) for label in columns["label"]]
    parquet.write_table(pyarrow.table({**columns, "other": [None] * 4}), tmp_path / "all.parquet")
    for split in ("train", "val", "test"):
        one, other = (sources.open_split(table_config(file), split) for file in (csv_file, tmp_path / "all.parquet"))
        assert one == other
    columns["label"] = [float(label) for label in columns["label"]]  # as pandas writes integers with gaps
    parquet.write_table(pyarrow.table(columns), tmp_path / "all.parquet")
    assert sources.open_split(table_config(tmp_path / "all.parquet"), "val") == sources.open_split(
        table_config(csv_file), "val"
    )
    lacking = {**columns, "label": [0.0, float("nan"), None, *[1.0] * (len(columns["label"]) - 3)]}
    parquet.write_table(pyarrow.table(lacking), tmp_path / "all.parquet")
    assert (
        "rows of" in (told := error_of(table_config(tmp_path / "all.parquet"))) and "have no label, the first is row 2" in told
    )
    write(tmp_path / "all.parquet", b"no parquet")
    assert f"Table {tmp_path}/all.parquet cannot be read (" in error_of(table_config(tmp_path / "all.parquet"))


def test_a_table_for_each_split(tmp_path):
    for split, rows in (("train", ["a,x", "b,y"]), ("valid", ["c,y"])):
        folder_root(tmp_path, *(f"{row[0]}.png" for row in rows))
        write(tmp_path / f"{split}.csv", "\n".join(["path,label", *(row.replace(",", ".png,") for row in rows)]).encode())
    data = table_config(tmp_path, splits={"train": "train", "val": "valid.csv", "test": "test"})
    assert labels(sources.open_split(data, "train")) == [0, 1] and labels(sources.open_split(data, "val")) == [1]
    assert f"There is no table {tmp_path}/test.csv, .tsv or .parquet: put it there, or set --config.data.splits.test" in (
        error_of(data, "test")
    )


def test_photos_of_a_table_are_upright_and_images_may_be_in_an_archive(tmp_path):
    photo(tmp_path / "in/1.jpg")
    write(tmp_path / "all.csv", b"path,label\nin/1.jpg,a\n")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "in/1.jpg", "in/1.jpg")
    for image_dir in ("", "images.zip"):
        splits = {"train": "train", "val": "", "test": ""}
        data = table_config(tmp_path / "all.csv", image_dir=image_dir, splits=splits, exif_orientation=True)
        (example,) = sources.open_split(data, "train")
        assert pixels.decode_example(example).shape == (7, 4, 3) and example["name"].endswith(f"{image_dir}/in/1.jpg"[-14:])
        shutil.rmtree(tmp_path / "in", ignore_errors=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows: write one for each image"),
        ("path,label\n", "has no rows"),
        ("file,label\na.png,x\n", "has no column path (it has file, label): add it, or rename one"),
        ("path,class,split\na.png,x,train\n", "has no column label (it has path, class, split)"),
        ("path,label\na.png,x\n", "has no column split (it has path, label): add it, or hold out a share"),
        ("path,label,split\na.png,,train\n\nb.png, ,train\n", "2 of 2 rows of {file} have no label, the first is row 2: fill"),
        ("path,label,split\n,x,train\n", "1 of 1 rows of {file} have no path, the first is row 2"),
        ("path,label,split\na.png,x\n", "1 of 1 rows of {file} have no split, the first is row 2"),
        ("path,label,split\na.png,x,train,1\n", "Row 2 of {file} has 4 cells and the header 3: put quotes around cells"),
        ("path,label,split\na.png,x,train\n./a.png,x,val\n", "Rows 2 and 3 of {file} have the same image './a.png': remove"),
        ("path,label,split\na.png,x,train\na.png,y,val\n", "the same image 'a.png', with the labels 'x' and 'y': remove"),
        (
            "path,label,split\na.png,x,train\nb.png,y,val\n",
            "Row 3 of {file} has the label 'y', which no row of split train has",
        ),
        ("path,label,split\na.png,x,train\nb.png,x,dev\n", "has no row of split 'val' (it has dev, train): set --config.data"),
        ("path,label,split\na.png,x,train\n\ngone.png,x,val\nb/gone.png,x,val\n", "2 of 2 images of {file} do not exist, the "),
        (
            "path,label,split\na.png,x,train\n\ngone.png,x,val\n",
            "{root}/gone.png of row 4: correct the paths, or set --config.",
        ),
        ('path,label,split\n"a.png,x,train\n', "cannot be read ("),
        ("path,label,label\na.png,x,y\n", "Table {file} has 2 columns label: rename all but one."),
        (b"path,label,split\n\xff.png,x,train\n", "cannot be read ("),
    ],
)
def test_mistakes_in_a_table_are_named_by_their_row(tmp_path, text, message):
    folder_root(tmp_path, "a.png", "b.png")
    write(tmp_path / "all.csv", text if isinstance(text, bytes) else text.encode())
    error = error_of(table_config(tmp_path / "all.csv"), "val")
    assert message.format(file=tmp_path / "all.csv", root=tmp_path) in error and f"{tmp_path}/all.csv" in error


def test_a_folder_too_high_or_too_deep_is_answered_by_the_right_one(tmp_path):
    folder_root(tmp_path, "images/a.png")
    write(tmp_path / "tables/train.csv", b"path,label\na.png,x\n")
    data = config(tmp_path, "table", image_dir="nowhere")
    message = f"There is no table {tmp_path}/train.csv, .tsv or .parquet: it is in {tmp_path}/tables; set --config.data.root to"
    assert message in error_of(data)
    write(tmp_path / "train.csv", b"path,label\na.png,x\n")
    (tmp_path / "images/deeper").mkdir()
    for data.image_dir in (".", "images/deeper"):
        message = f"a.png of row 2: it is in {tmp_path}/images; set --config.data.image_dir={tmp_path}/images."
        assert message in error_of(data).replace("/./", "/")
    data.image_dir = f"{tmp_path}/images"
    assert len(sources.open_split(data, "train")) == 1


# Held-out images


@pytest.fixture
def classes(tmp_path):
    """One folder of classes, with images at several depths."""
    return folder_root(
        tmp_path / "all", *(f"{name}/{i % 2}/{i}.png" for name, n in (("a", 10), ("b", 5), ("c", 1)) for i in range(n))
    )


def parts(data, **draw):
    return tuple(sources.open_split(data, split, **draw) for split in ("train", "val"))


def test_a_share_of_each_class_is_held_out_by_seed(classes):
    data = config(classes, "folder", held_out=0.2)
    assert sources.split_names(data) == ("train", "val")
    train, val = parts(data, seed=1)
    assert train.classes == val.classes == ("a", "b", "c")
    assert [labels(val).count(label) for label in range(3)] == [2, 1, 0]  # a class of one image is trained on
    assert sorted(names(train) + names(val)) == sorted(str(path) for path in classes.rglob("*.png")) and len(train) == 13
    assert parts(data, seed=1) == (train, val) and names(parts(data, seed=2)[1]) != names(val)
    with pytest.raises(InputError, match="no test split"):
        sources.open_split(data, "test")


def test_the_draw_depends_on_neither_the_place_nor_the_other_images(classes, tmp_path):
    before = [name[len(str(classes)) :] for name in names(parts(config(classes, "folder", held_out=0.4))[1])]
    classes.rename(tmp_path / "moved")
    folder_root(tmp_path / "moved", "d/1.png", "d/2.png")
    after = [name[len(f"{tmp_path}/moved") :] for name in names(parts(config(tmp_path / "moved", "folder", held_out=0.4))[1])]
    assert [name for name in after if not name.startswith("/d/")] == before and len(after) == len(before) + 1


def test_split_folders_lose_a_share_of_train_alone(tmp_path):
    folder_root(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(4)), "test/a/9.png")
    data = config(tmp_path, "folder", held_out=0.25)
    assert sources.split_names(data) == ("train", "val", "test")
    assert [len(sources.open_split(data, split)) for split in sources.split_names(data)] == [6, 2, 1]
    shutil.rmtree(tmp_path / "train/a"), shutil.rmtree(tmp_path / "train/b")
    folder_root(tmp_path, "train/1.png", "car/1.png")
    assert f"or set --config.data.splits.train=. if they are in {tmp_path}" in error_of(data)


def test_a_folder_without_splits_asks_for_a_share(classes):
    error = error_of(config(classes, "folder"))
    assert f"or --config.data.held_out=0.2 if {classes} has class folders and no splits" in error


def test_a_validation_split_that_is_not_used_is_logged(tmp_path, caplog):
    rows = [(f"{label}{i}.png", label, split) for label in "ab" for i, split in enumerate(["train", "train", "val"])]
    splits = {"train": "train", "val": "val", "test": ""}
    data = table_config(table_root(tmp_path, rows), held_out=0.5, splits=splits)
    assert [len(source) for source in sources.open_splits(data).values()] == [2, 2]
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("The 2 images of split val are not used, because val is held out from train")


def test_tables_and_json_splits_are_held_out_from_too(tmp_path):
    rows = [(f"{i}.png", "ab"[i % 2]) for i in range(10)]
    data = table_config(table_root(tmp_path, rows, header="path,label"), held_out=0.2)
    assert sources.split_names(data) == ("train", "val") and [len(part) for part in parts(data)] == [8, 2]
    json_root(tmp_path / "json", dict(rows))
    assert [len(part) for part in parts(config(tmp_path / "json", "json", held_out=0.2))] == [8, 2]


def test_a_record_decides_for_a_run_that_resumes_and_is_a_split_of_its_own(classes, tmp_path):
    data, run = config(classes, "folder", held_out=0.2), tmp_path / "run"
    before = parts(data, seed=1)
    for split, part in zip(("train", "val"), before, strict=True):
        write(run / f"splits/{split}.json", json.dumps(held_out.record(part, str(classes))).encode())
    folder_root(classes, "a/new.png", "b/new.png")
    assert parts(data, seed=2, run=run) == before
    assert fingerprint.of_source(parts(data, seed=2, run=run)[0]) == fingerprint.of_source(before[0])
    assert selected.open_images(data, "val", ("a", "b", "c"), seed=2, run=run)[0] == before[1]
    again = parts(config(run / "splits", "json", image_dir=str(classes)))
    assert [names(part) for part in again] == [names(part) for part in before] and again[1].classes == ("a", "b", "c")
    (classes / "a/new.png").rename(names(before[1])[0])
    shutil.rmtree(classes / "b/0")
    with pytest.raises(
        InputError, match=r"\d of 13 images of .*splits/train.json are no longer in the data, the first is b/0/"
    ):
        parts(data, run=run)
    write(run / "splits/train.json", b"{")
    with pytest.raises(InputError, match="splits/train.json is damaged .*: restore it, or begin anew in another --workdir"):
        parts(data, run=run)


def test_a_record_of_numbered_classes_keeps_their_order(tmp_path):
    folder_root(tmp_path / "classes", *(f"{name}/{i}.png" for name in range(12) for i in range(3)))
    before = parts(config(tmp_path / "classes", "folder", held_out=0.3))
    for split, part in zip(("train", "val"), before, strict=True):
        write(tmp_path / f"splits/{split}.json", json.dumps(held_out.record(part, str(tmp_path / "classes"))).encode())
    again = parts(config(tmp_path / "splits", "json", image_dir=str(tmp_path / "classes")))
    assert again[1].classes == before[1].classes == tuple(map(str, range(12))) and again[1].labels == before[1].labels


def test_a_record_of_numbers_that_are_text_keeps_their_order(tmp_path):
    root = folder_root(tmp_path / "images", *(f"{name}/{i}.png" for name in range(12) for i in range(3)))
    write(root / "train.json", json.dumps({f"{name}/{i}.png": str(name) for name in range(12) for i in range(3)}).encode())
    before = parts(config(root, "json", held_out=0.3, image_dir=""))
    for split, part in zip(("train", "val"), before, strict=True):
        write(tmp_path / f"splits/{split}.json", json.dumps(held_out.record(part, str(root))).encode())
    again = parts(config(tmp_path / "splits", "json", image_dir=str(root)))
    assert again[1].classes == before[1].classes == tuple(sorted(map(str, range(12)))) and again[1].labels == before[1].labels


def test_classes_of_single_images_cannot_be_held_out(tmp_path):
    assert "No class has two images" in error_of(config(folder_root(tmp_path, "a/1.png", "b/1.png"), "folder", held_out=0.5))


def test_a_folder_whose_name_has_a_plus_is_one_folder(tmp_path):
    folder_root(tmp_path, "a+b/1.png", "c/2.png")
    source, _ = selected.open_images(config(tmp_path, "folder"), f"{tmp_path}/a+b")
    assert names(source) == [f"{tmp_path}/a+b/1.png"]
    source, root = selected.open_images(config(tmp_path, "folder"), f"{tmp_path}/a++b+{tmp_path}/c")
    assert names(source) == [f"{tmp_path}/a+b/1.png", f"{tmp_path}/c/2.png"] and root == str(tmp_path)


# Names of classes


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "Grey heron\nRed kite\n\n"),
        ("names.json", '["Grey heron", "Red kite"]'),
        ("names.json", '{"9": "Grey heron", "10": "Red kite", "11": "Owl"}'),
    ],
)
def test_classes_are_named_by_a_file(tmp_path, file, text):
    write(tmp_path / file, text.encode())
    data = table_config(table_root(tmp_path), class_names=str(tmp_path / file))
    for split in ("train", "test"):
        source = sources.open_split(data, split)
        assert source.classes == ("Grey heron", "Red kite")
    assert labels(sources.open_split(data, "train")) == [1, 0]
    assert selected.open_images(data, "test", ("Grey heron", "Red kite"))[0] == source


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("gone.txt", None, "cannot be read (No such file or directory): correct --config.data.class_names"),
        ("a.json", "{", "of class names cannot be read (Expecting"),
        ("a.json", '{"x": "Grey heron"}', "names no class y (it has x): add it"),
        ("a.json", '{"x": "Grey heron", "y": ["Red kite"]}', "must hold a name for each class, as text"),
        ("a.txt", "Grey heron\n\nOwl", "must hold a name for each class"),
        ("a.txt", "Grey heron", "has 1 class names, and the data 2 classes (x, y): write one name for each, in this order"),
        ("a.txt", "Owl\nOwl ", "has the class name 'Owl' twice: give each class a name of its own"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path, file, text, message):
    if text is not None:
        write(tmp_path / file, text.encode())
    with pytest.raises(InputError) as raised:
        class_names.read(str(tmp_path / file), ("x", "y"))
    assert message in str(raised.value) and str(tmp_path / file) in str(raised.value)


# Paths to predict on


def test_paths_come_from_folders_tables_archives_and_images(tmp_path):
    file = table_root(tmp_path)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("b/1.png", PNG), archive.writestr("a.txt", b""), archive.writestr("a.PNG", PNG)
    assert list(selected.each_path(str(tmp_path))) == [
        f"{tmp_path}/{name}" for name in ("3.png", "x/1.png", "x/2.png", "x/y/4.PNG")
    ]
    assert list(selected.each_path(str(file))) == [f"{tmp_path}/{row[0]}" for row in ROWS] == table.paths(str(file))
    assert list(selected.each_path(f"{tmp_path}/images.zip")) == [
        f"{tmp_path}/images.zip/{name}" for name in ("a.PNG", "b/1.png")
    ]
    assert list(selected.each_path(f"{tmp_path}/3.png")) == [f"{tmp_path}/3.png"]


def test_a_folder_is_listed_while_it_is_read(tmp_path):
    folder_root(tmp_path, "a/1.png", "b/2.png", "b.png", "c/3.png")
    paths = selected.each_path(str(tmp_path))
    assert next(paths) == f"{tmp_path}/a/1.png"
    write(tmp_path / "c/4.png")
    assert list(paths) == [f"{tmp_path}/{name}" for name in ("b.png", "b/2.png", "c/3.png", "c/4.png")]
