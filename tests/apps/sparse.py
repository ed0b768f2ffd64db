"""Sends a file without blocks, of as many bytes as the path says: zeros from no disk."""

import tempfile


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    with tempfile.TemporaryFile() as file:
        file.truncate(int(scope["path"][1:]))
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.zerocopysend", "file": file})
