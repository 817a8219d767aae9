"""Packages are found, not listed: those of `exporters`, `plugins` and `bench` are installed under `mega_deploy`.

pyproject.toml holds everything else; setuptools' own finder knows no map from folders to names.
"""

from setuptools import find_namespace_packages, setup

ROOMS = {"mega_deploy": "mega_deploy"} | {room: f"mega_deploy.{room}" for room in ("exporters", "plugins", "bench")}

setup(
    package_dir={name: room for room, name in ROOMS.items()},
    packages=[
        name + package.removeprefix(room)
        for room, name in ROOMS.items()
        for package in find_namespace_packages(include=[room, f"{room}.*"], exclude=["*.__pycache__"])
    ],
)
