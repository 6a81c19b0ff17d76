"""Patches as mails: whole series, in any transfer encoding, in any order, with everything else that a thread holds."""

from __future__ import annotations

import base64
import quopri
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.linux.mail import patches_in
from iretrace.linux.patch import apply_patches
from iretrace.verdict import InputError
from tests.linux.test_patch import OLD, make_diff

ENVELOPE = "From mboxrd@z Thu Jan  1 00:00:00 1970\n"
SEVEN = OLD.replace("line 7\n", "seven = \N{LATIN SMALL LETTER E WITH ACUTE}\n")
FIRST = make_diff("a.c", OLD, SEVEN)
SECOND = make_diff("a.c", SEVEN, SEVEN.replace("line 2\n", "two\n"))


def mail(subject: str, body: str, *headers: str, encode: str = "8bit") -> bytes:
    """One mail of a mailbox."""
    content = body.encode()
    if encode == "base64":
        content = base64.encodebytes(content)
    if encode == "quoted-printable":
        content = quopri.encodestring(content)
    lines = [f"Subject: {subject}", "From: A <a@example.org>", f"Content-Transfer-Encoding: {encode}", *headers]
    return ENVELOPE.encode() + "\n".join(lines).encode() + b"\n\n" + content + b"\n"


def series(*mails: bytes) -> list[str]:
    """The names of the patches in a mailbox, without that of the file."""
    return [name.removeprefix("s.mbox").removeprefix(": ") for name, _ in patches_in(b"".join(mails), "s.mbox")]


def applied(content: bytes) -> str | None:
    return apply_patches({"a.c": OLD}.get, patches_in(content, "s.mbox"))["a.c"].text


def test_a_plain_diff_is_one_patch() -> None:
    assert patches_in(FIRST.encode(), "a.diff") == [("a.diff", FIRST)]


def test_a_plain_diff_need_not_be_utf_8() -> None:
    assert patches_in(FIRST.encode("latin-1"), "a.diff") == [("a.diff", FIRST)]


def test_a_series_is_put_in_order_and_everything_else_is_passed_over() -> None:
    cover = mail("[PATCH v2 0/2] Why", f"For example\n{FIRST}")
    reply = mail("Re: [PATCH v2 1/2] one", f"Rather so:\n{SECOND}")
    chatter = mail("[GIT PULL] something", "No diff.\n")
    second, first = mail("[PATCH v2 2/2] two", SECOND), mail("[PATCH v2 1/2] one", FIRST)
    old = mail("[PATCH 1/3] older", FIRST)
    mailbox = cover + second + reply + old + chatter + first
    assert series(mailbox) == ["[PATCH v2 1/2] one", "[PATCH v2 2/2] two"]
    assert applied(mailbox) == SEVEN.replace("line 2\n", "two\n")


def test_a_mail_without_envelope_is_a_mail() -> None:
    content = mail("[PATCH] x", FIRST).removeprefix(ENVELOPE.encode())
    assert series(content) == ["[PATCH] x"]
    assert applied(content) == SEVEN


def test_an_envelope_within_a_mail_that_has_none_is_its_text() -> None:
    """b4 hands single mails on without an envelope."""
    content = mail("[PATCH] x", f"Seen in\n{ENVELOPE}\n{FIRST}").removeprefix(ENVELOPE.encode())
    assert series(content) == ["[PATCH] x"]


@pytest.mark.parametrize("encode", ["8bit", "base64", "quoted-printable"])
def test_transfer_encodings_are_undone(encode: str) -> None:
    assert applied(mail("[PATCH] x", FIRST, "Content-Type: text/plain; charset=utf-8", encode=encode)) == SEVEN


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_a_body_that_is_decoded_in_spite_of_its_header_is_read(encoding: str) -> None:
    """b4 hands mails to its checks like that."""
    content = f"Subject: [PATCH] x\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: {encoding}\n\n"
    assert applied((content + FIRST).encode()) == SEVEN


def test_other_character_sets_and_line_ends_are_undone() -> None:
    body = FIRST.replace("\n", "\r\n").encode("latin-1")
    head = b"Subject: [PATCH] x\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\n"
    assert applied(head + body) == SEVEN


