"""Text that BigQuery takes, made of any value without raising."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """``text`` with each lone surrogate replaced by U+FFFD: UTF-8 and BigQuery know none."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_name(field: str, value: object) -> str:
    """Return ``value`` as a field that must be a non-empty string; raises ValueError."""
    if value is None:
        msg = f"{field} is missing: it must be a non-empty string"
        raise ValueError(msg)
    if not isinstance(value, str) or not value:
        found = "an empty string" if isinstance(value, str) else type(value).__name__
        msg = f"{field} must be a non-empty string, not {found}"
        raise ValueError(msg)
    return well_formed(str.__str__(value))


def as_text(value: object) -> str:
    """Return ``value`` as the text of an optional field; never raises."""
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, str):
        return well_formed(str.__str__(value))
    try:
        return well_formed(str(value))
    except Exception:  # noqa: BLE001  a broken __str__ must not cost the event
        return object.__repr__(value)


def as_repr(value: object) -> str:
    """Return the ``repr`` of ``value``, or its type and address if that fails; never raises."""
    try:
        return well_formed(str.__str__(repr(value)))
    except Exception:  # noqa: BLE001  a broken __repr__ must not cost the event
        return well_formed(object.__repr__(value))


def as_digits(number: int) -> str:
    """Return the digits of ``number``; in hexadecimal if Python refuses to print that many."""
    try:
        return str(number)
    except ValueError:  # more digits than sys.set_int_max_str_digits allows
        return hex(number)
