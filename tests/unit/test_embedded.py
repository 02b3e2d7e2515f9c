"""Where commands find the process that serves a data folder."""

import json
import os
from pathlib import Path

from services.embedded import SERVER_FILE, running_address
from services.kernel.sqlite import Database


def test_the_note_of_a_process_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    assert running_address(tmp_path) is None
    database = Database(tmp_path)
    note = {"grpc": "127.0.0.1:7070", "http": "", "pid": os.getpid()}
    (tmp_path / SERVER_FILE).write_text(json.dumps(note))
    assert running_address(tmp_path) == "127.0.0.1:7070"
    (tmp_path / SERVER_FILE).write_text(json.dumps(note | {"pid": os.getppid()}))  # another process has the folder now
    assert running_address(tmp_path) is None
    database.close()
    (tmp_path / SERVER_FILE).write_text(json.dumps(note))  # the process's number belongs to somebody else now
    assert running_address(tmp_path) is None
    Database(tmp_path).close()  # having looked, nobody is in the way
