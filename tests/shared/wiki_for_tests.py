"""A dump and the pages that it cites, written by the tests: 20 articles, 40 pages, every trap of wikitext."""

import bz2
import io
from xml.sax.saxutils import escape

WORDS = ["harbour", "bridge", "tower", "market", "library", "museum", "railway", "garden", "castle", "canal"]


def fact(number):
    """A statement of about twelve words; no two are alike."""
    word = WORDS[number % 10]
    return f"The {word} number {number} was opened by engineer Smith{number} during the summer of {1700 + number}"


def page_text(number, english=True):
    """A cited page that supports fact ``number``: seven sentences, 60 words or so."""
    if not english:
        return "Dies ist eine Seite ueber eine Stadt. " * 12
    filler = [
        f"People who come to town {number} in that season say that the food is good and cheap.",
        f"There was rain for most of the week and nobody in house {number} could go out.",
        f"Some of the old photographs of street {number} are kept in the town hall.",
        "All of them were taken by one man who lived near the river.",
        "He gave them to the town when he was old and could not work.",
        "They can be seen on every day but Monday.",
    ]
    return f"{filler[0]} {filler[1]} {fact(number)}. " + " ".join(filler[2:])


def html(text):
    paragraphs = "".join(f"<p>{part}.</p>" for part in text.rstrip(".").split(". "))
    return f"<html><body><nav>Home About</nav><main><h1>News</h1>{paragraphs}</main></body></html>"


def articles():
    """Wikitext of 20 articles by title. Article n cites pages 2n and 2n+1, the first ones in tricky ways."""
    texts = {}
    for number in range(20):
        a, b = 2 * number, 2 * number + 1
        texts[f"Town {number}"] = (
            f"'Town {number}' is a town.\n\n== History ==\n"
            f"{fact(a)}.<ref>{{{{cite web|url=http://example.org/page/{a}|title=x}}}}</ref>\n"
            f"\n=== Early years ===\n{fact(b)}.<ref>[http://example.org/page/{b} link]</ref>\n"
            "\n== References ==\n{{reflist}}\n"
        )
    texts["Town 0"] = (  # before the stop; named and used before it is defined; list-defined; archived
        "{{Infobox town|name=Town 0|note=It is big.<ref>http://example.org/none</ref>}}\n"
        f"== History ==\n{fact(0)}<ref name=first/>.\n\nOnly an uncited sentence stands here.\n"
        f'\n== Sights ==\n=== Old ===\n{fact(1)}.<ref name="listed" />\n\n== See also ==\n{fact(0)}.<ref name=first/>\n'
        '\n== References ==\n{{reflist|refs=<ref name="listed">{{cite news|url=https://web.archive.org/web/20120101000000/http://example.org/page/1|title=y}}</ref>}}\n'
        "Tail.<ref name=first>{{cite web|url={{nowrap|http://www.example.org/page/0/}}|title=x}}</ref>\n"
    )
    texts["Town 1"] = (  # a quote's end, a table, a list, a template that is lost, one that is expanded
        f'== History ==\n"{fact(2)}."<ref>{{{{cite web|url=http://example.org/page/2|title=x}}}}</ref>\n'
        "{| class=wikitable\n|-\n| cell.<ref>{{cite web|url=http://example.org/page/9|title=x}}</ref>\n|}\n"
        "* A list item that nobody wants.<ref>{{cite web|url=http://example.org/page/9|title=x}}</ref>\n"
        "\nIt weighs {{unknown measure|5}} and was lost for years.<ref>{{cite web|url=http://example.org/page/3|title=x}}</ref>\n"
        f"\n{fact(3)} over {{{{convert|6|km|mi}}}}.<ref>{{{{cite web|url=http://example.org/page/3|title=x}}}}</ref>\n"
    )
    texts["Town 2"] = (  # no text behind the address; a page that is not there; a page in another language
        f"== History ==\n{fact(4)}.<ref>{{{{cite web|url=http://example.org/page/4.pdf|title=x}}}}</ref>\n"
        f"\n{fact(4)}.<ref>{{{{cite web|url=http://example.org/missing|title=x}}}}</ref>\n"
        f"\n{fact(5)}.<ref>{{{{cite web|url=http://example.org/page/5|title=x}}}}</ref>\n"
    )
    texts[
        "Town 3"
    ] = (  # a page that says something else; a short statement; a cookie wall; a page that town 4 cites, too
        f"== History ==\n{fact(30)} and nothing like it.<ref>{{{{cite web|url=http://example.org/page/6|title=x}}}}</ref>\n"
        "\nIt is old.<ref>{{cite web|url=http://example.org/page/7|title=x}}</ref>\n"
        f"\n{fact(9)}.<ref>{{{{cite web|url=http://example.org/wall|title=x}}}}</ref>\n"
        f"\n{fact(8)}.<ref>{{{{cite web|url=http://example.org/page/8|title=x}}}}</ref>\n"
    )
    return texts


def dump(path, texts):
    """A MediaWiki dump with a redirect and a talk page among its articles."""
    rows = ['<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo></siteinfo>']
    rows.append(_page("Old name", 900, 0, "#REDIRECT [[Town 0]]", redirect=True))
    rows += [_page(title, 100 + number, 0, text) for number, (title, text) in enumerate(texts.items())]
    rows.append(_page("Talk:Town 0", 901, 1, "Nothing."))
    path.write_bytes(bz2.compress(("\n".join(rows) + "</mediawiki>").encode()))
    return path


def _page(title, id, space, text, redirect=False):
    mark = '<redirect title="Town 0" />' if redirect else ""
    return (
        f"<page><title>{escape(title)}</title><ns>{space}</ns><id>{id}</id>{mark}<revision><id>{id + 5000}</id>"
        f"<text>{escape(text)}</text></revision></page>"
    )


def warc(path):
    """40 pages as Common Crawl stores them; page 5 is not English, page 6 says something else."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number in range(40):
            body = html(page_text(number, english=number != 5)).encode()
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"http://www.example.org/page/{number}", "response", payload=io.BytesIO(body), http_headers=headers
            )
            writer.write_record(record)
        wall = (
            "<p>" + "</p><p>".join(["We and all of our partners use cookies to show what you may like."] * 6) + "</p>"
        )
        record = writer.create_warc_record(
            "http://example.org/wall",
            "response",
            payload=io.BytesIO(f"<html><body><main>{wall}</main></body></html>".encode()),
            http_headers=StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1"),
        )
        writer.write_record(record)
        gone = StatusAndHeaders("404 Not Found", [("Content-Type", "text/html")], protocol="HTTP/1.1")
        record = writer.create_warc_record(
            "http://example.org/missing", "response", payload=io.BytesIO(b"gone"), http_headers=gone
        )
        writer.write_record(record)
    return path
