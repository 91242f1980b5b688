import tarfile
import tracemalloc

import numpy as np
import pytest

from mot.prepare import readers
from mot.prepare.raw import Part
from tests.support.files import good, read, tar, write


def special(name, kind, link="x") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_webdataset(tmp_path):
    folder = special("shard", tarfile.DIRTYPE)
    one = tar(
        tmp_path / "in" / "a.tar",
        folder,
        ("./shard/0001.jpg", b"jpeg"),
        ("./shard/0001.txt", b"a cat"),
        ("./shard/0001.cls", b"3"),
        ("shard/._0002.jpg", b"resource fork"),
        ("README", b"not a sample"),
        ("shard/0002.seg.png", b"mask"),
        ("shard/0002.PNG", b"png"),
        ("shard/0002.json", b'{"caption": "a dog", "text": null, "image": "http://x", "split": "val", "n": 7}'),
    )
    tar(
        tmp_path / "in" / "b.tar.gz",
        ("0.npy", b"floats"),
        ("0.flac", b"flac"),
        ("0.action.npy", b"path"),
        ("0.text", b"heard"),
        mode="w:gz",
    )
    found = read(tmp_path / "in")
    assert [(r.id, r.held_out) for r in found] == [
        ("a.tar:shard/0001", None),
        ("a.tar:shard/0002", True),
        ("b.tar.gz:0", None),
    ]
    assert good(tmp_path / "in") == [
        [("text", "a cat"), ("image", b"jpeg")],
        [("text", "a dog"), ("image", b"png")],
        [("text", "heard"), ("audio", b"flac"), ("action", b"path"), ("latents", b"floats")],
    ]
    first, second = read(one, content=["image:jpg|text:class {cls}", "image:seg.png|text:{caption} {n}"])
    assert first.parts == (Part("image", b"jpeg"), Part("text", "class 3"))
    assert second.parts == (Part("image", b"mask"), Part("text", "a dog 7"))


def test_hostile_and_broken_members_make_their_sample_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_MEMBER", 50_000)
    monkeypatch.setattr(readers, "MAX_SAMPLE", 80_000)
    before = sorted(tmp_path.parent.rglob("*"))
    sparse = special("u.txt", tarfile.REGTYPE)
    sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "4000"}  # 4,000 zeros from no byte
    cases = [
        ([("../evil.txt", b"x")], "leaves the archive"),
        ([("b/../../evil.txt", b"x")], "leaves the archive"),
        ([("c\\..\\evil.txt", b"x")], "leaves the archive"),
        ([("/etc/evil.txt", b"x")], "leaves the archive"),
        ([("d.txt", b"x"), special("d.jpg", tarfile.SYMTYPE, "/etc/passwd")], "a link, device"),
        ([special("e.jpg", tarfile.LNKTYPE, "good0.txt"), ("e.txt", b"x")], "a link, device"),
        ([special("f.jpg", tarfile.CHRTYPE), ("f.txt", b"x")], "a link, device"),
        ([special("g.jpg", tarfile.FIFOTYPE), ("g.txt", b"x")], "a link, device"),
        ([("h.txt", b"x"), ("h.pkl", b"\x80\x04K\x01.")], "a pickle"),
        ([("i.meta.PICKLE", b"x"), ("i.txt", b"x")], "a pickle"),
        ([("j.pyd", b"x"), ("j.txt", b"x")], "a pickle"),
        ([("k.txt", b"x"), ("k.jpg", bytes(50_001))], "50001 bytes; at most 50000"),
        (
            [("l.txt", b"x"), ("l.jpg", bytes(45_000)), ("l.png", bytes(45_000))],
            "90001 bytes in one sample; at most 80000",
        ),
        ([("m.txt", b"x"), ("m.txt", b"y")], "two members 'm.txt'"),
        ([("n.txt", b"\xff"), ("n.jpg", b"x")], "text is not UTF-8"),
        ([("o.json", b"{"), ("o.jpg", b"x")], "not JSON"),
        ([("p.json", b"[" * 40_000), ("p.jpg", b"x")], "nested too deeply"),
        ([("q.json", b"[1]"), ("q.jpg", b"x")], "an object is needed"),
        ([("r.jpg", b"x")], "no text among jpg, image"),
        ([("s.cls", b"x")], "no text among its members"),
        ([("t.txt", b"")], "an empty document"),
        ([sparse], "a link, device"),
        ([("good0.jpg", b"x")], "came before"),
    ]
    members = [m for i, (case, _) in enumerate(cases) for m in ((f"good{i}.txt", b"good"), *case)]
    archive = tar(tmp_path / "a.tar", *members)
    found = read(archive)
    assert [r.bad == "" for r in found] == [True, False] * len(cases)
    assert len({r.id for r in found}) == len(found)
    for r, (_, expected) in zip(found[1::2], cases, strict=True):
        assert expected in r.bad
        assert r.id.startswith("a.tar:")
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, archive])  # nothing was extracted


def test_an_archive_of_many_members_stays_small_in_memory(tmp_path):
    members = [(f"{i}.{suffix}", b"words") for i in range(3000) for suffix in ("cls", "txt")]
    archive = tar(tmp_path / "a.tar", *members)
    tracemalloc.start()
    assert sum(not r.bad for r in readers.read([archive])) == 3000
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_truncated_archive_ends_in_one_bad_document(tmp_path, name):
    rng = np.random.default_rng(0)
    members = [(f"{i:03}.{ext}", rng.bytes(900)) for i in range(9) for ext in ("jpg", "png")]
    members = [m for i in range(9) for m in (*members[2 * i : 2 * i + 2], (f"{i:03}.txt", b"words"))]
    data = tar(tmp_path / "whole.tar", *members, mode="w:gz" if name.endswith("gz") else "w").read_bytes()
    whole = [(r.id.partition(":")[2], r.parts) for r in read(write(tmp_path / name, data))]
    assert len(whole) == 9
    counts = set()
    for end in [0, 1, 100, 511, 512, *range(700, len(data) - (9 if name.endswith("gz") else 10240), 977)]:
        *found, last = read(write(tmp_path / name, data[:end]))
        assert [(r.id.partition(":")[2], r.parts) for r in found] == whole[: len(found)]
        assert (last.id, last.parts) == (name, ())
        assert f"the rest of the archive, after {len(found)} samples, cannot be read" in last.bad
        counts.add(len(found))
    assert len(counts) > 4
    tar_zeros = data if name.endswith("gz") else data[: data.rindex(b"words") + 512]
    if not name.endswith("gz"):  # cut between two members, which tarfile takes for the end
        *_, last = read(write(tmp_path / name, tar_zeros))
        assert "damaged or cut off" in last.bad


def test_headers_that_claim_gigabytes_are_not_believed(tmp_path):
    def header(kind, size: bytes):
        info = special("x", kind)
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[124:136] = size
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    negative = b"\xff" * 11 + b"\x00"
    good_member = tar(tmp_path / "good.tar", ("a.txt", b"words")).read_bytes()[:1024]
    huge = b"%011o\0" % (2**32)
    for kind, size in (
        (tarfile.GNUTYPE_LONGNAME, huge),
        (tarfile.XHDTYPE, huge),
        (tarfile.XHDTYPE, negative),
        (tarfile.REGTYPE, negative),
        (tarfile.GNUTYPE_LONGNAME, negative),
    ):
        file = write(tmp_path / "bad.tar", good_member + header(kind, size) + bytes(2048))
        with open(file, "r+b") as f:
            f.truncate(2**33)
        *_, last = read(file)
        assert last.id == "bad.tar"
        assert last.bad
