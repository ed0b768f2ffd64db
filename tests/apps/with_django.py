"""Django in one module, without a database."""

from collections.abc import AsyncIterator, Iterator

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not a secret",
    USE_TZ=True,
)


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"sync {request.GET.get('word', '')}")


async def native(request: HttpRequest) -> HttpResponse:
    return HttpResponse("async")


async def echo(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"method": request.method, "body": request.body.decode()})


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[str]:
        for number in range(100):
            yield f"{number}\n"

    return StreamingHttpResponse(pieces(), content_type="text/plain")


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    def pieces() -> Iterator[str]:
        for number in range(100):
            yield f"{number}\n"

    return StreamingHttpResponse(pieces(), content_type="text/plain")


async def upload(request: HttpRequest) -> JsonResponse:
    file = request.FILES["file"]
    content = file.read()
    return JsonResponse({"name": file.name, "size": len(content), "sum": sum(content)})


urlpatterns = [
    path("plain", plain),
    path("native", native),
    path("echo", echo),
    path("stream", stream),
    path("sync-stream", sync_stream),
    path("upload", upload),
]

django.setup()
app = get_asgi_application()
wsgi = get_wsgi_application()
