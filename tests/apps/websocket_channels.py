"""Django Channels' side of each WebSocket conversation that the tests have with a framework."""

import json
from typing import Any
from urllib.parse import parse_qs

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    ROOT_URLCONF="with_django",
    SECRET_KEY="not a secret",
    USE_TZ=True,
)
django.setup()

# They read the settings when they are imported.
from channels.exceptions import DenyConnection  # noqa: E402
from channels.generic.websocket import (  # noqa: E402
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    WebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import path  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data, bytes_data)

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        print(f"closed {message['code']} {message.get('reason')}", flush=True)
        await super().websocket_disconnect(message)


class ThreadedEcho(WebsocketConsumer):
    """The kind whose methods are plain functions, run in threads."""

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.send(text_data, bytes_data)

    def disconnect(self, code: int) -> None:
        print(f"closed a thread's {code}", flush=True)


class Choose(AsyncWebsocketConsumer):
    """The last protocol that was offered, and fields of its own."""

    async def connect(self) -> None:
        protocols = self.scope["subprotocols"]
        await self.accept(
            subprotocol=protocols[-1] if protocols else None,
            headers=[(b"x-greeting", b"hello"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
        )
        await self.send(json.dumps({"offered": protocols}))
        await self.close()


class Leave(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.accept()
        await self.close(4001, "genug für heute")


class Refuse(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        raise DenyConnection


class Fail(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.accept()
        who = parse_qs(self.scope["query_string"].decode())["who"][0]
        raise ArithmeticError(f"miscounted for {who}")


class Group(AsyncJsonWebsocketConsumer):
    """What one says, all of the same group hear, by way of the channel layer."""

    async def connect(self) -> None:
        self.group = self.scope["url_route"]["kwargs"]["name"]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def receive_json(self, content: Any) -> None:
        await self.channel_layer.group_send(self.group, {"type": "told", "content": content})

    async def told(self, event: dict[str, Any]) -> None:
        await self.send_json(event["content"])

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)


app = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter(
            [
                path("echo", Echo.as_asgi()),
                path("guarded", AllowedHostsOriginValidator(Echo.as_asgi())),
                path("threaded", ThreadedEcho.as_asgi()),
                path("choose", Choose.as_asgi()),
                path("leave", Leave.as_asgi()),
                path("refuse", Refuse.as_asgi()),
                path("fail", Fail.as_asgi()),
                path("groups/<name>", Group.as_asgi()),
            ]
        ),
    }
)
