"""Hooks of the documentation: equations as MathML, links to sources as text."""

import pathlib
import re

import latex2mathml.converter

_EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#)[^)#]+\.(?:py|toml))\)")


def on_page_markdown(markdown, page, **_):
    """Sources are files of the repository, and no pages of the site."""
    folder = pathlib.Path(page.file.abs_src_path).parent

    def as_text(link):
        if not (folder / link[2]).is_file():
            raise FileNotFoundError(f"{page.file.src_uri}: {link[2]}")
        return link[1]

    return _LINK.sub(as_text, markdown)


def on_page_content(html, **_):
    """TeX as browsers show it without a script."""

    def mathml(found):
        kind = "inline" if found[1] == "span" else "block"
        tex = found[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return latex2mathml.converter.convert(tex, display=kind)

    return _EQUATION.sub(mathml, html)
