"""The submission file: the template's rows, their images, the column to fill in, and known labels to score with."""

from __future__ import annotations

import codecs
import csv
import io
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import checkpoint
import data
import pixels
from runs import BadInput

TEMPLATES = ("sample_submission.csv", "info.csv", "test.csv")


@dataclass
class Template:
    """The rows of the submission, unchanged, and the column to fill in."""

    path: Path | None
    columns: list[str]
    rows: list[dict[str, str]]
    label: str  # the column to fill in
    images: list[str]  # image file of each row
    image: str  # the column that names the image
    start: str = ""  # a byte order mark (BOM), if the file has one
    line_end: str = "\n"
    separator: str = ","


def read_template(folder: Path, template: str | None) -> Template:
    """The rows of the template CSV and their images. Without a template: one row per image, columns ID and target.

    Raises: BadInput that names the file or folder, if
        - the folder or the template does not exist, or the folder has no image
        - a row has no image, or two rows have the same image
        - an image has no row, in a folder where other images have one
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    path = find_template(folder, template)
    if path is None:
        images, _ = data.image_files(folder)
        if not images:
            raise BadInput(f"{folder} has no images ({', '.join(sorted(data.IMAGE_EXTENSIONS))})")
        rows = [{"ID": Path(image).relative_to(folder).as_posix(), "target": ""} for image in images]
        return Template(None, ["ID", "target"], rows, "target", images, "ID")
    sheet = data.read_sheet(path)
    rows = sheet.rows
    names, columns = list(rows[0]), data.columns_of(path, rows)
    known = [columns[name] for name in data.COLUMNS["image"] if name in columns]
    roots = [folder, folder / "test", folder / "images", folder / "eval" / "images", folder / "test" / "images"]
    column, root = data.find_images(path, rows, known, roots)
    images = images_of(path, root, [row[column] for row in rows])
    content = path.read_bytes()
    start = "\ufeff" if content.startswith(codecs.BOM_UTF8) else ""
    form = start, "\r\n" if b"\r" in content.partition(b"\n")[0] else "\n", sheet.separator
    labels = [columns[name] for name in data.COLUMNS["label"] if name in columns]
    if labels or (names[-1] != column and path.name != "test.csv"):
        return Template(path, names, rows, [*labels, names[-1]][0], images, column, *form)
    rows = [{"ID": str(i)} | row | {"target": ""} for i, row in enumerate(rows)]  # a test.csv has no label column
    return Template(path, list(rows[0]), rows, "target", images, column, *form)


def check_one_column(template: Template, labels: list[str]) -> None:
    """Raises BadInput for a template with one column per class (one-hot)."""
    columns = [name for name in template.columns if name.strip() in labels]
    if len(columns) > 1:
        raise BadInput(
            f"{template.path} has one column per class ({', '.join(columns[:5])}), but predict.py fills one column: "
            "use a template with one label column, and --probs FILE.npz for the probabilities"
        )


def columns_to_fill(template: Template, saved: dict[str, Any], labels: list[str]) -> dict[str, dict[str, str]]:
    """The columns of the template to fill in: for each, from the label of a class to the text of the column.

    It is the template's label column, with one of `labels`. If the template has no column with a known name for labels,
    but one for each factor of the classes, it is these columns, with the values of the class.
    """
    alone = {template.label: {label: label for label in labels}}
    columns = data.columns_of(template.path, template.rows) if template.path else {}
    factors = data.columns_of(template.path, [saved["factors"]]) if saved["factors"] else {}
    if not factors or not factors.keys() <= columns.keys() or not columns.keys().isdisjoint(data.COLUMNS["label"]):
        return alone
    values, ids = saved["factors"], zip(*saved["factor_ids"], strict=True)
    return {
        columns[name]: {label: values[factor][i] for label, i in zip(saved["labels"], of_class, strict=True)}
        for (name, factor), of_class in zip(factors.items(), ids, strict=True)
    }


def find_template(folder: Path, template: str | None) -> Path | None:
    """The template that the user named, or the first of TEMPLATES in the folder, its eval folder or its parent."""
    if template:
        if not Path(template).is_file():
            raise BadInput(f"{template} is not a file")
        return Path(template)
    files = [place / name for name in TEMPLATES for place in (folder, folder / "eval", folder.parent)]
    return next((file for file in files if file.is_file()), None)


def images_of(path: Path, root: Path, names: list[str]) -> list[str]:
    """The image file of each row of the template `path`; `names` are relative to root. Raises: see read_template."""
    images = [data.find_file(root, name) for name in names]
    missing = [name for name, image in zip(names, images, strict=True) if image is None]
    if missing:
        raise BadInput(f"{path}: rows without an image file in {root}: {len(missing)}, such as {missing[0]}")
    if len(set(images)) < len(images):
        first = next(image for i, image in enumerate(images) if image in images[:i])
        raise BadInput(f"{path}: images that are listed twice: {len(images) - len(set(images))}, such as {first}")
    found = {
        str(file)
        for folder in {Path(image).parent for image in images}
        for file in folder.iterdir()
        if file.suffix.lower() in data.IMAGE_EXTENSIONS and not file.name.startswith(".")
    }
    extra = sorted(found - set(images))
    if extra:
        raise BadInput(f"{path}: images in the same folders without a row: {len(extra)}, such as {extra[0]}")
    return images


def warn_of_labels(template: Template, labels: list[str]) -> None:
    """Warns of labels that are not in the template's column, or not in the meta.csv beside it; notes formulas.

    A template's column with one value has placeholders: it is enough if this value is one of the labels.
    """
    known: dict[str, set[str]] = {}
    if template.path:
        filled = {row[template.label].strip() for row in template.rows} - {""}
        is_placeholder = len(filled) == 1 and filled <= set(labels)
        known[f"column {template.label} of {template.path}"] = set() if is_placeholder else filled
        meta = template.path.with_name("meta.csv")
        rows = data.read_rows(meta) if meta.is_file() else []
        if rows and {"target", "class_name"} <= set(rows[0]):
            columns = [template.label] if template.label in rows[0] else ["target", "class_name"]
            known[str(meta)] = {row[column].strip() for row in rows for column in columns}
    for where, names in known.items():
        unknown = [label for label in labels if label not in names]
        if names and unknown:
            print(
                f"warning: labels of the model that are not in {where}: {len(unknown)} of {len(labels)}, such as "
                f"{unknown[0]!r}; it has {', '.join(map(repr, sorted(names)[:5]))}",
                file=sys.stderr,
            )
    formulas = [label for label in labels if re.match(r"[=+@-](?![\d.]+$)", label)]
    if formulas:
        print(
            f"note: labels that a spreadsheet takes for formulas: {len(formulas)}, such as {formulas[0]!r}; "
            "they are written as they are",
            file=sys.stderr,
        )


def checked_columns(template: Template, saved: dict[str, Any], labels: list[str]) -> dict[str, dict[str, str]]:
    """The columns to fill in, after the checks of the template."""
    check_one_column(template, saved["labels"])
    columns = columns_to_fill(template, saved, labels)
    for column, text_of in columns.items():
        texts = labels if len(columns) == 1 else list(dict.fromkeys(text_of.values()))
        warn_of_labels(replace(template, label=column), texts)
    return columns


def write(path: Path, template: Template, columns: dict[str, dict[str, str]], labels: list[str]) -> None:
    """Writes the template's rows with these labels, see columns_to_fill. The file is complete or not written at all."""
    texts = ({column: text_of[label] for column, text_of in columns.items()} for label in labels)
    filled = (row | text for row, text in zip(template.rows, texts, strict=True))
    rows = ([row[column] for column in template.columns] for row in filled)
    text = io.StringIO()
    csv.writer(text, lineterminator=template.line_end, delimiter=template.separator).writerows(
        [template.columns, *rows]
    )
    checkpoint.write_text(path, template.start + text.getvalue())


