"""What the mirror's command refuses before it asks for anything."""

import os
import sys
from pathlib import Path

import pytest

from llm2vec.errors import LLM2VecError, SettingError
from llm2vec.mirror import (
    main,
)


@pytest.mark.parametrize("dest", ["", "  "])
def test_no_destination(dest: str) -> None:
    with pytest.raises(SettingError, match="DEST is empty"):
        main("subset", dest)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingError, match="not a folder to write to"):
        main("subset", str(tmp_path / "mirror"))


def test_a_destination_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("")
    with pytest.raises(SettingError, match="not a folder to write to"):
        main("subset", str(tmp_path / "mirror"))


def test_an_unknown_model_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(LLM2VecError, match="unknown model 'mistral'"):
        main("subset", str(tmp_path / "mirror"), model="mistral")
    assert not (tmp_path / "mirror").exists()
