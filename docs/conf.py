"""How Sphinx makes a site of these pages, which are read as they are on GitHub too.

    pip install -r requirements-docs.txt
    sphinx-build -W --keep-going docs site

-W: a link or an anchor that leads nowhere ends it with an error.
"""

project = "Landmarks"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["*.py"]

myst_heading_anchors = 3  # of the headings that pages link to, as GitHub names them
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_title = "Landmarks"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
