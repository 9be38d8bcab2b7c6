"""checkpoint.py: whole or not at all, plain contents, nothing executed on loading."""

import os
import pickle

import numpy as np
import pytest
import torch

import checkpoint


def test_what_is_saved_comes_back(tmp_path):
    state = {"model": {"w": torch.arange(3.0)}, "classes": ["a", "나"], "epoch": 3, "f1": 0.5, "none": None, "ok": True}
    checkpoint.save(tmp_path / "x.pt", state)
    loaded = checkpoint.load(tmp_path / "x.pt")
    assert torch.equal(loaded.pop("model")["w"], state.pop("model")["w"]) and loaded == state
    torch.load(tmp_path / "x.pt", weights_only=True)  # for anyone, without this module


@pytest.mark.parametrize("value", [np.float64(0.5), np.int64(1), torch.nn.Linear(1, 1), {1, 2}, object()])
def test_E3_what_weights_only_would_refuse_is_refused_when_saving(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\['scores'\]\['f1'\] is a"):
        checkpoint.save(tmp_path / "x.pt", {"scores": {"f1": value}})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "x.pt", {"epoch": 1})

    def torn(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "x.pt", {"epoch": 2})
    assert checkpoint.load(tmp_path / "x.pt") == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    checkpoint.save(tmp_path / "x.pt", {})
    assert calls == ["fsync", "replace", "fsync"]


def test_text_is_written_whole(tmp_path):
    checkpoint.write_text(tmp_path / "config.json", "마스크")
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == "마스크"


class Boom:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a checkpoint", pickle.dumps(Boom())])
def test_a_file_that_is_no_checkpoint_is_one_clear_error_and_nothing_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match="x.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path / "x.pt")
    torch.save({"model": Boom()}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match="y.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path / "y.pt")
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_and_a_bare_tensor_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        checkpoint.load(tmp_path / "nowhere.pt")
    torch.save(torch.zeros(1), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds a Tensor, not a dict"):
        checkpoint.load(tmp_path / "x.pt")
