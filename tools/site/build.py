# SPDX-License-Identifier: Apache-2.0
"""Build the documentation into ``out/site``: one site for all packages, warnings are errors.

Usage: ``python tools/site/build.py [--no-notebooks] [--no-examples]``; ``make site`` installs what
it needs first.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from html import unescape
from pathlib import Path
from urllib.parse import unquote

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gather import PageError, gather  # noqa: E402
from pictures import draw  # noqa: E402

from _uv import ROOT, ToolError  # noqa: E402

OUT = ROOT / "out"
SITE, STAGE, KEPT = OUT / "site", OUT / "site-source", OUT / "site-cache"
SOURCES = {".py", ".cpp", ".h", ".cu", ".cuh", ".toml"}
NO_SOURCE = {"tests", "benchmarks", "build", "dist"}
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"(https?:)?//[^>]*>")


def main() -> int:
    """Gather, build, check; return the exit status."""
    parser = argparse.ArgumentParser(description="Build the documentation into out/site.")
    parser.add_argument("--no-notebooks", action="store_true", help="show them without outputs")
    parser.add_argument("--no-examples", action="store_true", help="show them without plots")
    options = parser.parse_args()
    if sys.version_info < (3, 11):
        raise ToolError("site: expected Python >= 3.11 for Sphinx; `make PYTHON=python3.11 site`")
    started = time.monotonic()
    for folder in (STAGE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    STAGE.mkdir(parents=True)
    (STAGE / "pictures").mkdir()
    kept = cache()
    draw(STAGE / "pictures", kept / "examples", not options.no_examples)
    gather(STAGE)
    from reference import write_reference  # imports the packages, which takes seconds

    write_reference(STAGE / "reference")
    sphinx("off" if options.no_notebooks else "cache", kept)
    names = check_names()
    check_offline()
    links, code = check_links()
    pages = sum(1 for _ in SITE.rglob("*.html"))
    print(f"site: {links} links, {code} of them names and files in running text; none is broken")
    print(f"site: {pages} pages, {names} public names, {time.monotonic() - started:.0f} s")
    print(f"site: open {(SITE / 'index.html').relative_to(ROOT)}")
    return 0


def cache() -> Path:
    """Return the folder for what the packages' code was run for; drop those of other code.

    Notebooks and examples run again when any file of a package changes that they may use.
    """
    digest = hashlib.sha256()
    for path in sorted(ROOT.glob("packages/*/**/*")):
        if path.suffix in SOURCES and not NO_SOURCE & set(path.relative_to(ROOT).parts):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    kept = KEPT / digest.hexdigest()[:16]
    for other in KEPT.glob("*"):
        if other != kept and other.is_dir():
            shutil.rmtree(other)
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def sphinx(notebooks: str, kept: Path) -> None:
    """Run Sphinx; every warning fails, after all have been shown."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-c", str(HERE), "-d", str(kept / "doctrees")]
    command += ["-D", f"nb_execution_mode={notebooks}"]
    command += ["-D", f"nb_execution_cache_path={kept / 'notebooks'}"]
    command += [str(STAGE), str(SITE)]
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    # Kernels listen on this machine alone; their word about it is not a warning of the build.
    config = STAGE / "ipython" / "profile_default" / "ipython_kernel_config.py"
    config.parent.mkdir(parents=True)
    config.write_text("c.IPKernelApp.log_level = 40\n")
    env["IPYTHONDIR"] = str(STAGE / "ipython")
    if subprocess.run(command, cwd=ROOT, env=env, check=False).returncode:
        raise ToolError("site: expected a build without warnings, got those above")


def check_names() -> int:
    """Compare the public names with the site's inventory; return how many there are."""
    from names import PACKAGES, public_names

    wanted = {name.full for package in PACKAGES for name in public_names(package)}
    missing = sorted(wanted - inventory(SITE / "objects.inv"))
    if missing:
        raise ToolError(f"site: expected every public name, found no {', '.join(missing)}")
    return len(wanted)


def inventory(path: Path) -> set[str]:
    """Return the names that a Sphinx inventory lists."""
    content = path.read_bytes()
    start = 0
    for _ in range(4):  # lines of the header
        start = content.index(b"\n", start) + 1
    lines = zlib.decompress(content[start:]).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def check_offline() -> None:
    """Refuse pages that would load something from the network."""
    for path in sorted(SITE.rglob("*.html")):
        for found in LOADED.finditer(path.read_text(encoding="utf-8")):
            raise ToolError(f"site: expected {path.name} to load nothing, got {found[0]}")


def check_links() -> tuple[int, int]:
    """Refuse links to pages and places that are not there; return how many there are."""
    pages = {path: path.read_text(encoding="utf-8") for path in SITE.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    count = code = 0
    broken = set()
    for path, text in pages.items():
        code += text.count('class="code-link ')
        for address in re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', text):
            file, _, place = unquote(unescape(address)).partition("#")
            if re.match(r"[a-z]+:", file):
                continue
            count += 1
            target = (path.parent / file).resolve() if file else path
            known = place in places[target] if place and target in places else target.is_file()
            if not known:
                broken.add(f"{path.relative_to(SITE)}: {address}")
    if broken:
        raise ToolError("site: expected no broken link, got " + "; ".join(sorted(broken)[:20]))
    return count, code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ToolError, PageError) as error:
        sys.exit(str(error))
