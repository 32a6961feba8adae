from .load import load as load