def read_answers(
    answers: str, template: Template, saved: dict[str, Any], to_fill: dict[str, dict[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) the template's rows that have a label in the CSV `answers`, and (K,) their class numbers.

    Rows are matched by the image column, or by another column of the template. If `to_fill` has a column per factor,
    `answers` can have these columns too.

    Raises: BadInput if they cannot be matched, or a label is not a class of the model.
    """
    answer_rows = data.read_rows(Path(answers))
    names = [template.image, *(name for name in template.columns if name not in (template.image, template.label))]
    key = next((name for name in names if name in answer_rows[0]), None)
    label = template.label if template.label in answer_rows[0] else list(answer_rows[0])[-1]
    if key is None or label == key:
        needed = f"it needs one of {', '.join(names)}, and a label column"
        raise BadInput(f"{answers} has the columns {', '.join(answer_rows[0])}: {needed}")
    truth = {row[key]: row[label].strip() for row in answer_rows}
    if len(to_fill) > 1:  # one column per factor
        columns = data.columns_of(Path(answers), answer_rows)
        columns = [columns.get(name) for name in data.columns_of(Path(answers), [to_fill])]
        if None not in columns:
            label = ", ".join(columns)
            label_of = {tuple(texts[name] for texts in to_fill.values()): name for name in saved["labels"]}
            values = {row[key]: tuple(row[column].strip() for column in columns) for row in answer_rows}
            truth = {name: label_of.get(texts, ", ".join(texts)) for name, texts in values.items()}
    if len(truth) < len(answer_rows) or len({row[key] for row in template.rows}) < len(template.rows):
        raise BadInput(f"{answers}: column {key} has the same value in several rows, so rows cannot be matched by it")
    classes = saved["labels"] if set(truth.values()) <= set(saved["labels"]) else saved["classes"]
    unknown = sorted(set(truth.values()) - set(classes))
    if unknown:
        known = pixels.listed([str(name) for name in classes])
        raise BadInput(f"{answers}: {unknown[0]!r} in column {label} is not a class of the model; it has:{known}")
    rows = [i for i, row in enumerate(template.rows) if row[key] in truth]
    if not rows:
        raise BadInput(f"{answers}: none of its rows is in the template (rows: {len(truth)}, matched by column {key})")
    return np.array(rows), np.array([classes.index(truth[template.rows[i][key]]) for i in rows])
