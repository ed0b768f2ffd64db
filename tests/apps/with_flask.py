"""Flask, with streams both ways, an upload, a file and an error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Flask, Response, request, send_file

app = Flask(__name__)


@app.get("/")
def home() -> str:
    return "hello from flask"


@app.get("/url")
def url() -> str:
    return request.url


@app.post("/echo")
def echo() -> bytes:
    return request.get_data()


@app.get("/stream")
def stream() -> Response:
    def pieces() -> Iterator[str]:
        for number in range(100):
            yield f"{number}\n"

    return Response(pieces(), mimetype="text/plain")


@app.post("/upload")
def upload() -> dict[str, Any]:
    file = request.files["file"]
    content = file.read()
    return {"name": file.filename, "size": len(content), "sum": sum(content), **request.form}


@app.get("/file")
def file() -> Response:
    return send_file(Path(__file__).parent.parent / "process.py")


@app.get("/fail")
def fail() -> str:
    raise ArithmeticError("miscounted")
