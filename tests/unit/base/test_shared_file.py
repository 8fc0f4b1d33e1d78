"""Whether two nodes see the same folder, with folders in the place of nodes."""

from __future__ import annotations

import os
import pickle
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from medr1_ray.base.shared_file import SharedFile


def test_a_mark_is_seen_where_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mark = SharedFile.mark("run.dir", folder, folder / "logs" / ".driver")
    assert (mark.key, mark.folder, mark.node) == ("run.dir", folder, socket.gethostname())
    pickle.loads(pickle.dumps(mark)).require()


def test_a_folder_that_is_empty_on_another_node_is_named_with_both_nodes_and_what_to_do(tmp_path: Path) -> None:
    mark = replace(SharedFile.mark("run.dir", tmp_path, tmp_path / ".driver"), node="head")
    mark.path.unlink()
    expected = (
        f"run.dir='{tmp_path}' is not the same folder on all nodes: node {socket.gethostname()} does not see "
        f"{tmp_path}/.driver of node head (No such file or directory); mount the same file system there on every node, "
        "or give a run.dir in a folder that all nodes share"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        mark.require()


def test_a_folder_of_the_same_name_is_not_the_same_folder(tmp_path: Path) -> None:
    ours = SharedFile.mark("run.dir", tmp_path, tmp_path / ".driver")
    SharedFile.mark("run.dir", tmp_path, tmp_path / ".driver")  # as another node's driver would
    with pytest.raises(ValueError, match=r"\(with other content\)"):
        ours.require()


def test_a_file_with_the_same_content_is_as_good(tmp_path: Path) -> None:
    model = tmp_path / "model" / "config.json"
    model.parent.mkdir()
    model.write_text("{}")
    file = SharedFile.of("model.path", model.parent, model)
    model.unlink()
    model.write_text("{}")
    file.require()
    model.write_text('{"hidden_size": 1}')
    with pytest.raises(ValueError, match=r"^model\.path='.*' is not the same folder .* give a model\.path in a folder"):
        file.require()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(ValueError, match=rf"^run\.dir='{tmp_path}' cannot be written on node [^ ]+ \("):
        SharedFile.mark("run.dir", tmp_path, tmp_path / "logs" / ".driver")


def test_a_relative_path_is_shown_as_this_process_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mark = SharedFile.mark("model.path", Path("model"), Path("model/config.json"))
    os.remove("model/config.json")
    with pytest.raises(ValueError, match=rf"does not see {tmp_path}/model/config\.json of node"):
        mark.require()
