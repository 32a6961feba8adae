"""The settings of a run, read back from its folder."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.run import read_config
from tenfold.settings import check_settings
from tenfold.systems.backbone_search.experiment.settings import Config


def config_of(run: str | Path) -> Config:
    """The settings of a run folder.

    Raises:
        UserError: the folder holds no run of this system, or settings that are none.
    """
    values = read_config(run)
    if values.pop("system") != "backbone-search":
        raise UserError(f"{run} holds no run of backbone-search")
    config = _filled(Config(), values, str(run))
    check_settings(config)
    return config


def _filled(config: Any, values: Any, source: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{source}/config.yaml is not the configuration of a run")
    known = {field.name for field in fields(config)}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{source}/config.yaml has the unknown setting {name!r}")
        own = getattr(config, name)
        if is_dataclass(own):
            _filled(own, value, source)
        else:
            setattr(config, name, value)
    return config
