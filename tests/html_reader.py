"""Reads pages that are written by this package."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr"}


class Reader(HTMLParser):
    """Text of a page, the files it names, and whether its tags match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def prose(self):
        return " ".join("".join(self.text).split())
