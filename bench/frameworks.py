"""Applications as users write them, beside the bare ones of apps.py: what a server is a part of."""

from typing import Annotated

from fastapi import FastAPI, Query
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


async def _greet(request):
    return JSONResponse({"message": "Hello, world!", "name": request.path_params["name"]})


starlette = Starlette(routes=[Route("/greetings/{name}", _greet)])


class Item(BaseModel):
    name: str = Field(min_length=1, max_length=100)
    price: float = Field(gt=0)
    tags: list[str] = []


class Order(BaseModel):
    number: int
    item: Item
    total: float


fastapi = FastAPI()


@fastapi.post("/orders/{number}")
async def _order(number: int, item: Item, amount: Annotated[int, Query(ge=1)] = 1) -> Order:
    return Order(number=number, item=item, total=amount * item.price)