def test_an_unknown_character_set_is_no_error() -> None:
    assert applied(mail("[PATCH] x", FIRST, "Content-Type: text/plain; charset=klingon")) == SEVEN


def test_flowed_text_is_unstuffed_and_joined() -> None:
    flowed = "".join(f" {line}" if line.startswith((" ", ">", "From ")) else line for line in FIRST.splitlines(True))
    flowed = "A long \nparagraph.\n" + flowed.replace("+seven = ", "+seven \n= ") + "-- \n2.39\n"
    assert applied(mail("[PATCH] x", flowed, "Content-Type: text/plain; charset=utf-8; format=flowed")) == SEVEN


def test_an_attached_patch_is_found() -> None:
    parts = (
        "--b\nContent-Type: text/plain\n\nSee below.\n--b\nContent-Type: text/html\n\n<p>no</p>\n"
        f'--b\nContent-Type: application/octet-stream; name="x.patch"\n\n{FIRST}\n--b--\n'
    )
    assert applied(mail("[PATCH] x", parts, "Content-Type: multipart/mixed; boundary=b")) == SEVEN


def test_the_same_message_twice_is_one() -> None:
    one = mail("[PATCH 1/2] one", FIRST, "Message-ID: <1@x>")
    assert series(one, mail("[PATCH 2/2] two", SECOND), one) == ["[PATCH 1/2] one", "[PATCH 2/2] two"]


def test_some_patches_of_a_series_may_be_given_alone() -> None:
    assert series(mail("[PATCH 3/4] three", FIRST)) == ["[PATCH 3/4] three"]


@pytest.mark.parametrize(
    ("subjects", "complaint"),
    [
        (["[PATCH 1/3] a", "[PATCH 3/3] c"], r"\[PATCH 2/3\] is missing"),
        (["[PATCH 1/2] a", "[PATCH 1/2] b"], r"\[PATCH 1/2\] is there twice"),
        (["[PATCH 1/2] a", "[PATCH 2/3] b"], "mails of 2 different series"),
        (["Re: [PATCH] a"], "no patch in this mail"),
    ],
)
def test_what_is_no_series_is_refused_in_one_line(subjects: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        series(*[mail(subject, FIRST) for subject in subjects])
    assert "\n" not in str(caught.value)


def test_a_subject_is_printable_and_short() -> None:
    (name,) = series(mail("=?utf-8?q?=5BPATCH=5D_a=1B=5B2J=0Ab=E2=80=AE?= " + "x" * 200, FIRST))
    assert name.startswith("[PATCH] a [2J b ")
    assert name.isprintable()
    assert len(name) <= 72


@pytest.mark.parametrize(
    "content",
    [
        b"From x " + b"00:00:00 0000 " * 100_000,
        b"From: a\nSubject: " + b"[PATCH " * 200_000 + b"\n\ndiff --git a/x b/x\n",
        b"From: a\nSubject: " + b"[PATCH " * 4_000 + b"\n\ndiff --git a/x b/x\n",
        b"From: a\nSubject: " + b"=?a?q?" * 200_000 + b"\n\ndiff --git a/x b/x\n",
        b"From: a\nContent-Type: text/plain" + b'; a="b\\' * 200_000 + b"\n\ndiff --git a/x b/x\n",
        b"From: a\nContent-Type: text/plain; format=flowed\n\ndiff --git a/x b/x\n" + b"  \n" * 500_000,
    ],
    ids=["envelope", "tags", "some tags", "encoded words", "parameters", "flowed lines"],
)
def test_no_mail_takes_time_that_grows_with_the_square_of_its_size(content: bytes) -> None:
    began = time.process_time()
    with suppress(InputError):
        patches_in(content, "x")
    assert time.process_time() - began < 5


def test_parts_within_parts_without_end_are_refused() -> None:
    parts = "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(3000))
    with pytest.raises(InputError, match="a mail in it is damaged"):
        patches_in(f"Subject: [PATCH] x\n{parts}".encode(), "x")


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_any_bytes_are_patches_or_refused(content: bytes) -> None:
    for start in (b"", b"Subject: ", ENVELOPE.encode(), b"Subject: [PATCH]\nContent-Type: "):
        with suppress(InputError):
            assert all(name.isprintable() for name, _ in patches_in(start + content, "x"))
