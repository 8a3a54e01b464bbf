"""A CSV that names images and their classes."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from pipeline.config import Data
from pipeline.data.decode import EXTENSIONS, Decoding
from pipeline.data.sources import Source, open_source
from pipeline.data.sources.csv_file import load_further_columns, open_csv
from pipeline.data.sources.source import SPLIT_NAMES, Item
from pipeline.errors import UserError
from tests.data.conftest import WriteImages


def write(folder: Path, text: str, name: str = "table.csv") -> Path:
    """Write a CSV, and an empty file for each name in its first column that has an extension."""
    folder.mkdir(parents=True, exist_ok=True)
    for line in text.splitlines()[1:]:
        touch(folder, line.split(",")[0])
    (folder / name).write_text(text)
    return folder / name


def touch(folder: Path, *names: str) -> None:
    for name in names:
        if name.endswith(tuple(EXTENSIONS)) and not name.startswith("/") and ".." not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()


def opened(file: Path, **fields: str) -> Source:
    return open_csv(str(file), Data(source=f"csv:{file}", **fields))


def refused(file: Path, **fields: str) -> UserError:
    with pytest.raises(UserError) as caught:
        opened(file, **fields)
    assert "\n" not in caught.value.message
    return caught.value


def test_images_and_labels_in_the_order_of_the_rows(tmp_path: Path) -> None:
    source = opened(write(tmp_path, "image,label\nb/2.png,dog\na/1.png,cat\n"))
    assert source.items == [Item("b/2.png", "dog"), Item("a/1.png", "cat")]
    assert source.description == str(tmp_path / "table.csv")


def test_the_reader_reads_the_files(photos: WriteImages) -> None:
    root = photos({"cat": 1, "dog": 1})
    (root / "table.csv").write_text("image,label\ncat/000,cat\ndog/000.png,dog\n")
    source = open_source(Data(source=f"csv:{root / 'table.csv'}"))
    for item in source.items:
        content = source.reader.read(item.path)
        assert content == (root / item.path).read_bytes()
        assert source.reader.image(content, Decoding()).image.size == (12, 10)
        assert source.reader.fingerprint(item.path)


def test_split_and_group_are_taken_where_there_are_columns(tmp_path: Path) -> None:
    file = write(
        tmp_path, "image,label,split,group\na.png,cat,train,p1\nb.png,dog,,p2\nc.png,dog,TEST ,\n"
    )
    assert opened(file).items == [
        Item("a.png", "cat", "train", "p1"),
        Item("b.png", "dog", "", "p2"),
        Item("c.png", "dog", "test", ""),
    ]


@pytest.mark.parametrize("name", sorted(SPLIT_NAMES))
@pytest.mark.parametrize("spell", [str.lower, str.capitalize, str.upper])
def test_each_name_of_a_split(tmp_path: Path, name: str, spell: type[str]) -> None:
    assert (
        opened(write(tmp_path, f"image,label,split\na.png,cat, {spell(name)}\n")).items[0].split
        == SPLIT_NAMES[name]
    )


def test_columns_can_be_renamed_and_stand_in_any_order(tmp_path: Path) -> None:
    file = write(tmp_path, "file,subset,patient,age,diagnosis\na.png,val,p1,50,mild\n")
    fields = {
        "image_column": "file",
        "label_column": "diagnosis",
        "split_column": "subset",
        "group_column": "patient",
    }
    assert opened(file, **fields).items == [Item("a.png", "mild", "val", "p1")]


def test_quoted_fields_blanks_and_a_byte_order_mark(tmp_path: Path) -> None:
    touch(tmp_path, "a, b.png")
    (tmp_path / "table.csv").write_bytes(
        '\ufeffimage, label\r\n"a, b.png"," black ""cat"" "\r\n'.encode()
    )
    assert opened(tmp_path / "table.csv").items == [Item("a, b.png", 'black "cat"')]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_of_nothing_but_delimiters_are_ignored(tmp_path: Path, delimiter: str) -> None:
    touch(tmp_path, "a.png", "b.png")
    rows = [
        ("image", "label", "split"),
        ("a.png", "cat", ""),
        ("", " ", ""),
        ("b.png", "dog", ""),
        ("", "", ""),
        ("", "", ""),
    ]
    (tmp_path / "list.csv").write_text("\n".join(map(delimiter.join, rows)))
    source = open_source(Data(source=f"csv:{tmp_path / 'list.csv'}"))
    assert [(item.path, item.label) for item in source.items] == [
        ("a.png", "cat"),
        ("b.png", "dog"),
    ]
    (tmp_path / "list.csv").write_text("\n".join(map(delimiter.join, [*rows, ("c.png", "", "")])))
    with pytest.raises(UserError, match="line 7: empty label"):
        open_source(Data(source=f"csv:{tmp_path / 'list.csv'}"))


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\n \n\t\n", "\r\n\r\n"])
def test_blank_lines_at_the_end_are_ignored(tmp_path: Path, end: str) -> None:
    assert len(opened(write(tmp_path, f"image,label\na.png,cat\nb.png,dog{end}")).items) == 2


def test_a_file_that_does_not_exist_is_left_to_the_check_of_images(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(
        "image,label\nmissing.png,cat\nno/folder/a,dog\ntable.csv/a.png,dog\n"
    )
    assert [item.path for item in opened(tmp_path / "table.csv").items] == [
        "missing.png",
        "no/folder/a",
        "table.csv/a.png",
    ]


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_the_extension_is_optional(tmp_path: Path, extension: str) -> None:
    touch(tmp_path / "x.y", f"1{extension}")
    (tmp_path / f"2.v1{extension.upper()}").touch()
    (tmp_path / "1.txt").touch()
    (tmp_path / "table.csv").write_text("image,label\nx.y/1,cat\n2.v1,dog\n")
    assert [item.path for item in opened(tmp_path / "table.csv").items] == [
        f"x.y/1{extension}",
        f"2.v1{extension.upper()}",
    ]


def test_a_folder_of_the_same_name_is_not_the_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a/b.png")
    (tmp_path / "table.csv").write_text("image,label\na,cat\n")
    assert opened(tmp_path / "table.csv").items[0].path == "a.png"


def test_a_file_without_extension_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a").touch()
    (tmp_path / "table.csv").write_text("image,label\na,cat\n")
    assert opened(tmp_path / "table.csv").items[0].path == "a"


def test_two_candidates_for_an_extension_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png", "sub/a.jpg")
    (tmp_path / "table.csv").write_text("image,label\nsub/a.png,cat\nsub/a,cat\n")
    assert (
        "line 3: 'sub/a' may be a.jpg or a.png; name the extension"
        in refused(tmp_path / "table.csv").message
    )


def test_root_is_where_the_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "images", "a.png")
    file = write(tmp_path / "tables", "image,label\na,cat\n")
    source = opened(file, root=str(tmp_path / "images"))
    assert source.items == [Item("a.png", "cat")]
    assert source.reader.read("a.png") == b""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_csv("~/tables/table.csv", Data(root="~/images")).items == source.items


def test_an_unknown_root_is_named_with_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path, "image,label\nimages/a.png,cat\n")
    message = refused(file, root=str(tmp_path / "image")).message
    assert (
        message
        == f"data.root: folder '{tmp_path}/image' does not exist; nearest: {tmp_path}/images"
    )


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path, "image,label\na.png,cat\n")
    assert (
        refused(tmp_path / "tabel.csv").message
        == f"data.source: file '{tmp_path}/tabel.csv' does not exist; nearest: {file}"
    )
    assert (
        refused(tmp_path / "no" / "x.csv").message
        == f"data.source: file '{tmp_path}/no/x.csv' does not exist"
    )
    assert (
        "data.labels: file 'lables.csv' does not exist"
        in refused(file, labels="lables.csv").message
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty; its first line must name the columns"),
        (b"\n\n", "is empty; its first line must name the columns"),
        (b"image,label\n", "has no rows below its column names"),
        (b"image,label\n\n\n", "has no rows below its column names"),
        (b"image,label\na.png,cat\nb.png,caf\xe9\n", "line 3: not UTF-8"),
        (b"\xef\xbb\xbfimage,label\na.png,caf\xe9\n", "line 2: not UTF-8"),
        (b"image,label\na.png,cat\nb\0.png,dog\n", "line 3: a zero byte; this is no text"),
        (
            b'image,label\na.png,cat\n"b.png,dog\nc.png,dog\n',
            "line 3: unexpected end of data; is a quotation mark missing?",
        ),
        (
            b'image,label\n"b.png,dog\n' + b"c.png,dog\n" * 20000,
            "line 2: field larger than field limit",
        ),
        (
            b'image,label\n"b".png,dog\n',
            "line 2: ',' expected after '\"'; is a quotation mark missing?",
        ),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    error = refused(tmp_path / "table.csv")
    assert expected in error.message
    assert error.message.startswith(f"data.source: '{tmp_path}/table.csv'")


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    assert refused(tmp_path).message == f"data.source: '{tmp_path}' cannot be read: is a folder"


@pytest.mark.parametrize(
    ("header", "fields", "expected"),
    [
        (
            "images,label",
            {},
            "has no column 'image' (data.image_column); nearest: images; columns: images, label",
        ),
        (
            "image,Label",
            {},
            "has no column 'label' (data.label_column); nearest: Label; columns: image, Label",
        ),
        ("image,x", {}, "has no column 'label' (data.label_column); columns: image, x"),
        (
            "images;label",
            {},
            "has no column 'image' (data.image_column); nearest: images; columns: images, label",
        ),
        (
            "image,label",
            {"image_column": "file"},
            "has no column 'file' (data.image_column); columns: image, label",
        ),
        (
            "image,label,splits",
            {"split_column": "spilt"},
            "has no column 'spilt' (data.split_column); nearest: splits;",
        ),
        (
            "image,label,split",
            {"group_column": "patient"},
            (
                "has no column 'patient' (data.group_column); nearest: split; columns: image, "
                "label, split"
            ),
        ),
        ("image,label,label", {}, "has 2 columns 'label'; columns: image, label, label"),
        (
            'image,"lab\nel"',
            {},
            (
                r"has no column 'label' (data.label_column); nearest: 'lab\nel'; columns: image, "
                r"'lab\nel'"
            ),
        ),
        ("image,label,split,split", {}, "has 2 columns 'split'"),
    ],
)
def test_columns_are_named_with_the_nearest(
    tmp_path: Path, header: str, fields: dict[str, str], expected: str
) -> None:
    row = "," * header.count(",")
    (tmp_path / "table.csv").write_text(f"{header}\n{row}\n")
    assert expected in refused(tmp_path / "table.csv", **fields).message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("b.png,,", "empty label"),
        ("b.png,  ,", "empty label"),
        ("b.png,black\tcat,", r"label 'black\tcat' has control characters"),
        ('b.png,"black\ncat",', r"label 'black\ncat' has control characters"),
        ("b.png,black\u2028cat,", r"label 'black\u2028cat' has control characters"),
        ("b.png,\x1b[31mcat,", r"label '\x1b[31mcat' has control characters"),
        (",cat,", "empty image name"),
        (" ,cat,", "empty image name"),
        ("sub/,cat,", "'sub/' names a folder, not an image"),
        ("./.,cat,", "'./.' names a folder, not an image"),
        ("../b.png,cat,", "'../b.png' is not a path below ROOT"),
        ("sub/../../b.png,cat,", "'sub/../../b.png' is not a path below ROOT"),
        ("sub/..,cat,", "'sub/..' is not a path below ROOT"),
        ("..,cat,", "'..' is not a path below ROOT"),
        ("/b.png,cat,", "'/b.png' is not a path below ROOT"),
        ("//b.png,cat,", "'//b.png' is not a path below ROOT"),
        ("ROOT/a.png,cat,", "'a.png' is in line 2 already"),
        ("ROOT/../a.png,cat,", "'ROOT/../a.png' is not a path below ROOT"),
        (r"..\b.png,cat,", r"'../b.png' is not a path below ROOT"),
        ("a.png,cat,", "'a.png' is in line 2 already"),
        ("./a.png,cat,", "'a.png' is in line 2 already"),
        ("a,cat,", "'a.png' is in line 2 already"),
        ("b.png,cat", "2 fields, expected 3"),
        ("b.png", "1 field, expected 3"),
        ("b.png,cat,train,x", "4 fields, expected 3"),
        ("", "empty line"),
        (f"{'y/' * 3000}z,cat,", f"{'y/' * 20!r}… has 6001 characters, and no path more than 4096"),
        (
            "b.png,cat,trian",
            "unknown split 'trian'; nearest: train; allowed: train, val, test, or empty",
        ),
        ("b.png,cat,0", "unknown split '0'; allowed: train, val, test, or empty"),
    ],
)
def test_a_wrong_row_is_refused_by_line(tmp_path: Path, row: str, expected: str) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    # A field of two lines in between: counting rows would give another number.
    text = (
        "image,label,split\n"
        "a.png,cat,\n"
        '"of two\n'
        'lines.png",cat,\n'
        f"{row.replace('ROOT', str(tmp_path))}\n"
        "d.png,cat,\n"
    )
    (tmp_path / "table.csv").write_text(text)
    error = refused(tmp_path / "table.csv")
    assert (
        error.message
        == f"data.source: '{tmp_path}/table.csv', line 5: {expected.replace('ROOT', str(tmp_path))}"
    )
    assert error.findings == []


def test_the_same_image_twice_by_two_spellings_of_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    (tmp_path / "table.csv").write_text("image,label\nsub/a,cat\n./sub//a.png,dog\n")
    assert "line 3: 'sub/a.png' is in line 2 already" in refused(tmp_path / "table.csv").message


def test_several_wrong_rows_are_counted_and_listed(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        (
            "image,label,split\n"
            "a.png,,\n"
            "b.png,cat,\n"
            ",cat,\n"
            "../c.png,cat,\n"
            "b.png,dog,\n"
            "d.png\n"
            "e.png,cat,tset\n"
        ),
    )
    error = refused(file)
    assert error.message == f"data.source: '{file}' has 6 wrong rows"
    assert error.findings == [
        "line 2: empty label",
        "line 4: empty image name",
        f"line 5: '../c.png' is not a path below {tmp_path}",
        "line 6: 'b.png' is in line 3 already",
        "line 7: 1 field, expected 3",
        "line 8: unknown split 'tset'; nearest: test; allowed: train, val, test, or empty",
    ]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with an image, beside the root of the CSV."""
    touch(tmp_path / "private", "secret.png", "below/secret.png")
    return tmp_path / "private"


