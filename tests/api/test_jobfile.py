"""What is wrong with a job file is said with the file and the line, in the server's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from sampa.api.jobfile import JobFileError, read_job, read_sweep

from .conftest import SPEC

GOOD = """\
name: digits-sampa
task:
  entrypoint: digits
  params: {label_noise: 0.4}
method: {name: sampa, rho: 0.1, lambda: 0.2}
optimizer:
  name: sgd
  lr: 5e-2
epochs: 1
batch_size: 64
"""


SWEEP_FILE = """\
name: rho
base:
  task: {entrypoint: digits}
  method: {name: sampa}
  optimizer: {name: sgd, lr: 0.05}
  epochs: 1
  batch_size: 64
space:
  method.rho:
    loguniform: [1e-2, 0.5]
  optimizer.lr: {choice: [0.05, 0.1]}
trials: 16
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def complaint(file: Path, text: str, read: Callable[[Path], object] = read_job) -> str:
    """Return what is said about a file with this text, from the line number on."""
    file.write_text(text)
    with pytest.raises(JobFileError) as caught:
        read(file)
    return str(caught.value).removeprefix(f"{file}:")


def test_a_job_file_is_read(file: Path) -> None:
    file.write_text(GOOD)
    spec = read_job(file)
    assert spec.model_dump(mode="json", by_alias=True, exclude_unset=True) == SPEC


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        ("rho: -1", "rho: 0.1", "5: method.rho must be at least 0, but is -1"),
        ("bach_size: 64", "batch_size: 64", "10: bach_size is not a known field; did you mean batch_size?"),
        ("lr: fast", "lr: 5e-2", '8: optimizer.lr must be a valid number, but is "fast"'),
        ("label_noize: 0.4", "label_noise: 0.4", "4: task.params.label_noize is not a known field; did you mean"),
        ("batch_size: 2000", "batch_size: 64", "10: digits has 1024 training rows, fewer than one batch of 2000"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(file: Path, wrong: str, right: str, sentence: str) -> None:
    assert any(
        line.removeprefix(f"{file}:").startswith(sentence)
        for line in complaint(file, GOOD.replace(right, wrong)).split("\n")
    )


def test_the_command_line_and_the_server_say_the_same(file: Path, http: httpx.Client) -> None:
    text = GOOD.replace("rho: 0.1", "rho: -1")
    answer = http.post("/v1/jobs", json=yaml.safe_load(text)).json()
    assert complaint(file, text) == f"5: {answer['detail'].removesuffix('.')}"


def test_a_field_given_twice_is_refused(file: Path) -> None:
    assert complaint(file, GOOD + "epochs: 2\n") == "11: epochs is given twice; remove one"


def test_broken_yaml_is_refused_with_its_line(file: Path) -> None:
    assert complaint(file, "name: a\n  b: [\n").startswith("2: this is no YAML: ")


def test_yaml_that_makes_objects_is_refused(file: Path) -> None:
    assert "no YAML" in complaint(file, "name: !!python/object/apply:os.getcwd []\n")


@pytest.mark.parametrize(
    ("text", "words"), [("", "1: the job file is empty"), ("- a\n", "1: the job must be an object")]
)
def test_a_file_without_a_job_is_refused(file: Path, text: str, words: str) -> None:
    assert complaint(file, text).startswith(words)


def test_a_missing_file_is_one_sentence(file: Path) -> None:
    with pytest.raises(JobFileError, match="the job file can't be read: No such file or directory"):
        read_job(file)


def test_a_file_that_is_no_text_is_one_sentence(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobFileError, match="not UTF-8"):
        read_job(file)


def test_a_sweep_file_is_read(file: Path) -> None:
    file.write_text(SWEEP_FILE)
    spec = read_sweep(file)
    assert (spec.space["method.rho"].loguniform, spec.trials) == ((0.01, 0.5), 16)


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        ("loguniform: [0, 0.5]", "loguniform: [1e-2, 0.5]", "9: space.method.rho: loguniform starts at 0"),
        ("optimizer.lt:", "optimizer.lr:", "11: "),
        ("batch_size: 0", "batch_size: 64", "7: base.batch_size must be at least 1, but is 0"),
        ("trails: 16", "trials: 16", "12: trails is not a known field; did you mean trials?"),
        ("choice: [0.05, 0.05]", "choice: [0.05, 0.1]", "11: space.optimizer.lr: choice has 0.05 twice"),
    ],
)
def test_a_wrong_field_of_a_sweep_is_named_with_its_line(file: Path, wrong: str, right: str, sentence: str) -> None:
    said = complaint(file, SWEEP_FILE.replace(right, wrong), read_sweep).split("\n")
    assert any(line.removeprefix(f"{file}:").startswith(sentence) for line in said), said


def test_the_command_line_and_the_server_say_the_same_of_a_sweep(file: Path, http: httpx.Client) -> None:
    text = SWEEP_FILE.replace("[1e-2, 0.5]", "[0.5, 0.1]")
    answer = http.post("/v1/sweeps", json=yaml.safe_load(text)).json()
    assert complaint(file, text, read_sweep) == f"9: {answer['detail'].removesuffix('.')}"


@pytest.mark.parametrize(
    ("text", "words"), [("", "1: the sweep file is empty"), ("- a\n", "1: the sweep must be an object")]
)
def test_a_file_without_a_sweep_is_refused(file: Path, text: str, words: str) -> None:
    assert complaint(file, text, read_sweep).startswith(words)


def test_a_missing_sweep_file_is_one_sentence_without_a_word_of_presets(file: Path) -> None:
    with pytest.raises(JobFileError, match=r"the sweep file can't be read: No such file or directory$"):
        read_sweep(file)
