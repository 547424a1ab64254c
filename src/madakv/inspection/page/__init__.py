"""A report as one HTML file that needs nothing else: no network, no server, no fonts."""

from madakv.inspection.page.making import html, write

__all__ = ["html", "write"]
