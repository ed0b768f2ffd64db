"""A WSGI application that yields 100 MiB, or reads what it is sent."""

PIECE = bytes(64 * 1024)

made = 0


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return PATHS[environ["PATH_INFO"]](environ)


def stream(environ):
    global made
    for _ in range(1600):
        made += len(PIECE)
        yield PIECE


def say_made(environ):
    return [b"%d" % made]


def count(environ):
    length = 0
    while piece := environ["wsgi.input"].read(100_000):
        length += len(piece)
    return [b"%d" % length]


PATHS = {"/stream": stream, "/made": say_made, "/sum": count}
