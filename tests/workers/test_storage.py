"""Storage: the same files on this machine and on S3, whole or not at all; what is wrong with it is one sentence."""

import pickle
import stat

import pytest
from sampa.workers import storage as module
from sampa.workers.storage import Storage, StorageError, address, insistently

NOBODY = "s3://bucket/run?endpoint_override=http://127.0.0.1:1&region=us-east-1"


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    """The directory of a run, which nobody has made yet."""
    if request.param == "local":
        return Storage.at(tmp_path / "jobs") / "run"
    server, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    return Storage.at(server.address(f"{bucket}/jobs")) / "run"


class TestEvery:
    """What holds wherever the files lie."""

    def test_what_is_written_is_read(self, storage):
        storage.write("a", b"one")
        assert storage.read("a") == b"one"
        storage.write("a", b"another")
        assert (storage.read("a"), storage.names()) == (b"another", ["a"])
        assert storage.info("a").size == 7
        with storage.reading("a") as file:
            file.seek(2)
            assert file.read(3) == b"oth"

    def test_a_file_of_many_pieces(self, storage):
        content = bytes(range(256)) * (80 << 10)
        with storage.writing("large", durable=True) as file:
            for start in range(0, len(content), 7 << 20):
                file.write(content[start : start + (7 << 20)])
        assert storage.read("large") == content

    def test_what_is_not_there(self, storage):
        assert storage.names() == []
        for ask in (storage.info, storage.read):
            with pytest.raises(FileNotFoundError):
                ask("a")
        storage.remove("a")

    def test_names_are_those_of_its_files_alone(self, storage):
        storage.write("a", b"")
        (storage / "below").write("b", b"")
        (storage / "below").write("c", b"")
        (storage / "below").remove("c")
        assert (storage.names(), (storage / "below").names()) == (["a"], ["b"])

    def test_a_write_that_fails_leaves_nothing(self, storage):
        with pytest.raises(ZeroDivisionError), storage.writing("a") as file:
            file.write(b"half" * (3 << 20))
            raise ZeroDivisionError
        assert storage.names() == []

    def test_it_can_be_sent_and_says_where_it_is(self, storage):
        storage.write("a", b"one")
        sent = pickle.loads(pickle.dumps(storage))
        assert sent.read("a") == b"one"
        assert str(sent) == str(storage)
        assert str(storage).endswith("/jobs/run")
        assert (storage.name, storage.parent) == ("run", storage.directory.removesuffix("/run"))

    def test_a_check_leaves_nothing(self, storage):
        storage.check()
        assert storage.names() == []


def test_a_failed_write_keeps_the_file_of_before_on_this_machine(tmp_path):
    storage = Storage.at(tmp_path)
    storage.write("a", b"before")
    with pytest.raises(ZeroDivisionError), storage.writing("a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert storage.read("a") == b"before"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask(tmp_path)


def umask(folder):
    """Return the bits that new files don't get."""
    (folder / "plain").write_text("")
    return ~stat.S_IMODE((folder / "plain").stat().st_mode) & 0o777


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert address("~/x") == address("x") == address(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert address("file:///with%20space") == "/with space"
    assert Storage.at("file:///tmp") == Storage("/tmp")
    assert address("s3://bucket/prefix?region=eu-central-1") == "s3://bucket/prefix?region=eu-central-1"


@pytest.mark.parametrize(
    ("wrong", "because"),
    [
        ("s3:///prefix", "is no path and no address as s3://bucket/prefix"),
        ("ftp://host/prefix", "is no path and no address as s3://bucket/prefix"),
        ("s3://key:secret@bucket/prefix", "must not hold its keys.*AWS_ACCESS_KEY_ID"),
        ("s3://bucket?endpoint=x", "Unexpected query parameter in S3 URI: 'endpoint'"),
    ],
)
def test_wrong_addresses(wrong, because):
    with pytest.raises(ValueError, match=because) as caught:
        address(wrong)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("ask", ["write", "read", "info", "names", "check"])
def test_a_bucket_that_is_missing_is_said(s3, ask):
    storage = Storage.at(s3.address("nobody-has-made-it/jobs"))
    arguments = {"write": ("a", b""), "read": ("a",), "info": ("a",)}.get(ask, ())
    with pytest.raises(StorageError, match=r"s3://nobody-has-made-it/jobs.*; make the bucket, or name another one"):
        getattr(storage, ask)(*arguments)


def test_keys_that_are_refused_are_said(s3, bucket):
    storage = Storage.at(s3.address(f"{bucket}/jobs"))
    storage.write("a", b"")
    s3.ask_for_keys(known=False)
    try:
        for ask in (lambda: storage.write("b", b""), lambda: storage.info("a"), lambda: storage.read("a")):
            with pytest.raises(StorageError, match=r"see whether AWS_ACCESS_KEY_ID and .* or the pod's role may"):
                ask()
        with pytest.raises(StorageError):
            storage.names()
    finally:
        s3.ask_for_keys(known=True)


def test_a_storage_that_is_away_is_said_soon(s3):
    storage = Storage.at(NOBODY)
    with pytest.raises(StorageError) as caught:
        storage.info("a")
    said = str(caught.value)
    assert said.startswith("can't look at a in s3://bucket/run: ")
    assert "Could not connect" in said
    assert said.endswith(
        "see whether it answers, and whether AWS_ENDPOINT_URL or endpoint_override in SAMPA_STORAGE is right"
    )
    assert "\n" not in said
    assert str(pickle.loads(pickle.dumps(caught.value))) == said


def test_the_endpoint_may_be_given_by_the_environment(s3, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    module._opened.cache_clear()
    storage = Storage.at(f"s3://{bucket}/jobs/")
    storage.write("a", b"one")
    assert Storage.at(s3.address(f"{bucket}/jobs")).read("a") == b"one"
    module._opened.cache_clear()


def test_what_is_away_is_tried_again_until_the_deadline(monkeypatch, capsys):
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    tries = []

    def at_the_third():
        tries.append(1)
        if len(tries) < 3:
            raise StorageError("can't write it")
        return "written"

    assert insistently(at_the_third, 30.0) == "written"
    assert capsys.readouterr().err == "can't write it. It is tried again for 30 s\n"
    tries.clear()
    with pytest.raises(StorageError):
        insistently(at_the_third, 0.0)
    assert len(tries) == 1
