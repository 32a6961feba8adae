"""``serve``: a page in the browser."""

from pathlib import Path

from tenfold.errors import UserError, require
from tenfold.files import printable
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex
from tenfold.systems.dual_encoder.load import load
from tenfold.systems.dual_encoder.serving.service import is_loopback, make_app

_SHORTEST_TOKEN = 16


def serve(
    run: str,
    indexes: list[str],
    *,
    images: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    names: list[str] | None = None,
    factory: str | None = None,
) -> None:
    """A page in the browser: pick an index, type a question or a checklist, see ranked pictures. Ctrl-C stops it.

    Args:
        run: folder of a run or model.
        indexes: folders of its indexes.
        images: folders below which pictures may be shown; the current one where not given.
        host: address to listen on; any but this machine's own needs a token.
        port: port to listen on.
        token: that the browser must bring: open the page with ?token=TOKEN. At least 16 characters.
        names: names under which other machines call this one, such as [box.example]; needed with another host.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    if not is_loopback(host) and (token is None or not names):
        raise UserError(
            f"listening on {printable(host)} opens your pictures to the network: it needs --token and --names [NAME]"
        )
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise UserError(f"the token must have at least {_SHORTEST_TOKEN} characters")
    if not 0 < port < 65536:
        raise UserError(f"port must lie in 1 to 65535; got {port}")
    uvicorn = require("uvicorn", "serve")
    answerer = load(run, factory=factory)
    opened: dict[str, VisualIndex] = {}
    for folder in indexes:
        name = Path(folder).resolve().name
        if name in opened:
            raise UserError(f"two indexes are called {printable(name)!r}: rename one folder")
        opened[name] = VisualIndex.open(folder, answerer.fingerprint)
    hosts = ("127.0.0.1", "localhost", *(names or []))
    app = make_app(answerer, opened, roots=images or ["."], token=token, hosts=hosts)
    print(f"http://{host}:{port}/{'?token=' + token if token else ''}", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=5, limit_concurrency=64)
