"""Write the tables of the documentation from the committed results.

    python benchmarks/make_tables.py [--check]

Replaces what stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` in the page of each system by what
``tables/SYSTEM.py`` makes of the results, or in the page that a file of tables names; ``--check`` only says what is
stale.
"""

import re
import sys
from importlib import import_module
from pathlib import Path

from tenfold.errors import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))


def main() -> int:
    """Rewrite the pages, or check them."""
    check, stale = "--check" in sys.argv, []
    for source in sorted((ROOT / "benchmarks" / "tables").glob("[a-z]*.py")):
        module = import_module(f"tables.{source.stem}")
        if not hasattr(module, "PARTS"):
            continue
        own = Path("src") / "tenfold" / "systems" / source.stem / "README.md"
        page = ROOT / getattr(module, "PAGE", own)
        text = page.read_text(encoding="utf-8")
        made = text
        for name, make in module.PARTS.items():
            pattern = re.compile(rf"(<!-- results: {name} -->\n).*?(<!-- end -->)", re.S)
            try:
                content = make()
            except (UserError, FileNotFoundError) as error:  # not measured yet: the page says so itself
                print(f"left as it is: {source.stem}, {name}: {error}")
                continue
            made = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", made)
        if made != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(made, encoding="utf-8")
    print("stale:" if check else "written:", *stale or ["nothing"])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
