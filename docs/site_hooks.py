"""Add to the documentation site what lies outside docs/: pages, notebooks, the demo's gallery."""

import base64
import json
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RECORD.md": "record.md",
}
DEMO = "FILTERSCOPE_DEMO"
"""The environment variable that names the gallery to show; without it, it is that of `make demo`."""
NO_DEMO = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>No demo gallery</title>
<body style="font: 1rem sans-serif; color-scheme: light dark"><h1>No demo gallery</h1>
<p>This site was built without the gallery of a demo run. <code>make docs</code> trains the demo and adds it.</p>
</body></html>
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, whose links to docs/ become links within the site, the notebooks and the gallery."""
    for source, target in PAGES.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, target, content=text))
    for path in sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb")):
        page, pictures = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    gallery = Path(os.environ.get(DEMO) or REPOSITORY / "build" / "demo_gallery" / "gallery")
    if not (gallery / "index.html").is_file():
        for name in ("index", "layers/block1_conv1"):  # to which the landing page leads
            files.append(File.generated(config, f"demo/{name}.html", content=NO_DEMO))
        return files
    for path in sorted(gallery.rglob("*")):
        if path.is_file():
            name = f"demo/{path.relative_to(gallery).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path.resolve())))
    return files


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return an executed notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], dict[str, bytes]()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                about = source.splitlines()[-1].replace('"', "").replace("[", "(").replace("]", ")")
                parts.append(f"![{about}]({name})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    parts[0] += f"\n\n[Download this notebook]({path.name})"
    return "\n\n".join(parts), pictures


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn links from docs/ to the pages outside and to notebooks into links within the site."""
    for source, target in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}").replace(f"]({source}", f"]({target}")
    return re.sub(r"\]\((notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)


def on_post_page(output: str, **_: object) -> str:
    """Name the dialog of the search, which the theme leaves without a name."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
