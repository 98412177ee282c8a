"""The documentation site: Sphinx reads the notebooks of nbs/ as they are stored, nothing is executed. `.ci/docs` builds.

What is ours: every notebook passes through nbdev's own processors, with autodoc in the place of `show_doc`; comments of
parameters (fastcore's docments) reach autodoc; equations become MathML; the table of contents is made from the numbers of
the notebooks, so a new one is in the site at once.
"""
import configparser
import importlib
import inspect
import json
import re
from functools import reduce
from itertools import groupby
from pathlib import Path

from docutils import nodes
from execnb.nbio import dict2nb, mk_cell, nb2dict
from fastcore.docments import docments
from latex2mathml.converter import convert
from nbdev import processors
from nbdev.doclinks import NbdevLookup
import ziamath   # for its font

ROOT = Path(__file__).resolve().parents[2]
settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, copyright = settings["lib_name"], settings["author"], settings["copyright"]
release = version = settings["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
exclude_patterns = ["images", "**/.*", "**.jsonl"]
default_role = "code"   # one backtick in a docstring is code, as in the notebooks

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
viewcode_line_numbers = True

html_theme = "furo"
html_title = project
html_favicon = "static/icon.svg"
html_static_path = ["static", str(Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf")]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_math_renderer = "mathml"
html_copy_source = False
html_baseurl = f"{settings['doc_host']}{settings['doc_baseurl']}/"
html_theme_options = {"source_repository": settings["git_url"], "source_branch": settings["branch"],
                      "source_directory": f"{settings['nbs_path']}/"}
pygments_style, pygments_dark_style = "default", "github-dark"

NBS = ROOT / settings["nbs_path"]
CHAPTERS = {page.stem: page.read_text(encoding="utf-8") for page in sorted(NBS.glob("[0-9]*.ipynb"))}
TITLES = {name: re.search(r'"# (.+?)(\\n)?"', text)[1] for name, text in CHAPTERS.items()}
BANDS = ["ground", "data", "features", "method", "measure", "experiments", "faces"]
CONTENTS = {
    "Start": ["idea", "contents"],
    "Tutorials": ["tutorials/quickstart", "tutorials/own_images", "tutorials/*", "extending"],
    "Results": ["results/76_comparison", "results/*"],
    **{f"{band} {what}": [f"{name[:2]} {title} <{name}>" for name, title in TITLES.items() if name[0] == str(band)]
       for band, what in enumerate(BANDS)},
    "Reference": ["api/index", "model_card", "data_statement"],
}


# Notebooks

def name_links(cell, lookup=NbdevLookup()):
    "As nbdev's `add_links`, but to pages of this site; code blocks, headings and links stay as they are."
    def link(match):
        if match[1] in TITLES:
            return f"[{match[0]}](/{match[1]}.ipynb)"
        found = lookup.syms.get(match[1])
        module = found[1].removesuffix(".py").replace("/", ".") if isinstance(found, tuple) else ""
        if not module.startswith(f"{project}.") or module == f"{project}.cli":   # commands are no Python names
            return match[0]
        return f"[{match[0]}](#{module}.{match[1].removeprefix(module + '.')})"
    if cell.cell_type == "markdown":
        parts = re.split(r"(^```.*?^```|^#+ .*?$|\[[^\]]*\]\([^)]*\))", cell.source, flags=re.S | re.M)
        cell.source = "".join(part if i % 2 else re.sub(r"(?<!`)`([^`\s]+?)(?:\(\))?`(?!`)", link, part)
                              for i, part in enumerate(parts))


class for_sphinx(processors.Processor):
    "`show_doc` becomes autodoc's, save where the source is shown; what `#|` tells Quarto is told to MyST-NB by tags."
    def __init__(self, nb):
        super().__init__(nb)
        self.module = next((f"{project}.{cell.directives_['default_exp'][0]}" for cell in nb.cells
                            if "default_exp" in cell.directives_), project)
        for cell in nb.cells:
            cell.directives_.pop("exports", None)   # the signature with its comments stands in the source

    def begin(self):
        runs = groupby(self.nb.cells, lambda cell: getattr(cell, "has_sd", False))
        self.nb.cells = [cell for added, run in runs for cell in (reversed([*run]) if added else run)]

    def cell(self, cell):
        if cell.cell_type != "code":
            return
        if shown := re.fullmatch(r"show_doc\(([\w.]+)\)", cell.source.strip()):
            thing = reduce(getattr, shown[1].split("."), importlib.import_module(self.module))
            kind = "class" if inspect.isclass(thing) else "method" if "." in shown[1] else "function"
            cell.cell_type = "markdown"
            cell.source = f"```{{eval-rst}}\n.. auto{kind}:: {self.module}.{shown[1]}\n   :no-index:\n```"
            return
        tags = {"echo:": "remove-input", "output:": "remove-output", "include:": "remove-cell"}
        hidden = [tag for key, tag in tags.items() if cell.directives_.get(key) == ["false"]]
        hidden += ["hide-input"]*(cell.directives_.get("code-fold:") == ["true"])   # one click away
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), *hidden]
        cell.source = re.sub(r"\A(#\|.*\n?)+", "", cell.source)


class Site(processors.FilterDefaults):
    "nbdev's processors without those that run code or write for Quarto."
    def base_procs(self):
        first = [processors.populate_language, name_links, processors.add_show_docs, for_sphinx]
        left_out = ["FrontmatterProc", "insert_warning", "clean_show_doc", "exec_show_docs", "add_links", "add_fold"]
        return first + [proc for proc in super().base_procs() if proc not in first and proc.__name__ not in left_out]


def read(app, docname, source):
    "A notebook as nbdev would show it; the index with the table of contents, the reference with its modules."
    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        above = "](" + "../"*(docname.count("/") + 1)   # a file beside nbs/ is no page of the site
        notebook = dict2nb(json.loads(source[0].replace(above, f"]({settings['git_url']}/blob/{settings['branch']}/")))
        notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        if docname == "index":
            notebook.cells.append(mk_cell(contents(), "markdown"))
        Site()(notebook)
        notebook.metadata["source_map"] = [100*i for i, _ in enumerate(notebook.cells)]   # a warning's line 305 is in cell 3
        source[0] = json.dumps(nb2dict(notebook))


def contents():
    return "\n".join(f"```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```"
                     for caption, pages in CONTENTS.items())


# Reference

def write_reference(app, config):
    "A page for each module, in the order of the book, and one that lists them; git does not track them."
    modules = re.findall(r'"#\| default_exp (\w+)', "".join(CHAPTERS.values()))
    table = f".. autosummary::\n\n   {project}." + f"\n   {project}.".join(modules)
    tree = ".. toctree::\n   :hidden:\n\n   " + "\n   ".join(modules)
    pages = {name: f".. automodule:: {project}.{name}\n   :members:\n" for name in modules}
    pages["index"] = f"Every public name of the package. The chapters explain; here one looks up.\n\n{table}\n\n{tree}\n"
    folder = NBS / "api"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        old.unlink()
    for name, text in pages.items():
        title = "Modules" if name == "index" else name
        (folder / f"{name}.rst").write_text(f"{title}\n{'='*len(title)}\n\n{text}", encoding="utf-8")


def no_source(app, pagename, template, context, doctree):
    "What is made here cannot be edited there."
    if pagename.startswith("api/"):
        context["page_source_suffix"] = ""


def rst(text):
    "A docstring in the notebooks' Markdown, as reStructuredText."
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(f"\\ {part}\\ " if i % 2 else re.sub(r"([|\\]|_(?!\w))", r"\\\1", part) for i, part in enumerate(parts))


def left_out(app, what, name, thing, skip, options):
    "Fields stand among the parameters of their class; methods are listed with and without a docstring."
    if what == "class" and not name.startswith("_"):
        made = getattr(thing, "fget", None) or getattr(thing, "func", None) or getattr(thing, "__func__", thing)
        return not (inspect.isfunction(made) and made.__module__.startswith(project))   # scikit-learn adds some


def parameters(app, what, name, thing, options, lines):
    "Comments beside parameters become fields."
    lines[:] = rst("\n".join(lines)).splitlines()
    if what in ("function", "method", "class"):
        found = docments(thing)
        if hasattr(thing, "_fields"):   # a named tuple, which docments does not read
            found = dict(re.findall(r"^ +(\w+): [^#\n]*# *(.+)$", inspect.getsource(thing), re.M))
        notes = {key: note for key, note in found.items() if note}
        lines += ["", *(f":{'returns' if key == 'return' else f'param {key}'}: {rst(' '.join(note.split()))}"
                        for key, note in notes.items()), ""]


# Equations: MathML, which browsers set themselves, in a font that is theirs or ours

def inline(self, node):
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math") + convert(node.astext(), display="block") + "</div>")
    raise nodes.SkipNode


def setup(app):
    app.connect("config-inited", write_reference)
    app.connect("source-read", read)
    app.connect("html-page-context", no_source)
    app.connect("autodoc-skip-member", left_out)
    app.connect("autodoc-process-docstring", parameters)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
