"""placeholder"""

VERBS: dict = {}
