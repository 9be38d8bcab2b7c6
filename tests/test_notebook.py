"""quickstart.ipynb runs in a real Jupyter kernel, and so do the other programs' main functions."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "quickstart.ipynb"

MORE = """
import contextlib, io, threading, compare, report
small = ["--epochs", "1", "--model", "resnet8"]
=====
scores = []
thread = threading.Thread(target=lambda: scores.append(train.main([*small, "--out", "runs/thread"])))
thread.start()
thread.join()
scores[0]["epoch"]
=====
text = io.StringIO()
with contextlib.redirect_stdout(text):
    rows = compare.main(["--vary", "loss=ce", "--seeds", "0", "--out", "runs/both", "--", *small])
[len(rows), "macro F1" in text.getvalue()]
=====
str(report.main([run["out"], "runs/thread", "--out", "two.html"]))
=====
train.main(["--loss", "focl"])
"""


def text_of(cell):
    """What a cell printed and returned, and the kinds of its outputs."""
    printed = "".join(one.get("text", "") for one in cell.outputs)
    data = {kind: content for one in cell.outputs for kind, content in one.get("data", {}).items()}
    return printed, data


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert FILE.stat().st_size < 20_000


def test_the_notebook_goes_from_the_demo_to_a_report_and_a_submission(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (tmp_path / "f1kit").symlink_to(ROOT, target_is_directory=True)
    book = nbformat.read(FILE, as_version=4)
    for cell in book.cells:
        cell.source = cell.source.replace('"--epochs", "15"', '"--epochs", "1"')
    own = [cell for cell in book.cells if cell.cell_type == "code"]
    more = [nbformat.v4.new_code_cell(source.strip()) for source in MORE.split("=====")]
    more[-1].metadata["tags"] = ["raises-exception"]
    book.cells += more
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    trained, shown, sent = (text_of(cell) for cell in own[2:])
    assert "macro F1" in trained[0] and 0 <= float(trained[1]["text/plain"]) <= 1
    assert "<iframe srcdoc=" in shown[1]["text/html"] and "Confusion" in shown[1]["text/html"]
    assert sent[0].splitlines()[-5].count(",") == 1 and (tmp_path / "submission.csv").exists()
    _, thread, redirected, page, wrong = (text_of(cell) for cell in more)
    assert thread[1]["text/plain"] == "1"
    assert redirected[1]["text/plain"] == "[1, True]" and redirected[0] == ""
    assert page[1]["text/plain"] == "'two.html'" and (tmp_path / "two.html").exists()
    assert "--loss: unknown loss 'focl'" in wrong[0]
