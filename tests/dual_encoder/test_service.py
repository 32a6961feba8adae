"""The service: what it answers, whom it refuses, and the page in a browser."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import threading
import time

import pytest
import torch
from dual_for_tests import answerer
from PIL import Image

from tenfold.systems.dual_encoder.index.encode_files import index_files
from tenfold.systems.dual_encoder.serving.service import LARGEST_BODY, make_app

pytest.importorskip("starlette")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "0123456789abcdef"
QUESTION = "is there a red circle"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    generator = torch.Generator().manual_seed(0)
    files = []
    for number in range(6):
        pixels = torch.randint(0, 256, (12, 12, 3), dtype=torch.uint8, generator=generator)
        files.append(folder / f"<b>picture {number}.png" if number == 0 else folder / f"picture {number}.png")
        Image.fromarray(pixels.numpy()).save(files[-1])
    model = answerer()
    return model, {"shop": index_files(model, folder / "shop", files)}


def app_of(served, **options):
    model, indexes = served
    folder = indexes["shop"].folder.parent
    return make_app(model, indexes, **{"roots": [folder], **options})


def ask(app, method, path, body=None, headers=(), host="127.0.0.1"):
    """One request without a network: status, headers, content."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in headers)]
    if body is not None:
        given.append((b"content-type", b"application/json"))
    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
             "headers": given, "scheme": "http", "server": (host, 80), "client": ("127.0.0.1", 1), "root_path": "",
             "http_version": "1.1", "asgi": {"version": "3.0"}}  # fmt: skip
    parts, sent = [content], []

    async def receive():
        return {"type": "http.request", "body": parts.pop() if parts else b"", "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), found


def test_it_ranks_answers_and_checks(served):
    model, indexes = served
    app = app_of(served)
    status, headers, content = ask(app, "GET", "/")
    assert status == 200 and b"<main>" in content and b"default-src 'none'" in headers[b"content-security-policy"]
    listed = json.loads(ask(app, "GET", "/api/indexes")[2])
    assert listed["indexes"] == [{"name": "shop", "images": 6, "kind": "float16", "left_out": 0}]
    body = {"index": "shop", "question": QUESTION, "answer": "yes", "top_k": 3}
    found = json.loads(ask(app, "POST", "/api/search", body)[2])["images"]
    expected = model.search(QUESTION, indexes["shop"], "yes", 3)[0]
    assert [one["probability"] for one in found] == pytest.approx([one.probability for one in expected])
    body = {"index": "shop", "question": QUESTION, "images": [one["place"] for one in found]}
    answers = json.loads(ask(app, "POST", "/api/ask", body)[2])["answers"]
    assert [one["answer"] for one in answers] == [
        model.answer(QUESTION, indexes["shop"], [one.image])[0][0].answer for one in expected
    ]
    body = {"index": "shop", "questions": [QUESTION, "what color"], "answer": "yes"}
    checks = json.loads(ask(app, "POST", "/api/checklist", body)[2])["checks"]
    assert [check["yes"] + check["no"] for check in checks] == [6, 6]
    status, headers, content = ask(app, "GET", f"/image/shop/{found[0]['place']}")
    assert status == 200 and headers[b"content-type"] == b"image/jpeg" and content[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/search", b"{", 400), ("POST", "/api/search", [], 400), ("POST", "/api/search", {}, 404),
        ("POST", "/api/search", {"index": "shop"}, 400),
        ("POST", "/api/search", {"index": "shop", "question": "red " * 20}, 400),
        ("POST", "/api/search", {"index": "shop", "question": QUESTION, "answer": "perhaps"}, 400),
        ("POST", "/api/search", {"index": "shop", "question": QUESTION, "top_k": 10**9}, 400),
        ("POST", "/api/search", b" " * (LARGEST_BODY + 1), 413), ("POST", "/api/search", b"[" * 50000, 400),
        ("POST", "/api/ask", {"index": "shop", "question": QUESTION, "images": [99]}, 404),
        ("POST", "/api/ask", {"index": "shop", "question": QUESTION, "images": [True]}, 400),
        ("POST", "/api/checklist", {"index": "shop", "questions": ["x"] * 65}, 400),
        ("GET", "/image/shop/99", None, 404), ("GET", "/image/../etc/passwd", None, 404),
        ("GET", "/image/other/0", None, 404), ("DELETE", "/api/search", None, 405),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(served, method, path, body, status):
    found, _, content = ask(app_of(served), method, path, body)
    assert found == status
    assert b"Traceback" not in content and b"/tmp" not in content
    if content.startswith(b"{"):
        assert "\n" not in json.loads(content)["error"]


def test_a_token_and_the_own_names_only(served):
    app = app_of(served, token=TOKEN)
    assert ask(app, "GET", "/")[0] == 401 and ask(app, "GET", "/api/indexes?token=wrong")[0] == 401
    assert ask(app, "GET", "/api/indexes", headers=[("authorization", f"Bearer {TOKEN}")])[0] == 200
    status, headers, _ = ask(app, "GET", f"/?token={TOKEN}")
    assert status == 200 and b"HttpOnly" in headers[b"set-cookie"]
    assert ask(app, "GET", "/api/indexes", headers=[("cookie", f"tenfold_token={TOKEN}")])[0] == 200
    assert ask(app_of(served), "GET", "/", host="evil.example")[0] == 400


def test_pictures_outside_the_given_folders_are_not_shown(served, tmp_path):
    status, _, content = ask(app_of(served, roots=[tmp_path]), "GET", "/image/shop/0")
    assert status == 404 and b"outside" in content


DRIVER = """<script>
const submit = () => {
  if (!document.querySelector("#answer option")) return setTimeout(submit, 50);
  document.getElementById("question").value = "QUESTION";
  document.getElementById("form").requestSubmit();
};
submit();
</script></html>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_page_shows_ranked_pictures_in_a_browser(served, tmp_path, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    from tenfold.systems.dual_encoder.serving import service

    page = tmp_path / "page.html"
    html = service._PAGE.read_text(encoding="utf-8")
    page.write_text(html.replace("</html>", DRIVER.replace("QUESTION", f"{QUESTION}\\nwhat color is a zebra")))
    monkeypatch.setattr(service, "_PAGE", page)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app_of(served), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        done = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--enable-logging=stderr",
             "--dump-dom", f"http://127.0.0.1:{port}/"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        server.should_exit = True
        thread.join(10)
    drawn = done.stdout[done.stdout.index("<main") : done.stdout.index("</main>")]
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "The model has never seen: zebra." in drawn
    assert "Answered in" in drawn and drawn.count("<h2>") == 2 and drawn.count("<figure>") == 12
    assert len(re.findall(r'src="image/shop/\d+"', drawn)) == 12
    assert "&lt;b&gt;picture 0" in drawn, "a name is text, not a page"
