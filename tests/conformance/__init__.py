"""What an ASGI server must do, as checks of any server from outside.

    cd tests && python -m conformance --cmd 'uvicorn --port {port} {app}'

The server is started as a process, with the application of probe.py. Each check tells that
application what to do with its call (a list of steps, in a field of the request), talks bytes to
the server over a socket, reads in the application's journal what it was given and what came of
it, and judges both. Needs nothing beside the standard library.
"""
