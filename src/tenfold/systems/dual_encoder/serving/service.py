"""The HTTP service (Starlette): loopback by default, a token for anything else, limits on what is sent.

    GET  /                       the page
    GET  /api/indexes            names, sizes and answers
    POST /api/search             {"index", "question", "answer", "top_k"}: ranked images
    POST /api/ask                {"index", "question", "images"}: the answer for each
    POST /api/checklist          {"index", "questions", "top_k"}: for each question its ranked images and counts
    GET  /image/INDEX/PLACE      a picture of an index, small

Only images that an index names and that lie below the folders given are ever read; a request names them by their place.
"""

import hmac
import io
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenfold.data.reading import read_image
from tenfold.errors import UserError, require
from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex
from tenfold.systems.dual_encoder.scoring.checklist import tally

LARGEST_BODY = 2**16
LARGEST_TOP = 200
LARGEST_LIST = 64
THUMBNAIL = 240
_PAGE = Path(__file__).with_name("page.html")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOOPBACK = ("127.0.0.1", "localhost")


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: of the answer.
        message: one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def make_app(
    answerer: VisualAnswerer,
    indexes: Mapping[str, VisualIndex],
    *,
    roots: Sequence[str | Path] = (".",),
    token: str | None = None,
    hosts: tuple[str, ...] = (),
) -> Any:
    """The service as an ASGI application.

    Args:
        answerer: the model.
        indexes: of this model, by name.
        roots: folders below which pictures are read: an index from elsewhere may name any file.
        token: that a request must bring, as ``Authorization: Bearer TOKEN`` or once as ``/?token=TOKEN``; none where
            ``None``.
        hosts: names under which it may be called; loopback's where empty. Others are refused, so that no page of the
            web reaches it by a name of its own.

    Raises:
        UserError: Starlette is missing, or an index is another model's.
    """
    require("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    for index in indexes.values():
        index.require(answerer.fingerprint)
    shown = [Path(root).resolve() for root in roots]
    busy = threading.Lock()  # one question at a time: they share the processor anyway

    def allowed(request: Any) -> None:
        if token is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or request.cookies.get("tenfold_token", "") or request.query_params.get("token", "")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise Refused(401, "a token is needed: open the page with ?token=...")

    async def body_of(request: Any) -> dict[str, Any]:
        if "application/json" not in request.headers.get("content-type", ""):
            raise Refused(415, "send JSON")
        content = b""
        async for part in request.stream():
            content += part
            if len(content) > LARGEST_BODY:
                raise Refused(413, f"a request has at most {LARGEST_BODY} bytes")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the request is not JSON") from error
        if not isinstance(found, dict):
            raise Refused(400, "the request is no JSON object")
        return found

    def index_of(name: Any) -> VisualIndex:
        if not isinstance(name, str) or name not in indexes:
            raise Refused(404, "there is no such index")
        return indexes[name]

    def text(given: dict[str, Any], name: str, default: str | None = None) -> str:
        value = given.get(name, default)
        if not isinstance(value, str) or not value.strip():
            raise Refused(400, f"{name} must be a text")
        return value

    def number(given: dict[str, Any], name: str, default: int) -> int:
        value = given.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_TOP:
            raise Refused(400, f"{name} must be a whole number from 1 to {LARGEST_TOP}")
        return value

    def ranked(index: VisualIndex, questions: list[str], answer: str, top_k: int) -> list[list[dict[str, Any]]]:
        with busy:
            found = answerer.search(questions, index, answer, top_k)
        return [
            [
                {
                    "place": index.place_of(str(one.image)),
                    "name": Path(str(one.image)).name,
                    "probability": one.probability,
                }
                for one in few
            ]
            for few in found
        ]

    def search(given: dict[str, Any]) -> Any:
        index = index_of(given.get("index"))
        question, answer = text(given, "question"), text(given, "answer", "yes")
        found = ranked(index, [question], answer, number(given, "top_k", 24))[0]
        return {"images": found, "unknown": answerer.unknown_words([question])}

    def ask(given: dict[str, Any]) -> Any:
        index, places = index_of(given.get("index")), given.get("images")
        places = places if isinstance(places, list) else []
        whole = all(isinstance(place, int) and not isinstance(place, bool) for place in places)
        if not whole or not 1 <= len(places) <= LARGEST_TOP:
            raise Refused(400, f"images must be 1 to {LARGEST_TOP} places of the index")
        try:
            names = [index.id_at(place) for place in places]
        except IndexError as error:
            raise Refused(404, "the index has no such place") from error
        with busy:
            found = answerer.answer(text(given, "question"), index, names)
        return {
            "answers": [
                {"place": place, "answer": few[0].answer, "probability": few[0].probability}
                for place, few in zip(places, found, strict=True)
            ]
        }

    def checklist(given: dict[str, Any]) -> Any:
        index, questions = index_of(given.get("index")), given.get("questions")
        if not isinstance(questions, list) or not all(isinstance(q, str) and q.strip() for q in questions):
            raise Refused(400, "questions must be a list of texts")
        if not 1 <= len(questions) <= LARGEST_LIST:
            raise Refused(400, f"a checklist has 1 to {LARGEST_LIST} questions")
        answer, top_k = text(given, "answer", "yes"), number(given, "top_k", 6)
        rows = ranked(index, questions, answer, top_k)
        with busy:
            chances = answerer.chances(questions, index, answer)
        return {
            "unknown": answerer.unknown_words(questions),
            "checks": [
                {"question": question, "images": row, **tally(["yes" if p >= 0.5 else "no" for p in chance.tolist()])}
                for question, row, chance in zip(questions, rows, chances, strict=True)
            ],
        }

    def listed() -> Any:
        return {
            "indexes": [
                {
                    "name": name,
                    "images": len(index),
                    "kind": index.manifest.kind,
                    "left_out": len(index.manifest.skipped),
                }
                for name, index in indexes.items()
            ],
            "answers": list(answerer.answers),
            "limit": answerer.tokenizer.max_tokens - 2,
        }

    def picture(name: str, place: int) -> bytes:
        index = index_of(name)
        try:
            path = index.id_at(place)
        except IndexError as error:
            raise Refused(404, "the index has no such place") from error
        if not any(Path(path).resolve().is_relative_to(root) for root in shown):
            raise Refused(404, "the image lies outside the folders that are shown: start the service with --images")
        try:
            image = read_image(path)
        except UserError as error:
            raise Refused(404, "the image is not there any more, or cannot be read") from error
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=85)
        return content.getvalue()

    def answered(work: Any) -> Any:
        """An endpoint with the checks that all share; wrong input gives one line, never a traceback."""

        async def endpoint(request: Any) -> Any:
            try:
                allowed(request)
                return await work(request)
            except Refused as refused:
                return JSONResponse({"error": refused.message}, refused.status, _HEADERS)
            except UserError as error:
                return JSONResponse({"error": str(error)}, 400, _HEADERS)

        return endpoint

    def posted(work: Any) -> Any:
        async def endpoint(request: Any) -> Any:
            from starlette.concurrency import run_in_threadpool

            given = await body_of(request)
            return JSONResponse(await run_in_threadpool(work, given), headers=_HEADERS)

        return answered(endpoint)

    async def page(request: Any) -> Any:
        response = Response(_PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=_HEADERS)
        if token is not None and request.query_params.get("token"):
            response.set_cookie("tenfold_token", token, httponly=True, samesite="strict")
        return response

    async def known(request: Any) -> Any:
        return JSONResponse(listed(), headers=_HEADERS)

    async def image(request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool

        content = await run_in_threadpool(picture, request.path_params["name"], request.path_params["place"])
        return Response(content, media_type="image/jpeg", headers={**_HEADERS, "Cache-Control": "private, max-age=600"})

    return Starlette(
        routes=[
            Route("/", answered(page)),
            Route("/api/indexes", answered(known)),
            Route("/api/search", posted(search), methods=["POST"]),
            Route("/api/ask", posted(ask), methods=["POST"]),
            Route("/api/checklist", posted(checklist), methods=["POST"]),
            Route("/image/{name}/{place:int}", answered(image)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts or _LOOPBACK))],
    )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    return host in _LOOPBACK
