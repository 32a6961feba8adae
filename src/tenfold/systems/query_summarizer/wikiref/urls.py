"""Addresses: archived copies undone, one canonical form, and what has no text to read."""

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

_ARCHIVE = re.compile(r"^https?://(?:web\.archive\.org/web|archive\.org/wayback)/\d{4,14}(?:[a-z]{2}_)?/(.+)$", re.I)
_NO_TEXT = re.compile(r"\.(?:pdf|docx?|xlsx?|pptx?|jpe?g|png|gif|svg|mp3|mp4|avi|mov|ogg|ogv|wav|zip|gz|djvu?)$", re.I)
_NO_DOMAINS = ("books.google.", "youtube.com", "youtu.be", "imdb.com", "google.com/books", "worldcat.org", "doi.org")
_TRACKING = re.compile(r"^(utm_|fbclid|gclid|ref$|sessionid|phpsessid|jsessionid)", re.I)


def without_archive(url: str) -> str:
    """The address that an archive's copy was made of; the address itself where it is no copy."""
    found = _ARCHIVE.match(url.strip())
    if not found:
        return url.strip()
    inner = found[1]
    return inner if re.match(r"https?://", inner, re.I) else f"http://{inner}"


def canonical_url(url: str) -> str | None:
    """One form for all spellings of an address: host without ``www``, no scheme, port, fragment, or tracking.

    ``https://WWW.Example.org:443/a/?b=2&a=1#x`` gives ``example.org/a?a=1&b=2``.

    Returns:
        ``None`` where it is no web address.
    """
    try:
        parts = urlsplit(without_archive(url))
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https", "") or "." not in host:
        return None
    host = re.sub(r"^www\d*\.", "", host)
    if port not in (None, 80, 443):
        host = f"{host}:{port}"
    path = re.sub(r"/+", "/", unquote(parts.path)).rstrip("/")
    path = re.sub(r"/(index|default)\.(html?|php|aspx?)$", "", path, flags=re.I)
    query = sorted((key, value) for key, value in parse_qsl(parts.query, True) if not _TRACKING.match(key))
    return host + path + (f"?{urlencode(query)}" if query else "")


def has_text(url: str) -> bool:
    """Whether a page of text can be expected behind an address."""
    canonical = canonical_url(url)
    if canonical is None:
        return False
    return not _NO_TEXT.search(canonical.partition("?")[0]) and not any(part in canonical for part in _NO_DOMAINS)
