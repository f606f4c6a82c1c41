"""Recipes: the schema, reading, merging, overriding and checking them, and the errors of pyft.

Imports nothing else of pyft, and neither torch nor transformers, so that a wrong recipe is answered at once.
"""

from pyft.config.command import run_command
from pyft.config.errors import (
    ConfigError,
    DataError,
    DiskError,
    Interrupted,
    NumericsError,
    OutOfMemory,
    PyftError,
)
from pyft.config.load import Recipe, load_recipe
from pyft.config.schema import (
    AdapterConfig,
    DataConfig,
    DataSource,
    ModelConfig,
    Stage,
    TokenizerConfig,
    TrainConfig,
)
from pyft.config.shipped import find_recipe, shipped_recipes
from pyft.config.yaml_text import dump_yaml

__all__ = [
    "AdapterConfig",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DataSource",
    "DiskError",
    "Interrupted",
    "ModelConfig",
    "NumericsError",
    "OutOfMemory",
    "PyftError",
    "Recipe",
    "Stage",
    "TokenizerConfig",
    "TrainConfig",
    "dump_yaml",
    "find_recipe",
    "load_recipe",
    "run_command",
    "shipped_recipes",
]
