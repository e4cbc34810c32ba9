"""Add to the documentation site what lies outside docs/: three pages of the root, and the gallery of the demo."""

import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent
PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
DEMO = "FILTERSCOPE_DEMO"
"""The environment variable that names the gallery to show; without it, it is that of `make demo`."""
NO_DEMO = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>No demo gallery</title>
<body style="font: 1rem sans-serif; color-scheme: light dark"><h1>No demo gallery</h1>
<p>This site was built without the gallery of a demo run. <code>make docs</code> trains the demo and adds it.</p>
</body></html>
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root, whose links to docs/ become links within the site, and the gallery."""
    for source, target in PAGES.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, target, content=text))
    gallery = Path(os.environ.get(DEMO) or REPOSITORY / "build" / "demo" / "gallery")
    if not (gallery / "index.html").is_file():
        files.append(File.generated(config, "demo/index.html", content=NO_DEMO))
        return files
    for path in sorted(gallery.rglob("*")):
        if path.is_file():
            name = f"demo/{path.relative_to(gallery).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path.resolve())))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn links from docs/ to the pages of the repository's root into links within the site."""
    for source, target in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}").replace(f"]({source}", f"]({target}")
    return markdown