@pytest.mark.parametrize(
    "name",
    [
        "link/secret.png",
        "link/secret",
        "link/below/secret.png",
        "sub/link/secret.png",
        "link/missing.png",
    ],
)
def test_a_linked_folder_that_leads_outside_is_refused(
    tmp_path: Path, outside: Path, name: str
) -> None:
    root = tmp_path / "root"
    touch(root, "a.png", "sub/a.png")
    (root / "link").symlink_to(outside)
    (root / "sub" / "link").symlink_to(outside)
    (root / "table.csv").write_text(f"image,label\na.png,cat\n{name},cat\n")
    assert (
        f"line 3: '{name}' leads out of {root} by a symbolic link"
        in refused(root / "table.csv").message
    )


@pytest.mark.parametrize("name", ["a.png", "a", "again.png", "folder.png", "dangling.png"])
def test_a_linked_file_that_leads_outside_is_refused(
    tmp_path: Path, outside: Path, name: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").symlink_to(outside / "secret.png")
    (root / "again.png").symlink_to("a.png")
    (root / "folder.png").symlink_to(outside)
    (root / "dangling.png").symlink_to(outside / "missing.png")
    (root / "table.csv").write_text(f"image,label\n{name},cat\n")
    assert (
        f"line 2: '{name}' leads out of {root} by a symbolic link"
        in refused(root / "table.csv").message
    )


TABLE = [("image", "label"), ("a/1.png", "cat"), ("2.png", "dog")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["", "sep=DELIMITER\r\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, delimiter: str, encoding: str, first: str, end: str
) -> None:
    text = first.replace("DELIMITER", delimiter) + "".join(
        delimiter.join(row) + end for row in TABLE
    )
    (tmp_path / "table.csv").write_bytes(text.encode(encoding))
    assert opened(tmp_path / "table.csv").items == [Item("a/1.png", "cat"), Item("2.png", "dog")]
    (tmp_path / "table.csv").write_bytes(
        (text + delimiter.join(("3.png", "")) + end).encode(encoding)
    )
    assert f"line {4 + bool(first)}: empty label" in refused(tmp_path / "table.csv").message


def test_the_delimiter_is_the_one_with_which_there_is_the_column(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("label;image;note, of whom\ncat;a.png;x\n")
    assert opened(tmp_path / "table.csv").items == [Item("a.png", "cat")]
    (tmp_path / "labels.csv").write_text("label;by\ndog;x\n")
    assert opened(tmp_path / "table.csv", labels=str(tmp_path / "labels.csv")).items == [
        Item("a.png", "dog")
    ]


def test_names_as_windows_writes_them(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/b/2.png", "c\\3.png", "a/d.jpg")
    (tmp_path / "table.csv").write_text(
        "image,label\na\\1.png,cat\na\\b\\2,cat\nc\\3.png,dog\n.\\a\\d,dog\na\\none.png,dog\n"
    )
    # The name as it is written comes first, also where there is neither.
    assert [item.path for item in opened(tmp_path / "table.csv").items] == [
        "a/1.png",
        "a/b/2.png",
        "c\\3.png",
        "a/d.jpg",
        "a\\none.png",
    ]


def test_absolute_names_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "images", "a.png", "sub/b.png", "c.png")
    (tmp_path / "linked").symlink_to("images")
    rows = [tmp_path / "images" / "a.png", tmp_path / "linked" / "sub" / "b", "c.png"]
    (tmp_path / "table.csv").write_text("image,label\n" + "".join(f"{row},cat\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    for root in ("linked", str(tmp_path / "linked")):
        assert [item.path for item in opened(tmp_path / "table.csv", root=root).items] == [
            "a.png",
            "sub/b.png",
            "c.png",
        ]
    assert "is not a path below" in refused(tmp_path / "table.csv", root="images").message


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_unicode_form_are_the_files(tmp_path: Path, form: str) -> None:
    other = "NFD" if form == "NFC" else "NFC"

    def as_(form: str, text: str) -> str:
        return unicodedata.normalize(form, text)

    touch(tmp_path, as_(form, "café/über.png"), as_(form, "née.jpg"))
    named = as_(other, "image,label\ncafé/über.png,cat\ncafé\\über,dog\nnée,dog\n")
    (tmp_path / "table.csv").write_text(named)
    assert (
        f"line 3: {as_(form, 'café/über.png')!r} is in line 2 already"
        in refused(tmp_path / "table.csv").message
    )
    (tmp_path / "table.csv").write_text(named.replace(as_(other, "café\\über,dog\n"), ""))
    assert [item.path for item in opened(tmp_path / "table.csv").items] == [
        as_(form, "café/über.png"),
        as_(form, "née.jpg"),
    ]


def test_two_files_that_differ_in_their_unicode_form_only(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    touch(tmp_path, *names)
    (tmp_path / "table.csv").write_text(f"image,label\n{names[0]},cat\n{names[1]},dog\n")
    assert [item.path for item in opened(tmp_path / "table.csv").items] == names
    (tmp_path / "table.csv").write_text(
        "image,label\n" + unicodedata.normalize("NFC", "é") + ",cat\n"
    )
    assert "; name the extension" in refused(tmp_path / "table.csv").message


def test_a_root_of_like_name_is_outside(tmp_path: Path) -> None:
    touch(tmp_path / "root", "a.png")
    touch(tmp_path / "rooted", "b.png")
    (tmp_path / "root" / "b.png").symlink_to(tmp_path / "rooted" / "b.png")
    (tmp_path / "root" / "table.csv").write_text("image,label\nb.png,cat\n")
    assert "leads out of" in refused(tmp_path / "root" / "table.csv").message


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "files/a.png")
    (root / "link").symlink_to("files")
    (root / "files" / "b.png").symlink_to("a.png")
    (root / "table.csv").write_text("image,label\nlink/a,cat\nlink/b,cat\nfiles/a.png,dog\n")
    assert [item.path for item in opened(root / "table.csv").items] == [
        "link/a.png",
        "link/b.png",
        "files/a.png",
    ]
    (tmp_path / "other").symlink_to(root)
    assert opened(tmp_path / "other" / "table.csv").items == opened(root / "table.csv").items


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_links_are_met_in_a_folder_that_cannot_be_listed(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    touch(root, "sub/b.png")
    (root / "sub" / "a.png").symlink_to(outside / "secret.png")
    (root / "table.csv").write_text("image,label\nsub/b.png,cat\nsub/a.png,cat\n")
    (root / "sub").chmod(0o111)
    try:
        assert "line 3: 'sub/a.png' leads out of" in refused(root / "table.csv").message
    finally:
        (root / "sub").chmod(0o755)


def with_labels(folder: Path, images: str, labels: str) -> dict[str, str]:
    write(folder, images)
    (folder / "labels.csv").write_text(labels)
    return {"labels": str(folder / "labels.csv")}


@pytest.mark.parametrize(
    "labels",
    [
        "label\ncat\ndog\n",
        "anything\ncat\ndog\n\n",
        "image,label\na.png,cat\nb.png,dog\n",
        "label,confidence\ncat,1\ndog,0.5\n",
    ],
)
def test_labels_of_a_second_csv(tmp_path: Path, labels: str) -> None:
    fields = with_labels(tmp_path, "image,split\na.png,train\nb.png,\n", labels)
    assert opened(tmp_path / "table.csv", **fields).items == [
        Item("a.png", "cat", "train"),
        Item("b.png", "dog"),
    ]


def test_labels_of_a_second_csv_count_before_those_of_the_first(tmp_path: Path) -> None:
    fields = with_labels(tmp_path, "image,label\na.png,old\nb.png,\n", "label\ncat\ndog\n")
    assert [item.label for item in opened(tmp_path / "table.csv", **fields).items] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            "label\ncat\n",
            (
                "has 1 and 'FOLDER/table.csv' has 2 rows below the column names; each image "
                "needs its label in the same row"
            ),
        ),
        (
            "label\ncat\ndog\ncat\n",
            "has 3 and 'FOLDER/table.csv' has 2 rows below the column names",
        ),
        (
            "cat\ndog\n",
            (
                "has 1 and 'FOLDER/table.csv' has 2 rows below the column names; each image "
                "needs its label in the same row"
            ),
        ),
        ("", "is empty; its first line must name the columns"),
        ("label\ncat\n\ndog\n", "has 3 and 'FOLDER/table.csv' has 2 rows"),
        ("label\n\ndog\n", ", line 2: empty line"),
        ("label,x\n,1\ndog,1\n", ", line 2: empty label"),
        ("label\ncat\ndog,cat\n", ", line 3: 2 fields, expected 1"),
        (
            "class,x\ncat,1\ndog,1\n",
            " has no column 'label' (data.label_column); columns: class, x",
        ),
        (
            "image,label\na.png,cat\nc.png,dog\n",
            ", line 3: image 'c.png', but 'b.png' in line 4 of FOLDER/table.csv",
        ),
    ],
)
def test_wrong_labels_of_a_second_csv(tmp_path: Path, labels: str, expected: str) -> None:
    fields = with_labels(tmp_path, 'image,note\na.png,"of two\nlines"\nb.png,\n', labels)
    message = refused(tmp_path / "table.csv", **fields).message
    assert message.startswith(f"data.labels: '{tmp_path}/labels.csv'")
    assert expected.replace("FOLDER", str(tmp_path)) in message


@pytest.mark.parametrize("label", ["café\u00a0noir", "می\u200cخواهم", "👨\u200d👩"])
def test_a_label_may_have_the_joiners_and_blanks_of_its_language(
    tmp_path: Path, label: str
) -> None:
    assert opened(write(tmp_path, f"image,label\na.png,{label}\n")).items == [Item("a.png", label)]


def test_the_second_csv_may_spell_an_image_otherwise(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png", "b.png", "c.png", "c.jpg")
    fields = with_labels(
        tmp_path, "image\nsub/a\nb.png\nc.png\n", "image,label\nsub/a.png,cat\n./b,dog\nc.png,cat\n"
    )
    assert opened(tmp_path / "table.csv", **fields).items == [
        Item("sub/a.png", "cat"),
        Item("b.png", "dog"),
        Item("c.png", "cat"),
    ]
    fields = with_labels(
        tmp_path, "image\nsub/a\nb.png\nc.png\n", "image,label\nsub/a.png,cat\n../b,dog\nc,cat\n"
    )
    assert refused(tmp_path / "table.csv", **fields).findings == [
        f"line 3: image '../b', but 'b.png' in line 3 of {tmp_path}/table.csv",
        f"line 4: image 'c', but 'c.png' in line 4 of {tmp_path}/table.csv",
    ]


def test_all_rows_that_disagree_are_listed(tmp_path: Path) -> None:
    fields = with_labels(
        tmp_path, "image\na.png\nb.png\nc.png\n", "image,label\na.png,cat\nc.png,cat\nb.png,\n"
    )
    error = refused(tmp_path / "table.csv", **fields)
    assert error.message.endswith("labels.csv' has 2 wrong rows")
    assert error.findings == [
        f"line 3: image 'c.png', but 'b.png' in line 3 of {tmp_path}/table.csv",
        "line 4: empty label",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("num_folders", "extension"), [(1, ".png"), (1000, "")])
def test_30_000_rows_are_listed_and_the_one_wrong_is_found(
    tmp_path: Path, num_folders: int, extension: str
) -> None:
    names = [f"images/{number % num_folders}/{number}" for number in range(30_000)]
    for number in range(num_folders):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
    for name in names:
        os.close(os.open(f"{tmp_path}/{name}.png", os.O_CREAT))
    rows = [
        f"{name}{extension},class {number % 10},p{number // 3}" for number, name in enumerate(names)
    ]
    file = tmp_path / "table.csv"
    file.write_text("\n".join(["image,label,group", *rows]))
    items = opened(file).items
    assert [item.path for item in items] == [f"{name}.png" for name in names]
    rows[22_222] = f"{names[0]},class 0,p0"
    file.write_text("\n".join(["image,label,group", *rows]))
    error = refused(file)
    assert (
        error.message == f"data.source: '{file}', line 22224: '{names[0]}.png' is in line 2 already"
    )
    assert error.findings == []


def test_further_columns_are_what_is_said_of_each_image(tmp_path: Path) -> None:
    text = "image,label,scanner, age ,,twice,twice\na.png,cat,Zeiss,7,x,1,2\nb.png,dog,,8,y,3,4\n"
    file = write(tmp_path, text)
    data = Data(source=f"csv:{file}")
    assert load_further_columns(str(file), data) == {
        "scanner": {"a.png": "Zeiss", "b.png": ""},
        "age": {"a.png": "7", "b.png": "8"},
    }
    # A column that says the group says nothing further.
    grouped = Data(source=f"csv:{file}", group_column="scanner")
    assert list(load_further_columns(str(file), grouped)) == ["age"]
    with pytest.raises(UserError, match="does not exist"):
        load_further_columns(str(tmp_path / "gone.csv"), data)
