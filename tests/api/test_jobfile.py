"""What is wrong with a job file is said with the file and the line, in the server's words."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml
from sampa.api.jobfile import JobFileError, read_job

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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def complaint(file: Path, text: str) -> str:
    """Return what is said about a file with this text, from the line number on."""
    file.write_text(text)
    with pytest.raises(JobFileError) as caught:
        read_job(file)
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
