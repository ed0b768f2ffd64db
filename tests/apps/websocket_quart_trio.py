"""Quart on trio, with the same pages."""

from quart_trio import QuartTrio
from websocket_quart import pages

app = QuartTrio(__name__)
app.register_blueprint(pages)
