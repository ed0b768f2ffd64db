"""WebSocket extensions: what a client offers, and what is answered (RFC 6455 section 9).

The one extension is permessage-deflate (RFC 7692). Its parameters are negotiated once for a
connection, by wsproto; the compressing itself is compiled.
"""

from __future__ import annotations

import re

from wsproto.extensions import PerMessageDeflate

__all__ = ["negotiate_deflate"]

NAME = PerMessageDeflate.name

# RFC 7692 section 7.1: a parameter that is unknown, given twice, or has a value that it may not
# have makes an offer one that must be declined. Below 9 zlib has no raw window.
_BITS = r'(?:[89]|1[0-5]|"(?:[89]|1[0-5])")'
_PARAMETERS = {
    "server_no_context_takeover": re.compile(""),
    "client_no_context_takeover": re.compile(""),
    "server_max_window_bits": re.compile(f"={_BITS}"),
    "client_max_window_bits": re.compile(f"(?:={_BITS})?"),
}


def negotiate_deflate(offers: str, context_takeover: bool) -> tuple[str, int, bool, bool] | None:
    """The first acceptable offer in a Sec-WebSocket-Extensions field; None if there is none.

    `context_takeover`: whether messages may refer to those before, if the client wants it too.
    Returns the field's value in the response, the window bits of what the server compresses,
    and whether the server's and the client's messages refer to those before."""
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name != NAME or not _is_sound(parameters):
            continue
        deflate = PerMessageDeflate(
            client_no_context_takeover=not context_takeover,
            server_no_context_takeover=not context_takeover,
        )
        accepted = deflate.accept(offer.replace('"', ""))
        if not isinstance(accepted, str):
            continue
        return (
            "; ".join([NAME, *filter(None, [accepted])]),
            deflate.server_max_window_bits,
            not deflate.server_no_context_takeover,
            not deflate.client_no_context_takeover,
        )
    return None


def _is_sound(parameters: list[str]) -> bool:
    names = set()
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        name, value = name.rstrip(), equals + value.lstrip()
        pattern = _PARAMETERS.get(name)
        if pattern is None or name in names or not pattern.fullmatch(value):
            return False
        names.add(name)
    return True
