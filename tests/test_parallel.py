"""One process a device: the same rows as from one encoder, and no failure that hangs or hides."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from parallel_help import load_fake, load_or_fail, load_tiny, vector_of

from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.parallel import ParallelEncoder, WorkerError, split_devices
from llm2vec.registry import VARIANTS

if TYPE_CHECKING:
    from llm2vec import LLM2Vec

TEXTS = [f"{'word ' * (i % 17)}number {i % 40}" for i in range(100)]
PAIRS = [("say:", text) if i % 3 else text for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def two() -> Iterator[ParallelEncoder]:
    with ParallelEncoder(load_fake, ["cpu", "cpu"]) as encoder:
        yield encoder


# --------------------------------------------------------------------------- rows
def test_rows_come_back_in_order(two: ParallelEncoder) -> None:
    made = two.encode_poolings(PAIRS, ("mean", "eos"))
    assert set(made) == {"mean", "eos"}
    for pooling, values in made.items():
        expected = np.stack([vector_of(p, pooling) for p in PAIRS])
        np.testing.assert_array_equal(values, expected)
        assert values.dtype == np.float32


def test_each_text_goes_through_one_model_once(two: ParallelEncoder) -> None:
    before = two.counter.tokens
    two.encode_poolings(TEXTS, ("mean",))
    assert two.counter.tokens - before == sum(len(text.split()) for text in set(TEXTS))
    before = two.counter.passes
    two.encode_poolings(TEXTS, ("mean",))
    assert two.counter.passes - before > 4  # dealt out in portions, not in halves


def test_no_texts_and_one_text(two: ParallelEncoder) -> None:
    assert two.encode_poolings([], ("mean",))["mean"].shape == (0, 4)
    one = two.encode_poolings(["alone"])
    assert set(one) == set(two.poolings)
    np.testing.assert_array_equal(one["mean"], [vector_of("alone", "mean")])


def test_it_says_what_the_encoder_says(two: ParallelEncoder) -> None:
    assert (two.model.name, two.variant.name) == ("smollm2-135m", "uni")
    assert two.adapters == ("a" * 64,)
    assert (two.device, two.dtype, two.embedding_size) == ("cpu,cpu", "torch.float32", 4)


# --------------------------------------------------------------------------- failures
def test_mistakes_are_named_as_by_one_encoder_and_end_nothing(
    two: ParallelEncoder, make_encoder: Callable[..., "LLM2Vec"]
) -> None:
    one = make_encoder("bi")
    for texts, error in (("abca", TypeError), (["fine", 7], TypeError), ([("a", "b", "c")],
                         TypeError), (None, TypeError)):  # fmt: skip
        with pytest.raises(error) as expected:
            one.encode_poolings(texts)
        with pytest.raises(error, match=f"^{re.escape(str(expected.value))}$"):
            two.encode_poolings(texts, ("mean",))
    with pytest.raises(UnknownNameError, match="unknown pooling 'cls'"):
        two.encode_poolings(["dog"], ("cls",))
    assert set(two.encode_poolings(["dog"], ("eos_token",))) == {"eos"}


def test_a_pooling_that_the_encoders_lack_is_named(
    two: ParallelEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two, "poolings", ("mean", "weighted_mean"))
    with pytest.raises(SettingError, match="'eos': the tokenizer has no EOS token"):
        two.encode_poolings(["dog"], ("eos",))
    monkeypatch.setattr(two, "poolings", ("none",))
    monkeypatch.setattr(two, "variant", VARIANTS["encoder"])
    with pytest.raises(UnknownNameError, match="pooling of an encoder baseline 'mean'"):
        two.encode_poolings(["dog"], ("mean",))


@pytest.mark.parametrize(
    ("order", "error", "says"),
    [
        ("exit", WorkerError, r"process of cpu ended, exit code 3"),
        ("kill", WorkerError, r"was killed by signal 9, exit code -9 \(out of memory\?\)"),
        ("raise", RuntimeError, r"(?s)in the process of cpu:.*ValueError: a bug of its own"),
    ],
)
def test_a_failing_process_is_an_error_and_leaves_none_behind(
    order: str, error: type[Exception], says: str
) -> None:
    encoder = ParallelEncoder(load_fake, ["cpu", "cpu"])
    processes = list(encoder._processes)
    with pytest.raises(error, match=says):
        encoder.encode_poolings([*TEXTS, order], ("mean",))
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(WorkerError, match="is closed"):
        encoder.encode_poolings(TEXTS, ("mean",))


def test_a_process_that_dies_between_calls_is_an_error() -> None:
    with ParallelEncoder(load_fake, ["cpu", "cpu"]) as encoder:
        encoder.encode_poolings(TEXTS, ("mean",))
        os.kill(encoder._processes[1].pid, signal.SIGKILL)
        encoder._processes[1].join()
        with pytest.raises(WorkerError, match="killed by signal 9"):
            encoder.encode_poolings(TEXTS, ("mean",))


@pytest.mark.parametrize(
    ("device", "error", "says"),
    [
        ("cpu:1", WorkerError, "process of cpu:1: no adapter for this one"),
        ("cpu:2", RuntimeError, r"(?s)process of cpu:2:.*KeyError: 'weights'"),
        ("cpu:3", WorkerError, "process of cpu:3 was killed by signal 9"),
    ],
)
def test_a_process_that_cannot_load_is_an_error(
    device: str, error: type[Exception], says: str
) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(error, match=says):
        ParallelEncoder(load_or_fail, ["cpu:0", device])
    assert set(multiprocessing.active_children()) <= before


def test_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    """Even when it is killed."""
    code = (
        "from parallel_help import load_fake\n"
        "from llm2vec.parallel import ParallelEncoder\n"
        "if __name__ == '__main__':\n"
        "    encoder = ParallelEncoder(load_fake, ['cpu', 'cpu'])\n"
        "    print(*[p.pid for p in encoder._processes], flush=True)\n"
        "    input()\n"
    )
    script = tmp_path / "ask.py"
    script.write_text(code)
    here = Path(__file__).parent
    asking = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pids = [int(pid) for pid in asking.stdout.readline().split()]
    assert len(pids) == 2
    asking.kill()
    asking.wait()
    for _ in range(100):
        if not any(is_running(pid) for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail("a process outlives the one that asked")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --------------------------------------------------------------------------- names of devices
def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_devices(None) == split_devices("") == []
    assert split_devices("cpu") == ["cpu"]
    assert split_devices("cuda:0, cuda:2,") == ["cuda:0", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert split_devices("cuda:all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SettingError, match="sees no GPU here"):
        split_devices("cuda:all")


def test_no_device_is_a_mistake() -> None:
    with pytest.raises(SettingError, match="no device"):
        ParallelEncoder(load_fake, [])


# --------------------------------------------------------------------------- the real encoder
@pytest.mark.slow
def test_two_processes_give_the_vectors_of_one(tiny_llama_dir: Path, tmp_path: Path) -> None:
    from llm2vec import LLM2Vec
    from llm2vec.registry import POOLINGS
    from llm2vec.vectors import Vectors

    load = load_tiny(tiny_llama_dir)
    one: LLM2Vec = load(device="cpu")
    expected = one.encode_poolings(PAIRS, POOLINGS)
    with ParallelEncoder(load, ["cpu", "cpu"]) as both:
        made = both.encode_poolings(PAIRS, POOLINGS)
        assert (both.model, both.variant, both.adapters) == (one.model, one.variant, one.adapters)
        assert both.counter.tokens == one.counter.tokens > 1000
        # The same place as a single encoder's in the way to a score.
        asked = [("say:", text) for text in TEXTS]
        stored = Vectors(both, POOLINGS, tmp_path).get(asked, "mean")
    for pooling in POOLINGS:
        np.testing.assert_allclose(made[pooling], expected[pooling], atol=2e-5)
        assert made[pooling].std() > 0.1
    np.testing.assert_allclose(stored, one.encode_poolings(asked, ("mean",))["mean"], atol=2e-5)


def test_a_loader_can_be_sent_to_a_process() -> None:
    import pickle

    from llm2vec.encoder import load_encoder

    load = partial(load_encoder, "smollm2-135m", "uni", adapters="own", dtype="float32")
    assert pickle.loads(pickle.dumps(load)).args == ("smollm2-135m", "uni")  # noqa: S301
