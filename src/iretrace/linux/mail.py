"""Patches as the list sends them: one diff, a mail, or a mailbox of a whole series, as diffs in the order to apply.

Mail is hostile: nothing in it is obeyed, and what is told of it (subjects) is printable and short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email import errors
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesParser
from itertools import pairwise

from iretrace.verdict import InputError

MAX_SUBJECT = 72
MAX_MAILS = 2000

MAX_HEADER = 32 << 10
"""Characters of a header. None of a patch is longer, and reading one takes time that grows with its square."""

# Quantifiers are bounded or possessive wherever a hostile mail could make a search take for ever.
_ENVELOPE = re.compile(
    rb"^From \S{1,200}+ (?=[^\n]{0,60}\d\d:\d\d:\d\d [^\n]{0,60}\d{4})[^\n]*+(?:\n|\Z)", re.MULTILINE
)
"""Between the mails of a mailbox. The lines of a diff never begin so."""

_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]*:[ \t]")
_REPLY = re.compile(r"(re|aw|antw|sv|fwd?)\s*:", re.IGNORECASE)
_TAG = re.compile(r"\[([^][]*+)\]")
_PATCH = re.compile(r"\bPATCH\b", re.IGNORECASE)
_NUMBER = re.compile(r"\b(\d{1,4})/(\d{1,4})\b")
_VERSION = re.compile(r"\bv(\d{1,3})\b", re.IGNORECASE)
_DIFF = re.compile(r"^(diff --git |--- .*\n\+\+\+ )", re.MULTILINE)
_NOT_QUOTED = re.compile(r"=(?![0-9A-Fa-f]{2}|[ \t]*\n)")
"""An equals sign that quoted-printable does not allow."""

_SIGNATURE = "-- "


class NoPatch(InputError):
    """Mail without a patch: a cover letter, a reply."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail with a diff. number, total: of [PATCH number/total], 0 where it has none. version: of [PATCH v2]."""

    subject: str
    text: str
    number: int
    total: int
    version: int


def patches_in(content: bytes, name: str) -> list[tuple[str, str]]:
    """(name, text) of each patch in a file, in the order to apply; replies, covers and other mails are passed over.

    InputError: mails of a series that are missing, there twice, or of different series. NoPatch: there is none.
    """
    content = content.replace(b"\r\n", b"\n")
    if not _ENVELOPE.match(content) and not _HEADER.match(content):
        return [(name, decoded(content, "utf-8"))]
    mails = list(_mails(content, name))
    if not mails:
        raise NoPatch(f"{name}: no patch in this mail; give the output of git format-patch or diff -u")
    return [(f"{name}: {mail.subject}" if mail.subject else name, mail.text) for mail in _in_order(mails, name)]


def _mails(content: bytes, name: str) -> Iterator[Mail]:
    """The mails that hold a diff and are no replies, each message only once."""
    envelopes = list(_ENVELOPE.finditer(content)) if _ENVELOPE.match(content) else []
    if len(envelopes) > MAX_MAILS:
        raise InputError(f"{name}: more than {MAX_MAILS} mails; give one series")
    starts = [envelope.end() for envelope in envelopes] or [0]
    ends = [envelope.start() for envelope in envelopes[1:]]
    seen: set[str] = set()
    for start, end in zip(starts, [*ends, len(content)], strict=True):
        message, text = _read(content[start:end], name)
        identity = str(message.get("Message-ID", ""))
        if identity and identity in seen:
            continue
        seen.add(identity)
        subject = _subject(message)
        if _REPLY.match(subject) or not _DIFF.search(text):
            continue
        tag = next((tag for tag in _TAG.findall(subject) if _PATCH.search(tag)), "")
        number = _NUMBER.search(tag)
        version = _VERSION.search(tag)
        if number and not int(number[1]):
            continue  # a cover letter, whatever it quotes
        yield Mail(
            subject[:MAX_SUBJECT],
            text,
            int(number[1]) if number else 0,
            int(number[2]) if number else 0,
            int(version[1]) if version else 1,
        )


def _in_order(mails: Sequence[Mail], name: str) -> list[Mail]:
    """The newest version of a series by its numbers; mails without numbers as they come."""
    if any(not mail.number for mail in mails):
        return list(mails)
    newest = max(mail.version for mail in mails)
    series = sorted((mail for mail in mails if mail.version == newest), key=lambda mail: mail.number)
    totals = {mail.total for mail in series}
    if len(totals) > 1:
        raise InputError(f"{name}: mails of {len(totals)} different series; save one series, or give each as --patch")
    for before, mail in pairwise(series):
        if mail.number == before.number:
            raise InputError(f"{name}: [PATCH {mail.number}/{mail.total}] is there twice; save one series")
        if mail.number != before.number + 1:
            raise InputError(f"{name}: [PATCH {before.number + 1}/{mail.total}] is missing; save the whole series")
    return series


def _read(content: bytes, name: str) -> tuple[Message, str]:
    """A mail and its texts. InputError: one that cannot be read, such as parts within parts without end."""
    try:
        message = BytesParser().parsebytes(content)
        if any(len(header) > MAX_HEADER for part in message.walk() for header in map(str, part.values())):
            raise ValueError("a header without end")
        return message, "\n".join(_texts(message))
    except (errors.MessageError, ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{name}: a mail in it is damaged and cannot be read; give the patch as a file") from None


def _subject(message: Message) -> str:
    """The subject on one line, printable."""
    written = str(message.get("Subject", ""))
    try:
        subject = str(make_header(decode_header(written)))
    except (errors.MessageError, ValueError, LookupError, TypeError):
        subject = written
    return " ".join("".join(char if char.isprintable() else " " for char in subject).split())


def _texts(message: Message) -> Iterator[str]:
    """The plain texts of a mail, attached patches among them."""
    for part in message.walk():
        kind = part.get_content_type()
        is_patch = (part.get_filename() or "").endswith((".patch", ".diff"))
        if part.is_multipart() or (part.get_content_maintype() != "text" and not is_patch) or kind == "text/html":
            continue
        plain, content = part.get_payload(), part.get_payload(decode=True)
        if not isinstance(content, bytes) or not isinstance(plain, str):
            continue
        text = decoded(content, part.get_content_charset() or "utf-8").replace("\r\n", "\n")
        if _is_decoded_already(part, plain):
            text = plain
        if str(part.get_param("format", "")).lower() == "flowed":
            text = _unflowed(text, str(part.get_param("delsp", "")).lower() == "yes")
        yield text


def _is_decoded_already(part: Message, plain: str) -> bool:
    """Whether the body is plain text in spite of its header: b4 hands mails on like that."""
    encoding = str(part.get("Content-Transfer-Encoding", "")).strip().lower()
    if encoding == "quoted-printable":
        return _DIFF.search(plain) is not None and _NOT_QUOTED.search(plain) is not None
    return encoding == "base64" and _DIFF.search(plain) is not None


def decoded(content: bytes, charset: str) -> str:
    """Bytes as text: in this character set, else UTF-8, else Latin-1, which never fails."""
    for name in (charset, "utf-8"):
        try:
            return content.decode(name)
        except (UnicodeError, LookupError):
            continue
    return content.decode("latin-1")


def _unflowed(text: str, delete_space: bool) -> str:
    """format=flowed undone (RFC 3676): a stuffed space goes, a line that ends with a space goes on in the next."""
    parts: list[str] = []
    for line in text.split("\n"):
        line = line.removeprefix(" ")
        if line.endswith(" ") and line != _SIGNATURE:
            parts.append(line[:-1] if delete_space else line)
        else:
            parts += (line, "\n")
    return "".join(parts).removesuffix("\n")
