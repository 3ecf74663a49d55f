"""The site: the repository's Markdown pages, and its docstrings as pages (`make docs`).

Sphinx's source folder is the repository, so that a relative link means here what it means on
GitHub: one to a page leads to the page, one to any other file to a copy of that file.
"""

import re
from pathlib import Path

from sphinx import addnodes

import lhkernels

project = "lhkernels"
release = version = lhkernels.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # a copy of MathJax in the site, which needs no network then
]

root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/api/*.rst", "bench/results/**/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "docs/_build"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpick_ignore_regex = [
    ("py:class", r"(abc|collections|pathlib|torch)\..*"),
    ("py:class", "Axes|LinearOperator|Tensor"),  # of matplotlib, scipy and torch
]

html_theme = "furo"
html_title = "lhkernels"
html_static_path, html_css_files = ["_static"], ["tables.css"]
html_extra_path = ["_extra"]  # index.html, which leads to README.html
html_copy_source = html_show_sourcelink = html_show_copyright = False


def for_the_site(app, docname, source):
    """A comment ``<!-- site ... -->``, which GitHub does not show, is part of the page here."""
    source[0] = re.sub(r"<!-- site\n(.*?)-->", r"\1", source[0], flags=re.DOTALL)


def pages(app, what, name, value, options, lines):
    """Docstrings name pages as they are found in the repository: docs/step.md."""
    lines[:] = [re.sub(r"\bdocs/([\w-]+)\.md\b", r":doc:`/docs/\1`", line) for line in lines]


def nameless(app, what, name, value, skip, options):
    """A field of a named tuple has no docstring of its own, and is in the class's."""
    return True if (value.__doc__ or "").startswith("Alias for field number") else None


def folders(app, doctree):
    """A link to a folder is for GitHub: here its text stays."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        page = Path(app.env.doc2path(link.get("refdoc", app.env.docname)))
        if link["reftype"] == "myst" and (page.parent / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def setup(app):
    app.connect("source-read", for_the_site)
    app.connect("autodoc-process-docstring", pages)
    app.connect("autodoc-skip-member", nameless)
    app.connect("doctree-read", folders)
