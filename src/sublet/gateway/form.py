"""A form with a file in it (multipart/form-data), read as it comes: the file is never held whole."""

from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sublet.gateway.failures import Failure, Kind

_LONGEST_FIELD: Final = 64 * 1024
_MOST_FIELDS: Final = 32


@dataclass(slots=True)
class Form:
    """Feed it the body; take what came of the file after each piece."""

    content_type: str
    name: str = ""  # of the file
    fields: dict[str, str] = field(default_factory=dict)
    begun: bool = False  # did a file begin?
    _whole: bool = False
    _parser: MultipartParser | None = None
    _file: list[bytes] = field(default_factory=list)
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: str = ""
    _part: str | None = None  # the field that comes just now; None: it is the file
    _text: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        """Raises Failure: it is no form."""
        kind, options = parse_options_header(self.content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise _invalid("send a form: Content-Type must be multipart/form-data")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _invalid(str(error)) from None

    def feed(self, data: bytes) -> bytes:
        """Read on, and return what of the file was in it.

        Raises:
            Failure: it is no form, or has what it must not have.
        """
        assert self._parser is not None
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _invalid(f"the form cannot be read: {error}") from None
        came = b"".join(self._file)
        self._file.clear()
        return came

    def end(self) -> None:
        """Raises Failure: it ended before it was whole, or had no file in it."""
        if not self._whole:
            raise _invalid("the form breaks off")
        if not self.begun:
            raise _invalid("the form has no field 'file' with a file", param="file")

    # ── the parser's calls ───────────────────────────────────────────────────────────────

    def _on_part_begin(self) -> None:
        self._disposition = ""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise _invalid("a part of the form has no name")
        file_name = options.get(b"filename")
        if name != "file":
            if file_name is not None:
                raise _invalid(f"the form has a file in the field {name[:100]!r}: name it 'file'")
            if len(self.fields) >= _MOST_FIELDS:
                raise _invalid(f"the form has more than {_MOST_FIELDS} fields")
            self._part = name
            return
        if self.begun:
            raise _invalid("the form has two files", param="file")
        self._part, self.begun = None, True
        self.name = (file_name or b"file").decode("utf-8", "replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part is None:
            self._file.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _LONGEST_FIELD:
            raise _invalid(f"the field {self._part[:100]!r} is too long", param=self._part[:100])

    def _on_part_end(self) -> None:
        if self._part is not None:
            self.fields[self._part] = self._text.decode("utf-8", "replace")
            self._text.clear()

    def _on_end(self) -> None:
        self._whole = True


def _invalid(message: str, *, param: str | None = None) -> Failure:
    return Failure(Kind.INVALID, message, param=param)
