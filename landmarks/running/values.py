"""What the texts of some settings may be: a mirror, shards, devices, hosts, a CSV; a ValueError says what is wrong."""

import re
from pathlib import Path


def mirror(value: str) -> str:
    if not value:
        raise ValueError("it is empty: give a URL, a folder, or sample")
    return value


def span(value: str) -> str:
    if not re.fullmatch(r"([0-9]+:[0-9]+)?", value):
        raise ValueError("give two numbers, like 0:17")
    if value and int(value.split(":")[0]) >= int(value.split(":")[1]):
        raise ValueError("give the smaller number first, like 0:17")
    return value


def devices(value: str) -> str:
    if value != "all" and not re.fullmatch("[1-9][0-9]{0,5}", value):
        raise ValueError("give a number of devices, or all")
    return value


def hosts(value: str) -> str:
    told = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):(\d{1,5}),(\d{1,5}),(\d{1,5})", value, re.ASCII)
    if value not in ("", "auto") and not (told and 0 < int(told[2]) < 2**16 and int(told[4]) < int(told[3])):
        raise ValueError("give HOST:PORT,COUNT,NUMBER, like 10.0.0.1:1234,2,0, the numbers from 0, or auto")
    return value


def csv(value: str) -> str:
    if value and (Path(value).suffix != ".csv" or Path(value).is_dir()):
        raise ValueError("give a file whose name ends in .csv, like submission.csv")
    return value
