"""Rows and live columns as readable lines, `name: value`, with what a value looks like: a time, money, a place. Pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson
